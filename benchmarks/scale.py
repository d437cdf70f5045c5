"""The tables of docs/scale.md: mini and mega on 4 to 256 chips, by `dalle-mini plan`.

    pip install '.[plan]'
    python benchmarks/scale.py                  # every row that is not there yet: 2 to 5 minutes each
    python benchmarks/scale.py --only v5e-8 v5e-256
    python benchmarks/scale.py --compile none   # only write the tables anew

A row's figures are kept in benchmarks/scale/, one file each, so that it can be stopped and continued, and a file that
is deleted is made again. The batch is the recipe's on all hardware, in as few microbatches as fit a device.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from dalle_mini.planning.topology import TOPOLOGIES, find_topology

HERE = Path(__file__).parent
ROWS = HERE / "scale"
DOC = HERE.parent / "docs" / "scale.md"
HARDWARE = (
    *("v3-8", "v3-32", "v4-16", "v4-512", "v5e-8", "v5e-32", "v5e-64", "v5e-256"),
    *("v5p-16", "v5p-512", "v6e-8", "v6e-256", "h100x8"),
)
# Pictures an update, which every number of devices up to 512 divides, and pictures a device at a time to begin with.
MODELS = {"mini": (3584, 56), "mega": (4096, 32)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows of this hardware or of these models")
    parser.add_argument("--compile", choices=("missing", "none"), default="missing")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    ROWS.mkdir(exist_ok=True)
    wanted = set(args.only or ())
    unknown = wanted - set(TOPOLOGIES) - set(MODELS)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: neither hardware nor a model")
    models = wanted & set(MODELS) or set(MODELS)
    hardware = [name for name in HARDWARE if not wanted & set(TOPOLOGIES) or name in wanted]
    for model in MODELS:
        for name in hardware:
            if args.compile == "missing" and model in models and not row_file(model, name).exists():
                row_file(model, name).write_text(json.dumps(figures(model, name), indent=1) + "\n")
    rows = {model: [json.loads(file.read_text()) for file in sorted_files(model)] for model in MODELS}
    write_tables(rows)
    missing = [f"{model} {name}" for model in MODELS for name in HARDWARE if not row_file(model, name).exists()]
    print(f"{DOC}: {sum(map(len, rows.values()))} rows; not compiled yet: {', '.join(missing) or 'none'}")
    if args.json:
        print(json.dumps({"rows": rows, "missing": missing}))
    return 0


def row_file(model: str, name: str) -> Path:
    return ROWS / f"{model}-{name}.json"


def sorted_files(model: str) -> list[Path]:
    return [row_file(model, name) for name in HARDWARE if row_file(model, name).exists()]


def figures(model: str, name: str) -> dict:
    """The plan of a row, with twice as many microbatches until it fits."""
    batch, at_once = MODELS[model]
    devices = find_topology(name).devices
    microbatches = max(1, batch // (devices * at_once))
    while True:
        command = [sys.executable, "-m", "dalle_mini.cli", "plan", model, "--json"]
        command += ["--topology", name, f"loop.batch_size={batch}", f"loop.accumulation={microbatches}"]
        print(f"{model} on {name}, {microbatches} microbatches", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = json.loads(done.stdout.splitlines()[-1])
        if found["fits"] or batch // (devices * microbatches) <= 1:
            return {**found, "config": f"{model}.yaml"}
        microbatches *= 2


def write_tables(rows: dict[str, list[dict]]) -> None:
    text = DOC.read_text("utf-8")
    for model, found in rows.items():
        table = "\n".join(["", *table_of(found), ""]) if found else "\n"
        pattern = rf"(<!-- {model} -->)\n.*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text, flags=re.DOTALL)
    DOC.write_text(text, "utf-8")


def table_of(rows: list[dict]) -> list[str]:
    heads = (
        *("hardware", "chips", "images on a device", "peak GiB", "exchanged GiB", "arithmetic s", "memory s"),
        *("interconnect s", "limit", "break-even images", "MFU at most", "M images a day"),
        "dollars a million images (preemptible)",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        microbatches = f"{row['accumulation']} x {row['pictures_per_device']}"
        exchanged = sum(one["wire_bytes"] for one in row["collectives"] or ()) / 2**30
        spot = row["dollars_per_million_pictures_preemptible"]
        dollars = f"{row['dollars_per_million_pictures']:.2f}" + ("" if spot is None else f" ({spot:.2f})")
        cells = [
            row["topology"] + (" (estimate)" if row["estimated"] else ""),
            str(row["chips"]),
            microbatches,
            f"{row['peak_gib_per_device']:.2f} of {row['hbm_gib_per_device']:.2f}" + ("" if row["fits"] else ": no"),
            f"{exchanged:.1f}" if row["fits"] else "",
            *(f"{row[f'{part}_seconds']:.3f}" for part in ("compute", "hbm", "interconnect")),
            row["limit"],
            f"{row['pictures_per_device'] * row['interconnect_seconds'] / row['compute_seconds']:.1f}",
            f"{row['mfu_bound']:.0%}",
            f"{row['pictures_a_day'] / 1e6:.1f}",
            dollars,
        ]
        cells = [cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells]  # a narrow column would take three lines
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
