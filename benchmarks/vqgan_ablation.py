"""The ablation table of docs/vqgan.md: small VQGANs on emoji scenes at equal steps, with losses on and off.

    python benchmarks/vqgan_ablation.py                     # every row that is not there yet
    python benchmarks/vqgan_ablation.py --only cosine loss-codebook
    python benchmarks/vqgan_ablation.py --only none         # only write the table anew
    python benchmarks/vqgan_ablation.py --smoke             # seconds a row, into a folder that is thrown away

A row's figures are kept in benchmarks/vqgan_ablation/, one file each, and its run in --runs, so that it can be stopped
and continued at any place; a file that is deleted is made again. All rows are of as many steps. Evaluation is over 256
held-out scenes.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.training.config import config_file
from dalle_mini.training.records import LOG, read_log
from dalle_mini.training.tasks import train
from dalle_mini.training.vqgan.run import VQGANRun

HERE = Path(__file__).parent
ROWS, DOC = HERE / "vqgan_ablation", HERE.parent / "docs" / "vqgan.md"

PERCEPTUAL = {"perceptual": {"kind": "clip", "clip": "shipped", "weight": 0.1}}
ENTROPY = {"entropy_weight": 0.02, "entropy_temperature": 1.0}
# The last fifth of a run is judged, as published runs are judged from some step on.
JUDGE = {"discriminator": {"weight": 0.2, "n_layers": 2, "ndf": 32}}
COSINE = {"model": {"quantizer": "cosine"}}
TABLE = {  # name: (what is trained, what of `training` is other than in the second row)
    "l1": ("L1", {"l2_weight": 0.0}),
    "l1-l2": ("L1 + L2", {}),
    "l1-l2-again": ("L1 + L2, another seed", {}),
    "perceptual": ("L1 + L2 + perceptual (weight 0.1)", PERCEPTUAL),
    "entropy": ("L1 + L2 + entropy (weight 0.02)", ENTROPY),
    "adversarial": ("L1 + L2 + adversarial (weight 0.2, last fifth)", JUDGE),
    "perceptual-adversarial": ("L1 + L2 + perceptual + adversarial", PERCEPTUAL | JUDGE),
    "no-revival": ("L1 + L2, dead codes left dead after the first step", {"revive_every": 10**9}),
    "loss-codebook": ("L1 + L2, codebook by a loss", {"codebook": "loss"}),
    "cosine": ("L1 + L2, cosine codebook", COSINE),
    "cosine-entropy": ("L1 + L2 + entropy, cosine codebook", COSINE | ENTROPY | {"entropy_temperature": 0.1}),
}
FIGURES = ("psnr", "ssim", "codebook_use", "perplexity")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(TABLE)}; none makes no row")
    parser.add_argument("--steps", type=int, default=300, help="of each row (default: 300)")
    parser.add_argument("--runs", type=Path, default=Path("runs/vqgan-ablation"), help="where the runs are")
    parser.add_argument("--smoke", action="store_true", help="every row for 4 steps; nothing of it is kept")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    unknown = set(args.only or ()) - set(TABLE) - {"none"}
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: no such row")
    names = [name for name in TABLE if args.only is None or name in args.only]
    try:
        if args.smoke:
            with tempfile.TemporaryDirectory() as folder:
                rows = {name: figures(name, 4, Path(folder) / name, smoke=True) for name in names}
            print("\n".join(table_of(rows)))
        else:
            rows = kept_rows(names, args.steps, args.runs)
            write_table(rows)
            print(f"{DOC}: {len(rows)} rows; not made yet: {', '.join(set(TABLE) - set(rows)) or 'none'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"rows": rows}))
    return 0


def kept_rows(names: list[str], steps: int, runs: Path) -> dict[str, dict]:
    """The figures of all rows there are, once those of `names` are made."""
    ROWS.mkdir(exist_ok=True)
    others = {
        name for name in TABLE if row_file(name).exists() and json.loads(row_file(name).read_text())["steps"] != steps
    }
    if names and others:
        raise UserError(
            f"--steps {steps}: {ROWS} has rows of other steps ({', '.join(sorted(others))}): delete them first"
        )
    for name in names:
        if not row_file(name).exists():
            row_file(name).write_text(json.dumps(figures(name, steps, runs / name), indent=1) + "\n")
    return {name: json.loads(row_file(name).read_text()) for name in TABLE if row_file(name).exists()}


def row_file(name: str) -> Path:
    return ROWS / f"{name}.json"


def figures(name: str, steps: int, out: Path, smoke: bool = False) -> dict:
    """Train a row, or go on with it, and read off its last evaluation."""
    began = time.monotonic()
    train(settings(name, steps, smoke), out)
    records = read_log(out / LOG)
    last = next(record for record in reversed(records) if "eval_psnr" in record)
    return {
        "name": name,
        "steps": steps,
        **{figure: last[f"eval_{figure}"] for figure in FIGURES},
        "seconds": round(time.monotonic() - began, 1),  # of this process; of a run that was stopped, of its last part
    }


def settings(name: str, steps: int, smoke: bool = False) -> VQGANRun:
    """64-pixel scenes, f4: 16 x 16 tokens of 512 codes; whole pictures, so that PSNR is of what is trained."""
    changes = dict(TABLE[name][1])
    if "discriminator" in changes:
        changes["discriminator"] = {**changes["discriminator"], "start": steps * 4 // 5}
    model = {
        **{"ch": 16, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 64},
        **{"z_channels": 32, "embed_dim": 16, "n_embed": 512, "norm_groups": 4},
        **({"ch": 8, "resolution": 32, "n_embed": 32} if smoke else {}),
        **changes.pop("model", {}),
    }
    optimizer = {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2 if smoke else 50, "decay": "cosine"}
    values = {
        "data": {"train": ["emoji-scenes"]},
        "training": {"model": model, "optimizer": {**optimizer, "final_rate": 0.02}, **changes},
        "loop": {
            **{"steps": steps, "batch_size": 4 if smoke else 32, "eval_every": max(steps // 4, 1)},
            "seed": int(name == "l1-l2-again"),
        },
        "samples": {"pictures": 4},
    }
    return config_file.build(VQGANRun, values)


def table_of(rows: dict[str, dict]) -> list[str]:
    lines = ["| trained with | PSNR, dB | SSIM | codebook use | perplexity |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['codebook_use']:.0%}", f"{row['perplexity']:.0f}"]
        lines.append(f"| {TABLE[name][0]} | {' | '.join(cells)} |")
    return lines


def write_table(rows: dict[str, dict]) -> None:
    text = DOC.read_text("utf-8")
    steps = sorted({row["steps"] for row in rows.values()})
    said = f"After {' or '.join(f'{count:,}' for count in steps)} updates of 32 images:" if rows else "Not made yet."
    table = "\n".join(["", said, "", *(table_of(rows) if rows else []), ""])
    text = re.sub(r"(<!-- ablation -->)\n.*?(<!-- end -->)", rf"\1\n{table}\n\2", text, flags=re.DOTALL)
    DOC.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
