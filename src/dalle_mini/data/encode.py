"""Pictures and captions -> shards of VQGAN tokens, once, ahead of training.

A shard is `NNNNN.npz` with `tokens` (uint16 [n, image_length]) and `captions` (text [n]). Shards appear whole or not at
all, so a run that was killed continues with the first one missing. `manifest.json` says which VQGAN the tokens are of,
and of which pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN

MANIFEST = "manifest.json"


def identity(vqgan: VQGAN) -> str:
    """A short hash of everything that decides which token a picture gets: encoder and codebook."""
    digest = hashlib.sha256()
    for part in (vqgan.encoder, vqgan.quant_conv, vqgan.codebook):
        for leaf in jax.tree.leaves(nnx.state(part)):
            digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def encode(
    source: Any,
    vqgan: VQGAN,
    out: str | Path,
    rows: int,
    *,
    shard_rows: int = 2048,
    batch_size: int = 64,
    origin: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Encode the first `rows` examples of a map-style source into `out`, continuing what is there.

    Args:
      source: has `batch(indices) -> (uint8 [n, S, S, 3], captions)`.
      origin: what makes the source's pictures these and no others (split, seed, ...), as a flat JSON object. It is
        kept in the manifest, and a folder of another origin is refused; one whose manifest has none is continued.
      progress: called with (rows done, rows in all).
    Raises:
      UserError: `out` holds tokens of another VQGAN, origin or number of rows, is damaged, or cannot be written.
    """
    out = Path(out)
    if rows < 1:
        raise UserError(f"rows {rows}: there must be at least 1 to encode")
    if vqgan.config.n_embed > 2**16:
        raise UserError(f"n_embed {vqgan.config.n_embed}: tokens are stored in 16 bits")
    manifest = {"vqgan": identity(vqgan), "codebook_size": vqgan.config.n_embed, "rows": rows}
    _claim(out, manifest if origin is None else {**manifest, "origin": origin})
    graphdef, params = nnx.split(vqgan)
    for number, start in enumerate(range(0, rows, shard_rows)):
        stop = min(start + shard_rows, rows)
        path = out / f"{number:05d}.npz"
        if path.exists():
            progress(stop, rows)
            continue
        tokens, captions = [], []
        for first in range(start, stop, batch_size):
            images, texts = source.batch(range(first, min(first + batch_size, stop)))
            padded = np.pad(images, ((0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)))  # one compiled shape
            tokens.append(np.asarray(_encode_batch(graphdef, params, padded))[: len(images)].astype(np.uint16))
            captions.extend(texts)
            progress(first + len(images), rows)
        beside = path.with_suffix(".tmp")
        try:
            with beside.open("wb") as file:
                np.savez_compressed(file, tokens=np.concatenate(tokens), captions=np.array(captions))
            os.replace(beside, path)
        except OSError as error:
            raise UserError(f"{path}: cannot write it ({error.strerror})") from error


@partial(jax.jit, static_argnums=0)
def _encode_batch(graphdef: nnx.GraphDef, params: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params).encode(images.astype(jnp.float32) / 255)


def _claim(out: Path, manifest: dict[str, Any]) -> None:
    path = out / MANIFEST
    manifest = json.loads(json.dumps(manifest))  # as it is read back: lists for tuples
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); use another folder") from None
        if not isinstance(found, dict) or not isinstance(found.get("origin", {}), dict):
            raise UserError(f"{path}: damaged (not what encoding writes); use another folder")
        if "origin" not in found:  # encoded before the manifest told it
            manifest.pop("origin", None)
        old, new = _flat(found), _flat(manifest)
        differences = [
            f"{name} {old.get(name)!r}, not {new.get(name)!r}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if differences:
            raise UserError(f"{path}: holds tokens of another run ({'; '.join(differences)}): use another folder")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from error


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "origin"} | manifest.get("origin", {})
