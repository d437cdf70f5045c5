"""How fast is one GPU: drawing, training and compiling, with the floors, min-dalle beside it, and the aims?

    python benchmarks/gpu.py --output gpu.md                        # on an H200: at most 8 minutes
    python benchmarks/gpu.py --size tiny --output gpu.md            # each part, on any machine
    python benchmarks/gpu.py --only decode-mega --output gpu.md     # some of the parts

Random weights in bfloat16, guidance 10, no network. Each row is written into the tables as soon as it is measured. The
parts run in processes of their own: a row that fails, crashes or hangs costs that row alone, and the table says why.

"ms a pass" is the median over stretches of passes of the decoder, with a cache of the full length. In sequential
decoding a pass draws one token of each image. "Floor" is the time to read the decoder's weights and half of the cache
at the card's bandwidth, or the time of the pass's arithmetic at its bfloat16 rate, whichever is longer. Both rates are
the maker's (training/engine/hardware.py); of another device they are measured. In parallel decoding few drafts come
true with random weights, so only its time a pass tells something.

"Compile" is the time until the compiled program is there. The compiler tries out kernels for each shape of a product,
and earlier rows have done that for many shapes of the later ones.

min-dalle runs in the Python that `--peer` names (default: this one), if it has min-dalle and torch.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS.parent / "src"), str(BENCHMARKS)]

from dalle_mini.runtime.files import write_whole  # noqa: E402  (of this clone, installed or not)

# Fields of `generation.programs.Loop`.
FORMS = {
    "pass by pass": {},
    "inner loop of 16": {"passes": 16},
    "4 copies": {"passes": 4, "unrolled": True},
    "one graph": {"graph": True},
    "one graph, inner loop of 16": {"passes": 16, "graph": True},
}
EACH, INNER, COPIES, GRAPH, INNER_GRAPH = FORMS
BUDGET, LONGEST = 470.0, 200.0  # seconds: of all, and of one row
TINY_CONFIG = {
    "d_model": 64, "image_length": 64, "max_text_length": 16,
    "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 128,
}  # fmt: skip
STRETCHES, PASSES = 4, 32
GUIDANCE = 10.0
AIM_PASS_MS, AIM_MFU = 1.5, 0.40


@dataclasses.dataclass(frozen=True)
class Row:
    """A row's measurement: `part` is "decode", "train" or "min-dalle"."""

    part: str
    size: str
    images: int  # candidates, or the images of an update
    window: int = 1
    form: str = EACH
    remat: str = "none"

    @property
    def group(self) -> str:
        """Consecutive rows of one group share a process."""
        return f"{self.part}-{self.size}"


# The most telling first: the budget may end early.
FULL = (
    *(Row("decode", "mega", 9, form=form) for form in FORMS),
    Row("decode", "mega", 9, 16, GRAPH),
    Row("decode", "mega", 1, form=EACH),
    Row("decode", "mega", 1, form=GRAPH),
    Row("decode", "mega", 1, 16, GRAPH),
    Row("decode", "mega", 64, form=EACH),
    Row("decode", "mega", 64, form=GRAPH),
    Row("train", "mini", 128),
    Row("train", "mini", 256, remat="dots"),
    *(Row("decode", "mini", 9, form=form) for form in (EACH, INNER, GRAPH)),
    Row("decode", "mini", 1, form=EACH),
    Row("decode", "mini", 1, form=GRAPH),
    Row("decode", "mini", 1, 16, GRAPH),
    Row("decode", "mini", 9, 16, GRAPH),
    Row("decode", "mini", 64, form=GRAPH),
    Row("min-dalle", "mega", 9),
    Row("min-dalle", "mini", 9),
    Row("min-dalle", "mini", 1),
    Row("train", "mega", 64, remat="dots"),
    Row("train", "mega", 32),
    Row("min-dalle", "mega", 1),
    Row("min-dalle", "mini", 64),
    Row("decode", "mega", 64, 16, GRAPH),
    Row("decode", "mini", 64, 16, GRAPH),
)
TINY = (
    *(Row("decode", "tiny", 2, form=form) for form in FORMS),
    Row("decode", "tiny", 2, 4, EACH),
    Row("decode", "tiny", 2, 4, GRAPH),
    Row("train", "tiny", 2),
    Row("min-dalle", "tiny", 2),
)
PLANS = {"full": FULL, "tiny": TINY}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=PLANS, default="full", help="full: mini and mega (default)")
    add("--output", metavar="FILE", default="gpu.md", help="the tables, as Markdown (default: gpu.md)")
    add("--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"stop in time (default: {BUDGET:.0f})")
    add("--longest", type=float, default=LONGEST, metavar="SECONDS", help=f"of one row (default: {LONGEST:.0f})")
    add("--only", nargs="+", metavar="GROUP", help="some of the rows, such as decode-mega train-mini min-dalle-mini")
    add("--peer", metavar="PYTHON", default=sys.executable, help="an interpreter that has min-dalle and torch")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--rows", help=argparse.SUPPRESS)  # for the processes of the rows
    args = parser.parse_args()
    if args.rows:
        return measure_rows([Row(**row) for row in json.loads(args.rows)])
    plan = [row for row in PLANS[args.size] if not args.only or row.group in args.only]
    tables = Tables(Path(args.output))
    if missing := [name for name in ("jax", "flax", "optax", "orbax", "msgspec") if not importlib.util.find_spec(name)]:
        print(f"error: {', '.join(missing)}: not installed here; the rows will say so", file=sys.stderr)
    with tempfile.TemporaryDirectory() as cache:
        # JAX keeps what XLA tried out for each product there, too.
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for row, figures in measured(plan, args, os.environ | environment):
            tables.add(row, figures)
    print(tables.text())
    if args.json:
        print(json.dumps({"device": tables.device, "rows": tables.rows}))
    return 0


# The process that writes the tables


def measured(plan: list[Row], args: argparse.Namespace, environment: dict[str, str]) -> Iterator[tuple[Row, dict]]:
    """Each row of the plan with its figures, or with why it has none. What runs when the budget is spent is ended."""
    end = time.monotonic() + args.budget
    for _, group in itertools.groupby(plan, key=lambda row: row.group):
        rows = list(group)
        while rows and time.monotonic() < end:
            if rows[0].part == "min-dalle":
                command = [args.peer, str(BENCHMARKS / "min_dalle_peer.py"), rows[0].size, "bfloat16"]
                command += [str(row.images) for row in rows]
            else:
                asked = json.dumps([dataclasses.asdict(row) for row in rows])
                command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rows", asked]
            for figures in lines_of(command, len(rows), end, args.longest, environment):
                yield rows.pop(0), figures
        for row in rows:
            yield row, {"error": "not measured: the budget was spent"}


def lines_of(command: list[str], count: int, end: float, longest: float, environment: dict[str, str]) -> Iterator[dict]:
    """The first `count` JSON objects that a command prints, a line each; the last one says why it ended early."""
    with tempfile.TemporaryFile("w+") as told:
        try:
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=told, text=True, start_new_session=True
            )
        except OSError as error:
            yield {"error": f"not measured: {command[0]}: {error.strerror}"}
            return
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        try:
            for _ in range(count):
                found = _next(lines, min(longest, end - time.monotonic()))
                if isinstance(found, dict):
                    yield found
                    continue
                if found == "":
                    told.seek(0)
                    said = [line.strip() for line in told.read().splitlines() if line.strip()]
                    found = (
                        f"failed: the process ended with {process.wait()}: {said[-1] if said else 'it said nothing'}"
                    )
                yield {"error": found}
                break
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read(stream, lines: queue.Queue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue, seconds: float) -> dict | str:
    """The next JSON object; "" at the end of the output, and else why there is none."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return f"not measured: not done in {max(seconds, 0):.0f} s"
        if line is None:
            return ""
        if line.startswith("{"):
            return json.loads(line)


class Tables:
    """The rows so far, in a file that is written anew with each."""

    heads = {  # noqa: RUF012
        "decode": "| size | candidates | decoding | loop | ms a pass | floor, ms | of floor | tokens a pass | "
        "prefill, s | compile, s | program, GB |",
        "train": "| size | images an update | remat | s an update | images/s | TFLOP/s | MFU | floor, s | "
        "compile and first update, s | peak, GB |",
        "min-dalle": "| size | candidates | ms a pass | VQGAN, s |",
    }
    titles = {"decode": "Drawing", "train": "Training", "min-dalle": "min-dalle"}  # noqa: RUF012

    def __init__(self, output: Path):
        self.output, self.rows, self.device = output, [], ""
        self.write()

    def add(self, row: Row, figures: dict) -> None:
        self.device = figures.get("device") or self.device
        self.rows.append(dataclasses.asdict(row) | figures)
        print(self.cells(self.rows[-1]), flush=True)
        self.write()

    def write(self) -> None:
        write_whole(self.output, self.text())

    def text(self) -> str:
        parts = [f"Measured on: {self.device or 'nothing yet'}. Random weights, bfloat16, guidance {GUIDANCE:.0f}."]
        for part, title in self.titles.items():
            if rows := [row for row in self.rows if row["part"] == part]:
                head = self.heads[part]
                lines = [head, "|" + "---|" * (head.count("|") - 1), *map(self.cells, rows)]
                parts.append(f"### {title}\n\n" + "\n".join(lines))
        return "\n\n".join([*parts, self.aims()]) + "\n"

    def cells(self, row: dict) -> str:
        decoding = "sequential" if row["window"] == 1 else f"parallel, window {row['window']}"
        what = {
            "decode": [row["size"], row["images"], decoding, row["form"]],
            "train": [row["size"], row["images"], row["remat"]],
            "min-dalle": [row["size"], row["images"]],
        }[row["part"]]
        empty = self.heads[row["part"]].count("|") - 2 - len(what)
        if "error" in row:
            told = " ".join(str(row["error"]).split()).replace("|", "/")[:200]
            return "| " + " | ".join(map(str, [*what, told])) + " |" + " |" * empty
        names = {
            "decode": "step_ms:.3f floor_ms:.4g of_floor:.2g tokens_a_pass:.2f prefill_s:.4f compile_s:.1f gb:.3f",
            "train": "seconds:.4f images_s:.1f tflop_s:.4g mfu:.1% floor_s:.4g compile_s:.1f peak_gb:.1f",
            "min-dalle": "step_ms:.3f vqgan_s:.3f",
        }[row["part"]].split()
        found = []
        for name, spec in (one.split(":") for one in names):
            value = row.get(name)
            found.append("unknown" if value is None else format(value, spec))
        return "| " + " | ".join(map(str, [*what, *found])) + " |"

    def aims(self) -> str:
        rows = [row for row in self.rows if "error" not in row]
        passes = [
            row["step_ms"] for row in rows if _is(row, "decode", "mega") and (row["images"], row["window"]) == (9, 1)
        ]
        mfu = [row["mfu"] for row in rows if _is(row, "train", "mini") and row["mfu"]]
        best_pass, best_mfu = min(passes, default=math.inf), max(mfu, default=0.0)
        lines = [
            "| aim | best | reached |",
            "|---|---|---|",
            f"| mega, nine candidates: at most {AIM_PASS_MS} ms a pass | "
            + (
                f"{best_pass:.3f} ms | {'yes' if best_pass <= AIM_PASS_MS else 'no'} |"
                if passes
                else "| not measured |"
            ),
            f"| mini's training: {AIM_MFU:.0%} MFU | "
            + (f"{best_mfu:.1%} | {'yes' if best_mfu >= AIM_MFU else 'no'} |" if mfu else "| not measured |"),
        ]
        return "### Aims\n\n" + "\n".join(lines)


def _is(row: dict, part: str, size: str) -> bool:
    return (row["part"], row["size"]) == (part, size)


# The processes that measure


def measure_rows(rows: list[Row]) -> int:
    """Print the figures of each row, a line each."""
    for row in rows:
        try:
            figures = {"decode": decoding, "train": training}[row.part](row)
        except Exception as error:
            said = str(error).strip().splitlines()
            figures = {"error": f"failed: {type(error).__name__}: {said[0] if said else ''}"}
        print(json.dumps(figures), flush=True)
    return 0


def decoding(row: Row) -> dict:
    import jax
    import numpy as np

    from dalle_mini.generation.decode import decode_steps
    from dalle_mini.generation.programs import Loop
    from generation import floor

    call, context, state, prefill_s = prefilled(row.size, row.images, row.window)
    config = config_of(row.size)
    programs = dataclasses.replace(call.programs, loop=Loop(**FORMS[row.form]))
    stop, rest = np.int32(0), (call.keys, call.sampling, call.forced)
    began = time.perf_counter()
    program = decode_steps.lower(programs, call.params, context, state, rest[0], stop, *rest[1:]).compile()
    compile_s = time.perf_counter() - began
    memory = program.memory_analysis()

    def until(stop: int, state):
        state = program(call.params, context, state, rest[0], np.int32(stop), *rest[1:])
        jax.block_until_ready(state)
        return state, int(np.max(state.passes))

    length = config.image_length
    stretch = min(PASSES, length // (STRETCHES + 1))
    state, passes = until(stretch, state)  # records the graphs
    seconds, first = [], passes
    for number in range(2, STRETCHES + 2):
        began = time.perf_counter()
        state, after = until(number * stretch, state)
        if after > passes:
            seconds.append((time.perf_counter() - began) / (after - passes))
        passes = after
    step = statistics.median(seconds)
    bandwidth, rate, device = rates()
    model, rows = opened(row.size), row.images
    least = max(floor(model, rows, bandwidth, math.inf), floor(model, rows * row.window, math.inf, rate))
    drawn = int(np.min(state.position)) - stretch
    return {
        "device": device,
        "step_ms": 1e3 * step,
        "floor_ms": 1e3 * least,
        "of_floor": least / step,
        "tokens_a_pass": drawn / (passes - first),
        "prefill_s": prefill_s,
        "compile_s": compile_s,
        "gb": memory and (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
    }


def prefilled(size: str, candidates: int, window: int):
    """The arguments of the loop, the caption's context, the first state with the whole cache, seconds of prefill."""
    import jax
    import numpy as np

    from dalle_mini.generation.decode import prefill
    from dalle_mini.generation.programs import call_of

    model = opened(size)
    ids = np.ones((1, model.config.text_length), np.int32)
    keys = jax.random.split(jax.random.key(0), (1, candidates))
    uncond = {"uncond_input_ids": ids, "uncond_attention_mask": ids}
    call = call_of(model, ids, ids, keys, guidance=GUIDANCE, window=window, **uncond)
    arguments = call.programs, call.params, call.text, call.keys
    jax.block_until_ready(prefill(*arguments))  # compiles
    began = time.perf_counter()
    context, state = jax.block_until_ready(prefill(*arguments))
    seconds = time.perf_counter() - began
    grown = jax.jit(functools.partial(model.grow, room=model.image_length))(state.cache)
    return call, context, state._replace(cache=jax.block_until_ready(grown)), seconds


def config_of(size: str):
    from dalle_mini.models.config import DalleBartConfig
    from generation import SIZES

    return DalleBartConfig(**TINY_CONFIG) if size == "tiny" else SIZES[size]


@functools.cache
def opened(size: str):
    """A model with random weights that were made where it computes."""
    import jax
    from flax import nnx

    from dalle_mini.generation.optimize import compute_dtypes, optimize_for_decoding
    from dalle_mini.models import DalleBart

    dtype, _ = compute_dtypes("bfloat16")
    graph, shapes = DalleBart.shapes(config_of(size), dtype)
    fill = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    leaves, tree = jax.tree.flatten(shapes)
    filled = [fill(jax.random.key(number), leaf.shape) for number, leaf in enumerate(leaves)]
    return optimize_for_decoding(nnx.merge(graph, jax.tree.unflatten(tree, filled)), consume=True)


def training(row: Row) -> dict:
    import jax

    import training as updates
    from dalle_mini.training.engine.flops import training_flops

    args = argparse.Namespace(optimizer="adafactor", model_axis=1, accumulation=1, steps=5, profile=None)
    config = config_of(row.size)
    began = time.perf_counter()
    found = updates.measure(config, row.images, "bfloat16", row.remat, args)
    rest = time.perf_counter() - began - (args.steps + 1) * found["seconds"]
    _, rate, device = rates()
    return {
        "device": device,
        "seconds": found["seconds"],
        "images_s": found["pictures_per_second"],
        "tflop_s": found["flops_per_second_per_device"] / 1e12,
        "mfu": found["mfu"],
        "floor_s": training_flops(config) * row.images / len(jax.devices()) / rate,
        "compile_s": rest,
        "peak_gb": None if found["peak_gib"] is None else found["peak_gib"] * 2**30 / 1e9,
    }


@functools.cache
def rates() -> tuple[float, float, str]:
    """Bytes/s, bfloat16 FLOP/s, and the device with its releases and what was measured on it."""
    import jax
    import jax.numpy as jnp
    import jaxlib

    from dalle_mini.training.engine.hardware import chip_of
    from generation import best

    device = jax.devices()[0]
    numbers, side = (1 << 22, 512) if device.platform == "cpu" else (1 << 30, 8192)
    large = jnp.ones(numbers, jnp.float32)
    left, right = (jax.random.normal(jax.random.key(seed), (side, side), jnp.bfloat16) for seed in range(2))
    bandwidth = large.nbytes / best(jax.jit(jnp.sum), large)
    rate = 2 * side**3 / best(jax.jit(jnp.matmul), left, right)
    told = (
        f"{device.device_kind}, jax {jax.__version__}, jaxlib {jaxlib.__version__}. A sum reads "
        f"{bandwidth / 1e12:.3f} TB/s, a bfloat16 product of {side} x {side} runs at {rate / 1e12:.3f} TFLOP/s"
    )
    chip = chip_of(device.device_kind)
    if chip is None:
        return bandwidth, rate, told
    floors = f"the floors assume {chip.hbm_bandwidth / 1e12} TB/s and {chip.flops / 1e12:.0f} TFLOP/s"
    return chip.hbm_bandwidth, chip.flops, f"{told}; {floors}"


if __name__ == "__main__":
    sys.exit(main())
