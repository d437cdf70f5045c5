"""Write a model's card: the template's blanks filled from the bundle, the benchmark's figures and the training runs.

python benchmarks/styled_quality.py --model runs/emoji/bundle --output runs/emoji/quality
python tools/train/make_card.py runs/emoji/bundle runs/emoji/quality/quality.json --runs runs/emoji
"""

import math
import re
from pathlib import Path
from typing import Any

from entry import parser, user_errors

from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files, parsing
from dalle_mini.weights.folder import load_tensors

TEMPLATE = Path(__file__).with_name("emoji_model_card.md")
STAGES = {
    "vqgan": "VQGAN",
    "seq2seq-where": "seq2seq, some positions of each image",
    "seq2seq": "seq2seq",
    "clip-first": "CLIP",
    "clip": "CLIP, with damaged copies",
}
KINDS = {  # of prompts in quality.json
    "ground": "a thing in a style, on a colour never seen with it",
    "style": "a thing in a style never seen with it",
    "pair": "two things never seen together",
    "unknown word": "a thing with an unknown word",
    "everyday": "everyday words",
}
PARTS = ("things", "style", "ground", "relation", "clean")


def fill(template: str, values: dict[str, str]) -> str:
    """Every @NAME@ replaced. Raises UserError where one has no value."""
    missing = sorted({name for name in re.findall(r"@(\w+)@", template) if name not in values})
    if missing:
        raise UserError(f"{TEMPLATE}: no value for {', '.join(missing)}")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], template)


def facts(bundle: Path) -> dict[str, str]:
    """Facts from the bundle itself: millions of parameters, size on disk, number of emoji."""
    values = {}
    for name in ("dalle", "vqgan", "clip"):
        count = sum(math.prod(tensor.shape) for tensor in load_tensors(bundle / name).values())
        values[name.upper()] = f"{count / 1e6:.1f}"
    files = [path for path in bundle.rglob("*") if path.is_file() and path != bundle / "README.md"]
    values["SIZE"] = f"{sum(path.stat().st_size for path in files) / 1e6:.1f}"
    try:
        styles = parsing.read_object(bundle / "scenes.json")["styles"]
        values |= {"EMOJI": str(len(parsing.read_json(bundle / "emoji.json"))), "STYLES": str(len(styles))}
        values["STYLE_NAMES"] = ", ".join(styles)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{bundle}: emoji.json or scenes.json cannot be read ({error}): make the bundle anew") from None
    return values


def scores(quality: Path) -> dict[str, str]:
    """The figures that the benchmark measured, as tables."""
    if not quality.is_file():
        raise UserError(f"{quality}: no such file: run benchmarks/styled_quality.py first")
    try:
        figures = parsing.read_object(quality)
        rows = [row(what, figures[kind]) for kind, what in KINDS.items() if kind in figures]
        head = [
            "| prompts | number | right things | right style | background | relation | no specks |",
            "|---" * 7 + "|",
        ]
        copies = [
            f"| {style} | {found['psnr']:.1f} dB | {found['ssim']:.3f} |" for style, found in figures["copies"].items()
        ]
        return {
            "SCORES": "\n".join([*head, *rows]),
            "COPIES": "\n".join(["| style | PSNR | SSIM |", "|---|---|---|", *copies]),
            "CANDIDATES": str(figures["candidates"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{quality}: not what benchmarks/styled_quality.py writes ({error})") from None


def row(what: str, figures: dict[str, Any]) -> str:
    """CLIP's picks of one kind of prompts, with a random candidate's share in brackets."""
    cells = [
        f"{100 * figures[part]['pick']:.0f} % ({100 * figures[part]['random']:.0f} %)" if part in figures else ""
        for part in PARTS
    ]
    return f"| {what} | {figures['prompts']} | {' | '.join(cells)} |"


def history(runs: Path | None) -> dict[str, str]:
    """A table of the training runs from their own records, and CLIP's recall; blank for a run that is not there."""
    rows, recall = [], ""
    for folder, stage in STAGES.items() if runs is not None else ():
        if not all((runs / folder / name).exists() for name in ("config.json", "log.jsonl")):
            continue
        try:
            config = parsing.read_object(runs / folder / "config.json")
            lines = parsing.read_bytes(runs / folder / "log.jsonl", "words_bytes").splitlines()
            log = [parsing.parse_json(line) for line in lines]
            steps, size, rate = (
                config["loop"]["steps"],
                config["loop"]["batch_size"],
                config["training"]["optimizer"]["learning_rate"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{runs / folder}: config.json or log.jsonl is damaged ({error})") from None
        rows.append(f"| {stage} | {steps:,} | {size} | {rate:g} | {duration(seconds(log, size))} |")
        if found := [record["eval_recall"] for record in log if "eval_recall" in record]:
            recall = f" CLIP's recall@1 among 256 held-out captions is {100 * found[-1]:.0f} %."
    head = ["", "| stage | steps | images a step | learning rate | time |", "|---|---|---|---|---|"]
    return {"RUNS": "\n".join([*head, *rows, ""]) if rows else "", "RECALL": recall}


def seconds(log: list[dict[str, Any]], batch_size: int) -> float:
    """Spent on steps, from the speeds that a run logged: a pause between a kill and the next start does not count."""
    total, before = 0.0, 0
    for record in log:
        if "pictures_per_second" in record:
            total += (record["step"] - before) * batch_size / record["pictures_per_second"]
            before = record["step"]
    return total


def duration(seconds: float) -> str:
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("quality", type=Path, help="quality.json of benchmarks/styled_quality.py")
    options.add_argument("--runs", type=Path, help="the folder of the training runs, for their steps, rates and times")
    with user_errors():
        args = options.parse_args()
        values = facts(args.bundle) | scores(args.quality) | history(args.runs)
        card = fill(TEMPLATE.read_text("utf-8"), values)
        path = args.bundle / "README.md"
        files.write_whole(path, card)
        console.answer(path)
