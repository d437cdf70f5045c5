"""The version: this file imports nothing, so that any room may ask."""

__version__ = "1.0.0.dev0"
