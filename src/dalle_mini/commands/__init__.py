"""The verbs of the `dalle-mini` command: each a parser and a function that calls the library."""
