"""Folders of weights <-> parameters.

`folder` reads and writes files (names and tensors), `key_mapping` knows how published files name their tensors, and
`pretrained` gives every model `from_pretrained` and `save_pretrained`. Nothing is imported here: `folder` is useful
without JAX.
"""
