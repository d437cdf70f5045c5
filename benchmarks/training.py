"""How fast does training run: pictures a second and MFU of the update that `dalle-mini train` runs.

    python benchmarks/training.py --size mini --batch 8
    python benchmarks/training.py --size mini mega --batch 32 64 128 --remat dots full --json     # on a GPU
    python benchmarks/training.py --layers 4 --batch 4 --dtype float32 bfloat16 --steps 3 --peer .peer/bin/python

Random weights, random tokens, Adafactor. MFU is FLOPs by formula (training/engine/flops.py: forward and backward,
nothing for what is computed again) over the device's peak (training/engine/hardware.py). A CPU has no such peak: there
the same matrix products are run alone, one after the other, and their rate is the measure.

`--peer` names a Python that has torch (`python -m venv .peer && .peer/bin/pip install torch`). It runs the same update
in plain torch (`torch_peer.py`) after each of ours, in a process of its own.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dalle_mini.models.config import DalleBartConfig
from dalle_mini.runtime.processor import processor
from dalle_mini.training.config.sections import REMAT, LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine.flops import products, training_flops
from dalle_mini.training.engine.hardware import peak_flops
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.engine.trainer import StepProgram
from dalle_mini.training.seq2seq.trainer import DTYPES, Seq2SeqTrainer, Seq2SeqTraining
from generation import SIZES as PUBLISHED

SIZES = {
    "micro": DalleBartConfig(
        d_model=256,
        encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=512,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=512,
    ),
    **{name: PUBLISHED[name] for name in ("mini", "mega")},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["mini"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="pictures an update, over all devices")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"])
    parser.add_argument("--remat", choices=REMAT, nargs="+", default=["none"])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--layers", type=int, help="of encoder and decoder, where the whole size takes too long")
    parser.add_argument("--optimizer", default="adafactor")
    parser.add_argument("--model-axis", type=int, default=1, help="devices that share each layer (default: 1)")
    parser.add_argument("--steps", type=int, default=5, help="that are measured (default: 5)")
    parser.add_argument("--peer", metavar="PYTHON", help="also measure plain torch, which this Python has")
    parser.add_argument("--profile", metavar="FOLDER", help="write a trace of the measured steps there")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    devices = jax.devices()
    name = processor() if devices[0].platform == "cpu" else devices[0].device_kind
    print(f"{len(devices)} x {name}")
    columns = ["s an update", "processor s", "pictures/s", "TFLOP/s", "MFU", "products alone", "share"]
    columns += ["torch: s an update", "processor s", "times its speed"] if args.peer else []
    print(f"\n| {' | '.join(['size', 'batch', 'dtype', 'remat', *columns])} |\n{'|---' * (4 + len(columns))}|")
    rows = []
    for size, batch, dtype, remat in itertools.product(args.size, args.batch, args.dtype, args.remat):
        config = SIZES[size]
        if args.layers:
            config = dataclasses.replace(config, encoder_layers=args.layers, decoder_layers=args.layers)
        try:
            row = measure(config, batch, dtype, remat, args)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row = None
        if row is None:
            print(f"| {size} | {batch} | {dtype} | {remat} | does not fit {'| ' * len(columns)}|", flush=True)
        what = {"size": size, "batch": batch, "dtype": dtype, "remat": remat, "layers": args.layers}
        rows.append(what | {"fits": row is not None} | (row or {}))
        if row is None:
            continue
        if args.peer:
            rows[-1]["torch"] = peer(args.peer, config, batch, args.steps, dtype)
        print(shown(rows[-1]), flush=True)
    best = {}
    for size in args.size:
        fitting = [row for row in rows if row["size"] == size and row["fits"]]
        if len(fitting) > 1:
            best[size] = max(fitting, key=lambda row: row["pictures_per_second"])
            print(f"\nbest for {size}: {shown(best[size])}")
    if args.json:
        found = {"device": name, "devices": len(devices), "rows": rows, "best": best}
        print(json.dumps(found))


def measure(config: DalleBartConfig, batch: int, dtype: str, remat: str, args) -> dict[str, float | None]:
    program = make_program(config, batch, dtype, remat, args)
    state = program.init(jax.random.key(0))
    placed = program.place(random_batch(program))
    key = jax.random.key(1)
    for _ in range(2):  # the first compiles
        state, metrics = program.step(state, placed, key)
        jax.block_until_ready(metrics)
    if args.profile:
        jax.profiler.start_trace(args.profile)
    seconds, used = [], []
    for _ in range(args.steps):
        started, began = time.perf_counter(), time.process_time()
        state, metrics = program.step(state, placed, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
        used.append(time.process_time() - began)
    if args.profile:
        jax.profiler.stop_trace()
    step = statistics.median(seconds)
    assert np.isfinite(float(metrics["loss"]))
    device = jax.devices()[0]
    rate = training_flops(config) * batch / step / len(jax.devices())
    peak = peak_flops(device.device_kind)
    alone = seconds_of_products(config, batch, dtype) if device.platform == "cpu" else None
    # The peak of all rows so far, since a process's peak never goes down. Name one row to have its own.
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "seconds": step,
        "seconds_least": min(seconds),
        "processor_seconds": statistics.median(used),
        "pictures_per_second": batch / step,
        "flops_per_second_per_device": rate,
        "mfu": rate / peak if peak and dtype == "bfloat16" else None,
        "products_seconds": alone,
        "products_share": alone / step if alone else None,
        "peak_gib": memory / 2**30 if memory else None,
    }


def peer(python: str, config: DalleBartConfig, batch: int, steps: int, dtype: str) -> dict[str, float | str]:
    """The measurements of `torch_peer.py`, run by that Python."""
    shape = json.dumps(dataclasses.asdict(config) | {"text_length": config.text_length})
    script = Path(__file__).with_name("torch_peer.py")
    command = [python, str(script), shape, str(batch), str(steps), dtype]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class RandomTokens:
    """In place of data and tokenizer, of which only shapes matter here."""

    vqgan = "none"

    def __init__(self, config: DalleBartConfig):
        self.codebook_size, self.image_length = config.image_vocab_size, config.image_length

    def check_vocab_size(self, size: int) -> None:
        pass


def make_program(config: DalleBartConfig, batch: int, dtype: str, remat: str, args) -> StepProgram:
    optimizer = OptimizerConfig(args.optimizer, warmup_steps=0, decay="constant")
    tokens = RandomTokens(config)
    training = Seq2SeqTraining(model=config, optimizer=optimizer, dtype=dtype, remat=remat)
    mesh = MeshConfig(model=args.model_axis)
    loop = LoopConfig(batch_size=batch, accumulation=args.accumulation)
    return step_program(Seq2SeqTrainer(training, tokens, tokens, tokens), loop, mesh, make_mesh(mesh))


def random_batch(program: StepProgram) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 16_000, leaf.shape).astype(leaf.dtype) for name, leaf in program.batch.items()}
    return rows | {"attention_mask": np.ones_like(rows["attention_mask"])}


def seconds_of_products(config: DalleBartConfig, batch: int, dtype: str, repeats: int = 3) -> float:
    """The time of an update's matrix products, each by itself: forward, and the two of its gradient."""
    total = 0.0
    for product in products(config):
        m, k, n = product.rows, product.inner, product.columns
        if product.weights:  # all pictures in one
            shapes, times = [((batch * m, k), (k, n)), ((batch * m, n), (n, k)), ((k, batch * m), (batch * m, n))], 1
        else:  # one for each head of each picture
            heads = product.times // (config.encoder_layers if product.part == "encoder" else config.decoder_layers)
            many = batch * heads
            shapes, times = (
                [((many, m, k), (many, k, n)), ((many, m, n), (many, n, k)), ((many, k, m), (many, m, n))],
                heads,
            )
        total += sum(seconds_of(*pair, dtype, repeats) for pair in shapes) * product.times / times
    return total


def seconds_of(left: tuple[int, ...], right: tuple[int, ...], dtype: str, repeats: int) -> float:
    if (left, right, dtype) not in KNOWN:
        a, b = (jnp.asarray(np.random.default_rng(0).random(shape), dtype) for shape in (left, right))
        multiply = jax.jit(jnp.matmul)
        multiply(a, b).block_until_ready()
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            multiply(a, b).block_until_ready()
            times.append(time.perf_counter() - started)
        KNOWN[left, right, dtype] = statistics.median(times)
    return KNOWN[left, right, dtype]


KNOWN: dict[tuple, float] = {}  # the layers' products have few shapes


def shown(row: dict) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f} %"

    alone = "" if row["products_seconds"] is None else f"{row['products_seconds']:.2f} s"
    torch = row.get("torch")
    beside = (
        ""
        if torch is None
        else (f" {torch['seconds']:.3f} | {torch['processor_seconds']:.2f} | {torch['seconds'] / row['seconds']:.2f} |")
    )
    return (
        f"| {row['size']} | {row['batch']} | {row['dtype']} | {row['remat']} | {row['seconds']:.3f} | "
        f"{row['processor_seconds']:.2f} | {row['pictures_per_second']:.2f} | "
        f"{row['flops_per_second_per_device'] / 1e12:.2f} | {share(row['mfu'])} | "
        f"{alone} | {share(row['products_share'])} |{beside}"
    )


if __name__ == "__main__":
    sys.exit(main())
