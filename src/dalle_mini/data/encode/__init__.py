"""Captioned images to a token dataset."""
