"""What exists for one kind of processor."""
