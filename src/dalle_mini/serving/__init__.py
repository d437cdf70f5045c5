"""The pipeline behind HTTP: OpenAI's Images API, jobs that survive a restart, and the page."""
