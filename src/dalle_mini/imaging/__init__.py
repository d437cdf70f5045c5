"""Image files as arrays: reading, resizing, lettering."""
