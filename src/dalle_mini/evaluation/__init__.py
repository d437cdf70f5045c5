"""Metrics of any model: of reconstructions, and what is to come."""
