"""Images to train on, as pixels."""
