"""Faster forms of layers, for CPUs alone."""
