"""How long does drawing take, and how far is it from what the machine allows?

    python benchmarks/generation.py --size mini --candidates 1 9 --dtype float32 bfloat16
    python benchmarks/generation.py --size mini --peer .peer/bin/python      # min-dalle in the same run

Random weights of the published shapes, guidance on, drawn on all cores as `dalle-mini generate` does. For each row:
milliseconds a token step (the median over the stretches between pauses), how many cores it keeps busy, seconds of the
VQGAN, peak memory of a process that does only this, and two bounds. The floor is the decoder's weights and the cache
read at the bandwidth, or the arithmetic at the rate of large products of the same type, both measured just before,
whichever takes longer. "Products" are a step's products with weights alone, one after another in one program, as the
model's layers make them. "Plain" are those that JAX makes with the same weights, as [in, out] or as [out, in]: the
quicker ones.
As `dalle-mini generate` does, it begins once more with huge pages where Linux has them
(`dalle_mini/runtime/huge_pages.py`).
`--peer` names a Python that has min-dalle (`python -m venv .peer && .peer/bin/pip install min-dalle torch`), which runs
as it is started by its users, without.
"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation import stream_tokens
from dalle_mini.generation.cpu.tiles import TiledLinear
from dalle_mini.generation.decode import CACHES
from dalle_mini.generation.optimize import Int8Linear, RowLinear, compute_dtypes, optimize_for_decoding, weight_type
from dalle_mini.generation.pixels import PixelDecoder
from dalle_mini.generation.scheduling import Group, Request, least_rows
from dalle_mini.models import VQGAN, DalleBart
from dalle_mini.models.config import DalleBartConfig, VQGANConfig
from dalle_mini.runtime.cores import side_by_side, workers
from dalle_mini.runtime.huge_pages import TUNABLES, start_again_with_huge_pages
from dalle_mini.runtime.xla import Jit
from dalle_mini.settings import GenerationSettings
from dalle_mini.weights.pretrained import flatten, unflatten

MINI = DalleBartConfig(encoder_ffn_dim=2730, decoder_ffn_dim=2730)
SIZES = {
    "tiny": DalleBartConfig(
        encoder_vocab_size=2048, image_vocab_size=1024, max_text_length=32, d_model=256,
        encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=768,
        decoder_layers=4, decoder_attention_heads=4, decoder_ffn_dim=768,
    ),
    "mini": MINI,
    "mega": DalleBartConfig(
        encoder_vocab_size=50272, image_vocab_size=16415, d_model=2048,
        encoder_layers=24, encoder_attention_heads=32, encoder_ffn_dim=4096,
        decoder_layers=24, decoder_attention_heads=32, decoder_ffn_dim=4096,
    ),
}  # fmt: skip
TINY_VQGAN = VQGANConfig(
    ch=32, ch_mult=(1, 2, 2), resolution=64, n_embed=1024, embed_dim=64, z_channels=64, norm_groups=8
)
F16 = VQGANConfig(n_embed=16384)
DECODED = 3  # times
EVERY = 16  # steps from one pause to the next
ALONE = 8  # steps' products in one program, which is called so many times
COLUMNS = (
    "size | candidates | dtype | ms a step | cores busy | products ms | plain ms | step / products | floor ms | "
    "prefill s | VQGAN s | peak GB"
)
PEER = Path(__file__).with_name("min_dalle_peer.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["mini"])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 9, 32])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument(
        "--peer", metavar="PYTHON", help="also measure min-dalle, installed in this Python's environment"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    start_again_with_huge_pages()
    rows = []
    # A process each: memory that an earlier row took does not count for a later one.
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        for size in args.size:
            for dtype, candidates in itertools.product(args.dtype, args.candidates):
                row = processes.submit(measured, size, dtype, candidates).result()
                if not rows:
                    print(
                        f"{row['device']}: reads {row['gb_s']:.0f} GB/s, {dtype} products {row['gflop_s']:.0f} GFLOP/s"
                    )
                    print(f"\n| {COLUMNS} |\n{'|---' * len(COLUMNS.split(' | '))}|")
                rows.append(show(row))
            for dtype, candidates in itertools.product(("float32", "bfloat16"), args.candidates) if args.peer else ():
                if size != "tiny":
                    command = [args.peer, str(PEER), size, dtype, str(candidates)]
                    as_it_is = {name: value for name, value in os.environ.items() if name != TUNABLES}
                    line = subprocess.run(command, check=True, capture_output=True, text=True, env=as_it_is).stdout
                    rows.append(show({"program": "min-dalle", "size": size, "dtype": dtype, **json.loads(line)}))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def measured(size: str, dtype: str, candidates: int) -> dict:
    bandwidth, rate = machine(dtype)
    seq2seq, others = compute_dtypes(dtype)
    model = optimize_for_decoding(random_model(DalleBart, SIZES[size], seq2seq), int8=dtype == "int8", consume=True)
    vqgan = random_model(VQGAN, TINY_VQGAN if size == "tiny" else F16, others)
    row = {"program": "dalle-mini", "size": size, "candidates": candidates, "dtype": dtype}
    row |= {"device": jax.devices()[0].device_kind, "gb_s": bandwidth / 1e9, "gflop_s": rate / 1e9}
    return row | measure(model, vqgan, candidates, bandwidth, rate)


def random_model(network, config, dtype):
    """Small values of every shape: faster to draw than a proper initialisation, and as fast to multiply."""
    graph, state = network.shapes(config, dtype)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 20, np.float32) * 0.02
    arrays = {name: jnp.asarray(np.resize(noise, leaf.shape), dtype) for name, leaf in flatten(state).items()}
    return nnx.merge(graph, unflatten(arrays, state))


def measure(model, vqgan, candidates, bandwidth, rate) -> dict:
    steps, used, prefill, tokens = time_steps(model, candidates)
    step = float(np.median(steps))
    decode = PixelDecoder(vqgan, workers(jax.devices()[:1]))
    tokens = np.minimum(tokens, vqgan.config.n_embed - 1)
    decode(tokens[:1])
    seconds = []
    for _ in range(DECODED):
        start = time.perf_counter()
        decode(tokens)
        seconds.append(time.perf_counter() - start)
    least = floor(model, candidates, bandwidth, rate)
    alone, plain = seconds_of_products(model, 2 * candidates)
    return {
        "step_ms": 1e3 * step,
        "cores": float(used.sum() / steps.sum()),
        "products_ms": 1e3 * alone,
        "plain_ms": 1e3 * plain,
        "of_products": step / min(alone, plain),
        "floor_ms": 1e3 * least,
        "prefill_s": prefill,
        "vqgan_s": float(np.median(seconds)),
        "peak_gb": peak_bytes() / 1e9,
    }


def time_steps(model, candidates: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Draw the guided candidates of a caption on all cores.

    Returns seconds and processor seconds of a step, [stretches between pauses], those of the prefill, and the tokens.
    """
    config = model.config
    keys = jax.random.split(jax.random.key(0), (1, candidates))
    ids, mask = np.ones((1, config.max_text_length), np.int32), np.ones((1, config.max_text_length), np.int32)
    uncond = {"uncond_input_ids": ids, "uncond_attention_mask": mask}
    devices = workers(jax.devices()[:1])
    request = Request("", "", GenerationSettings(guidance=10.0), ids, mask)
    group = Group([request], 0, candidates, [(0, candidates)], least_rows(config, weight_type(model)))
    shares = [keys[share] for share in group.shares(candidates, devices)]

    def run(pauses: int) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and processor seconds of each of the first pauses, from the start; and the tokens then."""
        times, start = [], clocks()
        streams = [stream_tokens(model, ids, mask, some, guidance=10.0, every=EVERY, **uncond) for some in shares]
        for _ in range(pauses):
            seen = list(side_by_side(lambda stream: np.asarray(next(stream)[1])[0], streams, len(streams)))
            times.append(clocks() - start)
        return np.stack(times, axis=1), np.concatenate(seen)[:candidates]

    times, tokens = run(config.image_length // EVERY)
    # The other stretches hold compilation: of the first program, and of one for each larger cache.
    compiling = times.shape[1] // CACHES
    steps, used = [np.delete(np.diff(clock) / EVERY, np.s_[compiling - 1 :: compiling]) for clock in times]
    prefill = run(1)[0][0, 0] - EVERY * steps[0]  # which had a cache as short
    return steps, used, float(prefill), tokens


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def seconds_of_products(model, rows: int) -> tuple[float, float]:
    """Seconds a step of its products with weights: by its own layers, and by plain products of the same weights."""
    layers = [
        layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, TiledLinear | RowLinear | Int8Linear)
        and not ("cross_attn" in path and path[-1] in ("k_proj", "v_proj"))  # of the prefill
    ]
    graphs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    own = products_alone(
        [lambda x, state, graph=graph: nnx.merge(graph, state)(x) for graph in graphs],
        [jnp.ones((1, rows, inputs(layer)), jnp.float32) for layer in layers],
        states,
    )
    plain = []
    for axis in (0, 1):  # of the weights' inputs
        weights = [jnp.array(narrow(layer) if axis else narrow(layer).T) for layer in layers]
        xs = [jnp.ones((rows, weight.shape[axis]), weight.dtype) for weight in weights]
        wide = jnp.int32 if weights[0].dtype == jnp.int8 else jnp.float32

        def product(x, weight, axis=axis, wide=wide):
            return jax.lax.dot_general(x, weight, (((1,), (axis,)), ((), ())), preferred_element_type=wide)

        plain.append(products_alone([product] * len(weights), xs, weights))
        del weights
    return own, min(plain)


def narrow(layer) -> jax.Array:
    """Its weights, [out, in], in the type in which they are kept."""
    return layer.kernel.T if isinstance(layer, TiledLinear) else layer.weight[...]


def inputs(layer) -> int:
    return layer.weight.shape[1]  # of tiles [tiles, in, TILE], and of rows [out, in]


def products_alone(products, xs, weights) -> float:
    """Seconds of all products, each of which waits for the one before."""

    def rounds(xs, weights):
        def one(_, last):
            for product, x, weight in zip(products, xs, weights, strict=True):
                y = product(x + last.astype(x.dtype), weight)
                last = 1e-30 * y.max().astype(jnp.float32)
            return last

        return jax.lax.fori_loop(0, ALONE, one, jnp.float32(0))

    return best(Jit(rounds, short_sums=True), xs, weights) / ALONE  # compiled as the decoding loop is


def floor(model, candidates: int, bandwidth: float, rate: float) -> float:
    """Seconds a step: its weights and half a cache read once, two operations a weight and row."""
    skipped = ("encoder.", "decoder.embed", "cross_attn.k_proj", "cross_attn.v_proj")
    weights = [leaf for name, leaf in flatten(nnx.state(model)).items() if not any(part in name for part in skipped)]
    config, rows = model.config, 2 * candidates
    cache = 2 * rows * config.decoder_layers * config.image_length // 2 * config.d_model
    item = 4 if jax.default_backend() == "cpu" else 2
    bytes_read = sum(leaf.size * leaf.dtype.itemsize for leaf in weights) + cache * item
    operations = 2 * rows * sum(leaf.size for leaf in weights) + 2 * cache
    return max(bytes_read / bandwidth, operations / rate)


def machine(dtype: str) -> tuple[float, float]:
    """Bytes a second that a sum reads, operations a second of a large product of the type that weights are read in."""
    on_cpu = jax.default_backend() == "cpu"
    large = jnp.ones(1 << (26 if on_cpu else 28), jnp.float32)
    read_as = "bfloat16" if dtype == "int8" and not on_cpu else dtype
    square, sums = jnp.ones((4096, 4096), read_as), jnp.int32 if read_as == "int8" else jnp.float32
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=sums))
    return large.nbytes / best(jax.jit(jnp.sum), large), 2 * 4096**3 / best(product, square, square)


def best(function, *args) -> float:
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def peak_bytes() -> int:
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(row: dict) -> dict:
    def number(name, spec):
        return format(row[name], spec) if name in row else ""

    name = row["size"] if row["program"] == "dalle-mini" else f"{row['size']} ({row['program']})"
    cells = [name, row["candidates"], row["dtype"], number("step_ms", ".1f"), number("cores", ".2f")]
    cells += [number("products_ms", ".1f"), number("plain_ms", ".1f"), number("of_products", ".2f")]
    cells += [number("floor_ms", ".1f"), number("prefill_s", ".2f"), number("vqgan_s", ".1f"), number("peak_gb", ".1f")]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
