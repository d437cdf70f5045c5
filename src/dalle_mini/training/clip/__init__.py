"""Training a CLIP."""
