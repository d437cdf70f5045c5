"""Pictures and captions -> training examples."""
