"""The ground for all rooms: files, the console, limits and parsing. It knows nothing of pictures or networks."""
