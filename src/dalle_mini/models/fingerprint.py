"""Short hashes that tell networks apart: which one made these tokens, which one gave these scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dalle_mini.models.image_tokenizer import NETWORKS, ImageTokenizer
from dalle_mini.weights.pretrained import class_of


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """A short hash of everything that decides which tokens an image gets: encoder, codebook, and how that is searched.

    A search for the nearest entry is not hashed, so that what was encoded before there were others keeps its
    fingerprint.
    """
    return _hashed(_leaves(getattr(tokenizer, part) for part in tokenizer.encoding_parts), tokenizer.token_rule)


def stored_fingerprint(folder: Path) -> str:
    """`fingerprint` of the image tokenizer in a folder; only the encoding half is read, an array at a time.

    Raises:
        UserError: the folder cannot be read.
    """
    network = class_of(folder, NETWORKS)
    config, tensors = network.open_pretrained(folder)
    _, shapes = network.shapes(config)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for part in network.encoding_parts
        for path, _ in jax.tree_util.tree_leaves_with_path({part: nnx.to_pure_dict(shapes).get(part)})
    ]
    return _hashed((tensors[name].read(np.float32) for name in names), config.token_rule)


def clip_fingerprint(clip: nnx.Module) -> str:
    return _hashed(_leaves([clip]))


def _leaves(modules: Iterable[nnx.Module | None]) -> Iterable[jax.Array]:
    return (leaf for module in modules if module is not None for leaf in jax.tree.leaves(nnx.state(module)))


def _hashed(arrays: Iterable[jax.Array | np.ndarray], rule: str = "") -> str:
    digest = hashlib.sha256(rule.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32).data.cast("B") if array.size else b"")
    return digest.hexdigest()[:16]
