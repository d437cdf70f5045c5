"""Pages and sheets that people look at."""
