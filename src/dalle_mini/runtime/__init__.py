"""What the rooms above stand on: files, the console, limits and parsing. It knows nothing of pictures or networks."""
