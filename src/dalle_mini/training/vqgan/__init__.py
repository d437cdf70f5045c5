"""Training a VQGAN."""
