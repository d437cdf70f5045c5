"""Generated images on disk: writing, batches, prompts, replay."""
