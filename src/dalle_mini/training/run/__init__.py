"""The loop, and what keeps a run."""
