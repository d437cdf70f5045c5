"""Files of weights, read lazily and bounded."""
