"""Training DALL·E mini itself: captions to tokens."""
