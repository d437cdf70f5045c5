"""Weights of other programs and other shapes: convert, describe, operate on."""
