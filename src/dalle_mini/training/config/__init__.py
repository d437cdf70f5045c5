"""The settings of a run and the files that hold them."""
