"""Write a model's card: the template's blanks filled from the bundle, the benchmark's figures and the training runs.

python benchmarks/styled_quality.py --model runs/emoji/bundle --output runs/emoji/quality
python tools/train/make_card.py runs/emoji/bundle runs/emoji/quality/quality.json --runs runs/emoji
"""

import math
import re
from collections.abc import Iterable, Sequence
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
PARTS = {
    "things": "right things",
    "style": "right style",
    "ground": "right background",
    "relation": "right relation",
    "clean": "no specks",
}
OPEN = {  # what captions leave open
    "styles": "styles",
    "places": "places",
    "sizes": "sizes",
    "grounds": "backgrounds",
    "right": "right thing in all that are drawn",
}


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
    """The figures that the benchmark measured, as tables: the model's, and the other one's where one was compared."""
    if not quality.is_file():
        raise UserError(f"{quality}: no such file: run benchmarks/styled_quality.py first")
    try:
        figures = parsing.read_object(quality)
        other = figures.get("baseline", {})
        name = other.get("name", "the other model")
        return {
            "SCORES": shares(figures, other, name),
            "SINGLES": singles(figures, other, name),
            "PRINTED": printed(figures.get("printed")),
            "RANKING": ranking(figures.get("ranking", {})),
            "VARIETY": variety(figures.get("open"), other.get("open"), name),
            "COPIES": copies(figures["copies"], other.get("copies", {}), name),
            "CANDIDATES": str(figures["candidates"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{quality}: not what benchmarks/styled_quality.py writes ({error})") from None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def shares(figures: dict[str, Any], other: dict[str, Any], name: str) -> str:
    """Each kind of prompts: CLIP's pick, a random candidate, any, the VQGAN's copies, and the other model's pick."""
    rows = []
    for kind, what in KINDS.items():
        if kind not in figures:
            continue
        found, theirs = figures[kind], other.get(kind, {})
        drawn = {
            who: {part: found[part].get(key) for part in PARTS if part in found}
            for who, key in {"CLIP's pick": "pick", "a random candidate": "random", "any candidate": "any"}.items()
        }
        copied = {part: found.get("copied", {}).get(part) for part in PARTS if part in found}
        drawn["the VQGAN's copy of a right scene"] = copied
        drawn[f"{name}: CLIP's pick"] = {part: theirs[part]["pick"] for part in PARTS if part in theirs}
        both = {"CLIP's pick": found, f"{name}: CLIP's pick": theirs}
        numbers = {f"{name}: CLIP's pick": theirs.get("prompts")}
        if "copied" in found:
            numbers["the VQGAN's copy of a right scene"] = found["copied"].get("prompts", found["prompts"])
        for who, row in drawn.items():
            if any(value is not None for value in row.values()):
                number = str(numbers.get(who, found["prompts"]))
                last = percent(both.get(who, {}).get("things_and_style"))
                rows.append([what, number, who, *(percent(row.get(part)) for part in PARTS), last])
    return table(["prompts", "number", "drawn by", *PARTS.values(), "right things and style"], rows)


def singles(figures: dict[str, Any], other: dict[str, Any], name: str) -> str:
    """The median likeness of single things."""
    rows = [
        [what, likeness(figures[kind]), *([likeness(other.get(kind, {}))] if other else [])]
        for kind, what in KINDS.items()
        if "median_psnr" in figures.get(kind, {})
    ]
    return table(["prompts", "this model", *([name] if other else [])], rows)


def likeness(found: dict[str, Any]) -> str:
    return f"{found['median_psnr']:.1f} dB, {found['median_ssim']:.3f}" if "median_psnr" in found else ""


def printed(found: dict[str, Any] | None) -> str:
    """How many of the prompts that texts print are right, and which are not."""
    if not found or not found["prompts"]:
        return "None of these prompts was drawn."
    failed = [f'"{one["prompt"]}"' for one in found["failed"]]
    said = f"{found['prompts'] - len(failed)} of {found['prompts']} show the right things."
    if failed:
        said += f" Not right: {', '.join(failed)}."
    if "things" in (copied := found.get("copied", {})):
        said += f" In the VQGAN's copies of {copied['prompts']} right scenes, {percent(copied['things'])} do."
    return said


def ranking(figures: dict[str, Any]) -> str:
    """CLIP's picks beside random candidates and the best ones, with the paired 95 % interval of what the picks gain."""
    rows = []
    for part, what in PARTS.items():
        found = figures.get(part, {})
        if "gain_interval" not in found:
            continue
        low, high = (f"{100 * end:+.1f}" for end in found["gain_interval"])
        three = [percent(found[key]) for key in ("pick", "random", "any")]
        rows.append([what, str(found["prompts"]), *three, f"{100 * found['gain']:+.1f} ({low} to {high})"])
    head = ["", "prompts", "CLIP's pick", "a random candidate", "any candidate", "gain in points (95 % interval)"]
    return table(head, rows)


def variety(found: dict[str, Any] | None, theirs: dict[str, Any] | None, name: str) -> str:
    """How much the candidates differ where a caption leaves things open."""
    if not found:
        return "Not measured."
    columns = [one for one in (found, theirs) if one]
    rows = [
        [what, *(percent(one[key]) if key == "right" else f"{one[key]:.1f}" for one in columns)]
        for key, what in OPEN.items()
    ]
    return table([f"mean of {found['captions']} captions", "this model", name][: 1 + len(columns)], rows)


def copies(figures: dict[str, Any], theirs: dict[str, Any], name: str) -> str:
    """How well VQGANs copy held-out scenes, by style."""

    def cell(one: dict[str, Any] | None) -> str:
        return f"{one['psnr']:.1f} dB, {one['ssim']:.3f}" if one else ""

    rows = [[style, cell(found), *([cell(theirs.get(style))] if theirs else [])] for style, found in figures.items()]
    return table(["style", "this model", *([name] if theirs else [])], rows)


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
