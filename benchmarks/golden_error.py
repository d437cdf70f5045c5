"""How far are the published program's golden outputs, and ours, from what float64 makes of the same weights?

    python benchmarks/golden_error.py
    python benchmarks/golden_error.py --python OLD/bin/python NEW/bin/python --json

`--python` names interpreters whose environments have other releases of jax. Each evaluates tests/golden in float32
twice: with the products that the package asks XLA for ("ours"), and with what XLA does by itself ("fused": YNNPACK's
products and sums). Figures are the largest absolute errors. The float64 values are this interpreter's.

A second table is of one product of 4,096 terms: its error (root mean square), and how it was summed. "chains of 1024"
are bit for bit what NumPy makes with a rounding to float32 after each of 1,024 multiplications and additions, and after
each addition of such sums.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini.runtime.processor import processor

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
# XLA's own choice on an x86 processor.
FUSED = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
CASES = (
    "a_normformer_glu_scan",
    "c_ffn_bias_preln_scan",
    "d_ffn_bias_postln_unrolled",
    "e_megalike_fp16_scan",
)
GUIDED = {"greedy": 1.0, "sc_greedy": 10.0, "sc3_greedy": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], help="interpreters with other releases of jax")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the figures")
    parser.add_argument("--evaluate", nargs=2, metavar=("TYPE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.evaluate:
        evaluate(*args.evaluate)
        return
    exact = outputs(sys.executable, "float64", None)
    del exact["product"]
    columns = {"original": original()}
    for python in dict.fromkeys([*args.python, sys.executable]):
        version = str(outputs(python, "version", None)["jax"])
        columns[f"jax {version}, ours"] = outputs(python, "float32", None)
        columns[f"jax {version}, fused"] = outputs(python, "float32", FUSED)
    products = {column: product(values.pop("product")) for column, values in columns.items() if "product" in values}
    errors = {
        column: {name: float(np.abs(values[name] - exact[name]).max()) for name in exact}
        for column, values in columns.items()
    }
    print(f"{processor()}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in exact:
        print(f"| {name} | {' | '.join(f'{errors[column][name]:.1e}' for column in columns)} |")
    print("\n| a product of 4,096 terms | error | summed in |\n|---|---|---|")
    for column, found in products.items():
        print(f"| {column} | {found['error']:.2e} | {found['order']} |")
    if args.json:
        print(json.dumps({"processor": processor(), "errors": errors, "products": products}))


def outputs(python: str, dtype: str, flags: str | None) -> dict[str, np.ndarray]:
    """The errors under that interpreter, in a process of its own, since XLA reads its flags once."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "JAX_PLATFORMS": "cpu"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outputs.npz"
        subprocess.run([python, __file__, "--evaluate", dtype, str(file)], env=environment, check=True)
        return dict(np.load(file))


def evaluate(dtype: str, file: str) -> None:
    import jax
    import jax.numpy as jnp

    if dtype == "version":
        np.savez(file, jax=jax.__version__)
        return
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
        jnp.float32 = jnp.float64  # before the networks are imported: what they keep in float32 is float64 too
        from dalle_mini.weights import pretrained

        pretrained.DTYPES = ("float64",)
    import dalle_mini.models  # noqa: F401  (it sets XLA's flag where none is set)

    multiplied = jax.jit(jnp.matmul)(*(factor.astype(dtype) for factor in factors()))
    found = {"product": np.asarray(multiplied), **seq2seq(), **pictures(), **scores()}
    assert all(values.dtype == dtype for values in found.values()), {n: v.dtype for n, v in found.items()}
    np.savez(file, **found)


def original() -> dict[str, np.ndarray]:
    """The golden files' own, by the names that `evaluate` gives them."""
    found = {}
    for case in CASES:
        golden = np.load(GOLDEN / "dallebart" / case / "golden.npz")
        found |= {f"{case[0]} states": golden["encoder_last_hidden_state"], f"{case[0]} logits": golden["logits"]}
        found[f"{case[0]} guided by 10"] = golden["logits_super10"]
        found |= {f"{case[0]} {name}": golden[f"{name}_logits"] for name in GUIDED}
    golden = np.load(GOLDEN / "vqgan" / "tiny_f4_64" / "golden.npz")
    found |= {"VQGAN latents": golden["latents"], "VQGAN pictures": golden["random_decoded"]}
    golden = np.load(GOLDEN / "clip" / "golden.npz")
    found |= {"CLIP states": golden["vision_last_hidden_state"], "CLIP vectors": golden["image_embeds"]}
    found["CLIP logits"] = golden["logits_per_image"]
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    for guidance in (1, 10):
        found[f"end to end by {guidance}: pictures"] = golden[f"cs{guidance}_decoded"]
        found[f"end to end by {guidance}: scores"] = golden[f"cs{guidance}_clip_logits_per_image"]
    return {name: values.astype(np.float64) for name, values in found.items()}


def factors() -> tuple[np.ndarray, np.ndarray]:
    left, right = np.random.default_rng(0).standard_normal((2, 64, 4096)).astype(np.float32)
    return left, right.T


def product(found: np.ndarray) -> dict[str, Any]:
    """How far that product of `factors` is from float64's, and in which order float32 gives the very same numbers."""
    left, right = factors()
    exact = left.astype(np.float64) @ right.astype(np.float64)
    orders = {f"chains of {length}": chains(left, right, length) for length in (4096, 2048, 1024, 512, 256, 128)}
    same = [order for order, values in orders.items() if np.array_equal(values, found)]
    error = float(np.sqrt(np.mean((found - exact) ** 2)))
    return {"error": error, "order": ", ".join(same) or "another order"}


def chains(left: np.ndarray, right: np.ndarray, length: int) -> np.ndarray:
    """The product in float32: so many terms one after the other, rounded once for each, and the sums of them added."""
    total = np.zeros((len(left), right.shape[1]), np.float32)
    for start in range(0, len(right), length):
        chain = np.zeros_like(total)
        for k in range(start, start + length):  # the product of two float32 is exact in float64
            chain = (left[:, k : k + 1].astype(np.float64) * right[k] + chain).astype(np.float32)
        total += chain
    return total


def compiled(function):
    """`function` of a network and arrays, as one program for all calls of the same shapes."""
    import jax
    from flax import nnx

    program = jax.jit(
        lambda graphdef, params, *arrays: function(nnx.merge(graphdef, params), *arrays), static_argnums=0
    )
    return lambda network, *arrays: np.asarray(program(*nnx.split(network), *arrays))


def seq2seq() -> dict[str, np.ndarray]:
    import jax.numpy as jnp

    from dalle_mini.generation.sampling import guide
    from dalle_mini.models import DalleBart

    states = compiled(lambda model, *arrays: model.encode(*arrays))
    logits = compiled(lambda model, *arrays: model.lm_head(model.hidden(*arrays)))
    found = {}
    for case in CASES:
        golden = np.load(GOLDEN / "dallebart" / case / "golden.npz")
        model = DalleBart.from_pretrained(GOLDEN / "dallebart" / case)
        if case == CASES[-1]:  # the published program adds these embeddings in the type they are stored in
            for part in (model.encoder, model.decoder):
                part.embed_tokens.dtype = part.embed_positions.dtype = jnp.float16
        captions = [(golden[f"input_ids{part}"], golden[f"attention_mask{part}"]) for part in ("", "_uncond")]
        found[f"{case[0]} states"] = states(model, *captions[0])
        cond, uncond = (logits(model, *caption, golden["decoder_input_ids"]) for caption in captions)
        found |= {f"{case[0]} logits": cond, f"{case[0]} guided by 10": guide(cond, uncond, 10.0)}
        for name, guidance in GUIDED.items():
            tokens = golden[f"{name}_sequences"][:, :-1]
            cond, uncond = (logits(model, *caption, tokens) for caption in captions)
            found[f"{case[0]} {name}"] = guide(cond, uncond, guidance)
    return {name: np.asarray(values) for name, values in found.items()}


def pictures() -> dict[str, np.ndarray]:
    from dalle_mini.models import VQGAN

    vqgan = VQGAN.from_pretrained(GOLDEN / "vqgan" / "tiny_f4_64")
    golden = np.load(GOLDEN / "vqgan" / "tiny_f4_64" / "golden.npz")
    decode = compiled(lambda vqgan, tokens: vqgan.decode(tokens))
    found = {
        "VQGAN latents": compiled(lambda vqgan, images: vqgan.encode_latents(images))(vqgan, golden["pixel_values"]),
        "VQGAN pictures": decode(vqgan, golden["random_indices"]),
    }
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    for guidance in (1, 10):
        found[f"end to end by {guidance}: pictures"] = decode(vqgan, golden[f"cs{guidance}_sequences"][:, 1:])
    return found


def scores() -> dict[str, np.ndarray]:
    from dalle_mini.models import CLIP

    clip = CLIP.from_pretrained(GOLDEN / "clip")
    golden = np.load(GOLDEN / "clip" / "golden.npz")
    pixels, ids, mask = golden["pixel_values"].transpose(0, 2, 3, 1), golden["input_ids"], golden["attention_mask"]
    similarity = compiled(lambda clip, pixels, ids, mask: clip.similarity(pixels, ids, mask))
    found = {
        "CLIP states": compiled(lambda clip, pixels: clip.image_states(pixels)[0])(clip, pixels),
        "CLIP vectors": compiled(lambda clip, pixels: clip.image_embeds(pixels))(clip, pixels),
        "CLIP logits": similarity(clip, pixels, ids, mask),
    }
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    for guidance in (1, 10):
        pixels = golden[f"cs{guidance}_clip_pixel_values"].transpose(0, 2, 3, 1)
        ids = golden[f"cs{guidance}_clip_input_ids"]
        mask = np.cumsum(ids == ids.max(), axis=1) - (ids == ids.max()) < 1  # to the first end
        found[f"end to end by {guidance}: scores"] = similarity(clip, pixels, ids, mask.astype(np.int32))
    return found


if __name__ == "__main__":
    main()
