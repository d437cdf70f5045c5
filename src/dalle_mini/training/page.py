"""A run, or several side by side, as one HTML page: curves in SVG, pictures through time. No script, no request."""
