"""How fast are batches made, in how much memory, and how soon does a run start?

    python benchmarks/data.py
    python benchmarks/data.py --rows 10000000 --epoch-rows 1000000
    python benchmarks/data.py --json

Writes shards of made-up rows (256 tokens of 16,384 codes; captions of about ten words, of which 10% have an HTML
entity, 5% letters beyond ASCII, 2% a hashtag and 3% an emoji), opens them twice, each time in a fresh process, and
makes the batches of an epoch. All of it counts: reading shuffled rows, drawing a caption, normalising, tokenising to 64
tokens, and handing over the arrays, from one thread that is a few batches ahead as in a training run, to a consumer
that does nothing else. Two cores are used at most.

Memory is that of the process that makes the batches: its peak, which includes the mapped pages of the shards that the
kernel keeps as long as nothing else wants the memory, and apart from them what it allocated itself (anonymous memory)
after a tenth of the epoch and the most of it from there on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

TPU_ROWS = 350  # a second: what mini's training consumes on a TPU v3-8
GOALS = {"rows_per_second": 20_000, "peak_mb": 1500, "first_start_seconds": 10}
CODES, LENGTH, TEXT_LENGTH, SHARD_ROWS = 16_384, 256, 64, 2**16
CORES = 2
AHEAD = 2  # batches that wait, as in training/run/loop.py
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the data set (default: 1000000)")
    parser.add_argument("--epoch-rows", type=int, help="rows to make batches of (default: all)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print one JSON object of all figures as the last line")
    parser.add_argument("--part", choices=("write", "start", "epoch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part = {"write": write, "start": start, "epoch": epoch}[args.part]
        print(json.dumps(part(args)))
        return
    with tempfile.TemporaryDirectory(prefix="dalle-mini-data-") as folder:
        args.folder = Path(folder)
        figures = {"rows": args.rows, "batch_size": args.batch_size}
        figures |= measured("write", args)
        figures |= {f"first_{name}": value for name, value in measured("start", args).items()}
        figures |= measured("start", args)
        figures |= measured("epoch", args)
    figures["times_tpu_v3_8"] = figures["rows_per_second"] / TPU_ROWS
    report(figures)
    if args.json:
        print(json.dumps(figures))


def measured(part: str, args: argparse.Namespace) -> dict[str, float]:
    """The figures of a part, in a process of its own, as is a user's run."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(args.folder), "--rows", str(args.rows)]
    command += ["--batch-size", str(args.batch_size), "--epoch-rows", str(args.epoch_rows or args.rows)]
    env = os.environ | {"HF_DATASETS_CACHE": str(args.folder / "cache"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(args: argparse.Namespace) -> dict[str, float]:
    """An encoded folder of made-up rows."""
    import pyarrow as pa

    from dalle_mini.data.tokens.shards import Manifest, Shard, Split, TokensOf, schema, shard_name, write_table

    chance = np.random.default_rng(0)
    captions = pa.array([made_up_caption(chance) for _ in range(100_000)])
    folder, shards, columns = args.folder / "tokens", [], schema(LENGTH, CODES)
    folder.mkdir()
    for number, first in enumerate(range(0, args.rows, SHARD_ROWS)):
        rows = min(SHARD_ROWS, args.rows - first)
        tokens = pa.array(chance.integers(0, CODES, rows * LENGTH, dtype=np.uint16))
        columns_of = {
            "key": [f"{row:012d}" for row in range(first, first + rows)],
            "crop": pa.array(np.zeros(rows, np.int16)),
            "caption": captions.take(pa.array(chance.integers(0, len(captions), rows))),
            "other_captions": pa.array([[]] * rows, pa.list_(pa.string())),
            "tokens": pa.FixedSizeListArray.from_arrays(tokens, LENGTH),
            "width": pa.array(np.full(rows, 256, np.int32)),
            "height": pa.array(np.full(rows, 256, np.int32)),
            "clip_score": pa.nulls(rows, pa.float32()),
        }
        path = folder / shard_name("train", number)
        with path.open("wb") as file:
            write_table(pa.table(columns_of, schema=columns), file)
        shards.append(Shard(path.name, rows, hashlib.sha256(path.read_bytes()).hexdigest()))
    manifest = Manifest(
        rows=args.rows,
        kept=args.rows,
        seen=args.rows,
        dropped={},
        crops_dropped=0,
        filters=(),
        codebook_use=(0,) * CODES,
        vqgan=TokensOf("0" * 16, CODES, LENGTH, 256, "made up"),
        clip=None,
        source={},
        options={},
        splits={"train": Split(args.rows, tuple(shards))},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return {"shards_mb": sum(path.stat().st_size for path in folder.iterdir()) / 2**20}


def made_up_caption(chance: np.random.Generator) -> str:
    looks = ["red", "blue", "old", "wooden", "tiny", "beautiful", "colorful", "vintage", "abandoned", "snowy", "dark"]
    things = ["house", "dog", "cat", "mountain", "river", "bicycle", "portrait", "street", "armchair", "avocado"]
    places = ["in the park", "at night", "on a beach", "in New York City", "(2014)", "by Pablo Picasso's studio"]
    names = [f"a {chance.choice(looks)} {chance.choice(things)}" for _ in range(chance.integers(1, 4))]
    caption = f"{' and '.join(names).capitalize()} standing {chance.choice(places)}"
    ends = [", stock photo &amp; image 1,024", " – café à Paris", " #throwbackthursday", " 😀", ""]
    return caption + chance.choice(ends, p=[0.1, 0.05, 0.02, 0.03, 0.8])


def start(args: argparse.Namespace) -> dict[str, float]:
    """From nothing imported to the first batch in hand."""
    began = time.perf_counter()
    batches = open_batches(args)
    batches.at(0)
    return {"start_seconds": time.perf_counter() - began, "start_peak_mb": peak_mb()}


def epoch(args: argparse.Namespace) -> dict[str, float]:
    """Batches, one after the other, until all rows have come."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    batches = open_batches(args)
    steps = args.epoch_rows // args.batch_size
    loop = ahead(batches.at, steps + 10)
    for _ in range(10):  # the thread starts, libraries load
        next(loop)
    anonymous = []
    began, used = time.perf_counter(), time.process_time()
    for number, _ in enumerate(loop):
        if number * 20 // steps > (number - 1) * 20 // steps:
            anonymous.append(anonymous_mb())
    seconds, used = time.perf_counter() - began, time.process_time() - used
    rows = steps * args.batch_size
    settled = anonymous[2:]
    return {
        "epoch_rows": rows,
        "rows_per_second": rows / seconds,
        "cpu_microseconds_per_row": used / rows * 1e6,
        "peak_mb": peak_mb(),
        "anonymous_mb": settled[0],
        "anonymous_growth_mb": max(settled) - settled[0],
    }


def ahead(make: Callable[[int], dict], steps: int) -> Iterator[dict]:
    """The batches of all steps in order, made by a thread that is as far ahead as that of a training run."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(make, step) for step in range(min(AHEAD + 1, steps)))
        for step in range(steps):
            yield waiting.popleft().result()
            if step + AHEAD + 1 < steps:
                waiting.append(pool.submit(make, step + AHEAD + 1))


def open_batches(args: argparse.Namespace):
    from dalle_mini.data.tokens.batches import TokenBatches
    from dalle_mini.data.tokens.dataset import TokenDataset
    from dalle_mini.text import CaptionNormalizer, CaptionTokenizer

    return TokenBatches(
        TokenDataset(args.folder / "tokens"),
        CaptionTokenizer.from_pretrained(GOLDEN / "tokenizer"),
        CaptionNormalizer(GOLDEN / "text_normalizer" / "enwiki-words-frequency.txt"),
        batch_size=args.batch_size,
        seed=0,
        text_length=TEXT_LENGTH,
        caption_dropout=0.1,
    )


def peak_mb() -> float:
    """The most memory that this process ever had, mapped pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def anonymous_mb() -> float:
    """The memory that this process has allocated, without mapped files."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_mb()
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 2**10


def report(figures: dict[str, float]) -> None:
    def goal(name: str, higher: bool = False) -> str:
        if figures["rows"] > 1_000_000 and not higher:
            return ""  # the limits are those of 1 M rows
        met = figures[name] >= GOALS[name] if higher else figures[name] <= GOALS[name]
        return f" ({'meets' if met else 'MISSES'} {GOALS[name]:,})"

    lines = [
        f"{figures['rows']:,} rows, {figures['shards_mb']:,.0f} MB of shards, batches of {figures['batch_size']}, "
        f"on {CORES} cores",
        f"throughput    {figures['rows_per_second']:,.0f} rows/s{goal('rows_per_second', True)}, "
        f"{figures['times_tpu_v3_8']:.0f} times what a TPU v3-8 consumes ({TPU_ROWS}/s), "
        f"{figures['cpu_microseconds_per_row']:.0f} us of CPU a row",
        f"first start   {figures['first_start_seconds']:.1f} s{goal('first_start_seconds')}, "
        f"peak {figures['first_start_peak_mb']:,.0f} MB: shards are checked and mapped for the first time",
        f"start         {figures['start_seconds']:.1f} s, peak {figures['start_peak_mb']:,.0f} MB: every later time",
        f"epoch         peak {figures['peak_mb']:,.0f} MB{goal('peak_mb')} with mapped pages; allocated "
        f"{figures['anonymous_mb']:,.0f} MB, growing by {figures['anonymous_growth_mb']:.1f} MB",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
