"""Short hashes that tell networks apart: which one made these tokens, which one gave these scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dalle_mini.models.vqgan import VQGAN

ENCODING = ("encoder", "quant_conv", "codebook", "code_logits")  # a VQGAN's parts that decide its tokens


def fingerprint(vqgan: VQGAN) -> str:
    """A short hash of everything that decides which token a picture gets: encoder, codebook, and how that is searched.

    A "nearest" search is not hashed, so that what was encoded before there were others keeps its fingerprint; nor is
    "gumbel", which has parameters of its own.
    """
    return _hashed(_leaves(getattr(vqgan, part) for part in ENCODING), _search(vqgan.config))


def stored_fingerprint(folder: Path) -> str:
    """`fingerprint` of the VQGAN in a folder; only the encoding half is read, an array at a time.

    Raises:
        UserError: the folder cannot be read.
    """
    config, tensors = VQGAN.open_pretrained(folder)
    _, shapes = VQGAN.shapes(config)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for part in ENCODING
        for path, _ in jax.tree_util.tree_leaves_with_path({part: nnx.to_pure_dict(shapes).get(part)})
    ]
    return _hashed((tensors[name].read(np.float32) for name in names), _search(config))


def clip_fingerprint(clip: nnx.Module) -> str:
    return _hashed(_leaves([clip]))


def _leaves(modules: Iterable[nnx.Module | None]) -> Iterable[jax.Array]:
    return (leaf for module in modules if module is not None for leaf in jax.tree.leaves(nnx.state(module)))


def _search(config) -> bytes:
    return b"cosine" if config.quantizer == "cosine" else b""


def _hashed(arrays: Iterable[jax.Array | np.ndarray], more: bytes = b"") -> str:
    digest = hashlib.sha256(more)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32).data.cast("B") if array.size else b"")
    return digest.hexdigest()[:16]
