"""Batches -> weights: one loop (`loop.py`), and one file for each thing trained."""
