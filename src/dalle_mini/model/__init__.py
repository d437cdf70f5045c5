"""The networks are in `dalle_mini.models`. This name is the original's, and only `configuration/` uses it."""
