"""How long from the command to the pictures: `dalle-mini generate` in fresh processes, with the shipped model.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --runs 9 --candidates 4 --json

The first run, with an empty folder of compiled programs, is told apart from the later ones, of which medians are
shown. "drawing" is what the command says that the stages took. "warm" is the same in one process that has drawn it
before; the rest is Python's imports, reading weights, and finding compiled programs.
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

PROMPT = "a red apple on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="later runs (default: 5)")
    parser.add_argument("--candidates", type=int, default=16, help="(default: 16)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.runs, args.candidates)
    print("| candidates | first run s | later runs s | of that: drawing | importing | warm drawing | later / drawing |")
    print("|---|---|---|---|---|---|---|")
    share = found["later"] / found["drawing"]
    cells = (found[name] for name in ("first", "later", "drawing", "imports", "warm"))
    print(f"| {args.candidates} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {share:.2f} |")
    if args.json:
        print(json.dumps(found))


def measure(folder: Path, runs: int, candidates: int) -> dict[str, float]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # for the commands; whoever set JAX's own keeps it
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", PROMPT, "--candidates", str(candidates)]
    command += ["--output", str(folder / "pictures"), "--overwrite"]
    seconds, drawing = [], []
    for _ in range(1 + runs):
        took, shown = timed(command)
        seconds.append(took)
        drawing.append(float(re.search(r"([\d.]+) s$", shown, re.MULTILINE)[1]))
    imports = [timed([sys.executable, "-c", "import dalle_mini.pipeline"])[0] for _ in range(runs)]
    return {
        "first": seconds[0],
        "later": statistics.median(seconds[1:]),
        "drawing": statistics.median(drawing[1:]),
        "imports": statistics.median(imports),
        "warm": warm(candidates, runs),
    }


def timed(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - started, shown


def warm(candidates: int, runs: int) -> float:
    from dalle_mini import DalleMini

    pipe = DalleMini.from_pretrained()
    seconds = [sum(pipe.generate([PROMPT], candidates)[0].timings.values()) for _ in range(1 + runs)]
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
