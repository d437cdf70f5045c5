"""How long from the command to the pictures: `dalle-mini generate` in fresh processes, with the shipped model.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --runs 9 --candidates 4 --json

The first run, with an empty folder of compiled programs, is told apart from the later ones, of which medians are
shown: wall seconds, and processor seconds of the whole command. "drawing" is what the command says that the stages
took. "warm" is the same in one process that has drawn it before.

A second table has the stages of one more later run, which JAX is asked for. Threads overlap, so their sum is not the
whole. "tracing" and "lowering" are Python's work on programs, and "finding" is reading them from the folder.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "a red apple on a blue background"
EVENTS = {
    "tracing": "/jax/core/compile/jaxpr_trace_duration",
    "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "finding": "/jax/core/compile/backend_compile_duration",
}
# Runs the command as it runs by itself, and tells on stderr when which event was.
WATCHED = """
import json, sys, threading, time
begun = time.time()
import jax, dalle_mini.pipeline, dalle_mini.results.write, rich.progress
spans = [["imports", begun, time.time(), 0]]
def note(event, start, end, **_):
    spans.append([event, start, end, threading.get_ident()])
jax.monitoring.register_event_time_span_listener(note)
from dalle_mini.cli import main
code = main(sys.argv[1:])
print(json.dumps(spans), file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="later runs (default: 5)")
    parser.add_argument("--candidates", type=int, default=16, help="(default: 16)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.runs, args.candidates)
    print("| candidates | first run s (CPU s) | later runs s (CPU s) | drawing | warm drawing | later / drawing |")
    print("|---|---|---|---|---|---|")
    share = found["later"] / found["drawing"]
    first, later = (f"{found[name]:.2f} ({found[f'{name}_cpu']:.2f})" for name in ("first", "later"))
    print(f"| {args.candidates} | {first} | {later} | {found['drawing']:.2f} | {found['warm']:.2f} | {share:.2f} |")
    print()
    print(f"| {' | '.join(found['stages'])} |")
    print(f"|{'---|' * len(found['stages'])}")
    print(f"| {' | '.join(f'{seconds:.2f} s' for seconds in found['stages'].values())} |")
    if args.json:
        print(json.dumps(found))


def measure(folder: Path, runs: int, candidates: int) -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # for the commands; whoever set JAX's own keeps it
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", PROMPT, "--candidates", str(candidates)]
    command += ["--output", str(folder / "pictures"), "--overwrite"]
    seconds, processor, drawing = [], [], []
    for _ in range(1 + runs):
        took, used, shown, _ = timed(command)
        seconds.append(took)
        processor.append(used)
        drawing.append(drawn(shown))
    return {
        "first": seconds[0],
        "first_cpu": processor[0],
        "later": statistics.median(seconds[1:]),
        "later_cpu": statistics.median(processor[1:]),
        "drawing": statistics.median(drawing[1:]),
        "stages": stages([sys.executable, "-c", WATCHED, *command[3:]]),
        "warm": warm(candidates, runs),
    }


def timed(command: list[str]) -> tuple[float, float, str, str]:
    """Wall seconds, processor seconds, and what the command wrote on stdout and stderr."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return took, used, done.stdout, done.stderr


def drawn(shown: str) -> float:
    return float(re.search(r"([\d.]+) s$", shown, re.MULTILINE)[1])


def stages(command: list[str]) -> dict[str, float]:
    """Seconds of each stage of a run. What is within another event of the same kind and thread counts once."""
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as the command asks for itself
    took, _, shown, told = timed(command)
    del os.environ["GLIBC_TUNABLES"]
    spans = json.loads(told.splitlines()[-1])
    found = {"whole": took, "imports": spans[0][2] - spans[0][1]}
    for name, event in EVENTS.items():
        ends: dict[int, float] = {}
        found[name] = 0.0
        for _, start, end, thread in sorted((span for span in spans if span[0] == event), key=lambda span: span[1]):
            found[name] += max(0.0, end - max(start, ends.get(thread, 0.0)))
            ends[thread] = max(end, ends.get(thread, 0.0))
    return found | {"drawing": drawn(shown)}


def warm(candidates: int, runs: int) -> float:
    from dalle_mini import DalleMini

    pipe = DalleMini.from_pretrained()
    seconds = [sum(pipe.generate([PROMPT], candidates)[0].timings.values()) for _ in range(1 + runs)]
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
