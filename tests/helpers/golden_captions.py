"""Captions of the golden models, drawn."""

from pathlib import Path

import jax
import numpy as np

from dalle_mini.generation import generate_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "dallebart"
SCANNED, UNROLLED = GOLDEN / "a_normformer_glu_scan", GOLDEN / "b_normformer_glu_unrolled"
MEGALIKE, SHARDED = GOLDEN / "e_megalike_fp16_scan", GOLDEN / "f_sharded_of_e"


def load_golden(folder):
    return dict(np.load((MEGALIKE if folder == SHARDED else folder) / "golden.npz"))


def generate(model, golden, keys, rows=slice(None), guidance=10.0, **settings):
    """The tokens of a folder's captions, int32 [*keys.shape, image_length]."""
    uncond = {}
    if np.any(guidance != 1.0) or "last_guidance" in settings:
        uncond = {f"uncond_{name}": golden[f"{name}_uncond"][rows] for name in ("input_ids", "attention_mask")}
    ids, mask = golden["input_ids"][rows], golden["attention_mask"][rows]
    return np.asarray(generate_tokens(model, ids, mask, keys, guidance=guidance, **uncond, **settings))


def keys_of(*shape, seed=0):
    return jax.random.split(jax.random.key(seed), shape)
