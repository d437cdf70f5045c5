"""Write a model's card: the template's blanks filled from the bundle, the benchmark's figures and the training runs.

    python benchmarks/emoji_quality.py --model runs/emoji/bundle --output runs/emoji/quality
    python tools/train/make_card.py runs/emoji/bundle runs/emoji/quality/quality.json --runs runs/emoji

The card of the model that ships has its own history at the end: --edition tools/train/shipped_edition.md.
"""

import math
import re
from pathlib import Path
from typing import Any

from entry import parser, user_errors

from dalle_mini.emoji.judge import pick_gain
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
        values["EMOJI"] = str(len(parsing.read_json(bundle / "emoji.json")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{bundle / 'emoji.json'}: cannot be read ({error}): make the bundle anew") from None
    return values


def scores(quality: Path) -> dict[str, str]:
    """The figures that the benchmark measured."""
    shares = {
        "SINGLE": "single_accuracy",
        "BACKGROUND": "background_accuracy",
        "RANDOM_SINGLE": "random_single_accuracy",
        "RANDOM_BACKGROUND": "random_background_accuracy",
        "ANY": "any_single_accuracy",
        "CEILING": "reconstructed_single_accuracy",
        "PAIR": "pair_accuracy",
        "RELATION": "relation_accuracy",
        "RANDOM_PAIR": "random_pair_accuracy",
        "RANDOM_RELATION": "random_relation_accuracy",
        "ANY_PAIR": "any_pair_accuracy",
        "ANY_RELATION": "any_relation_accuracy",
        "CEILING_PAIR": "reconstructed_pair_accuracy",
        "CEILING_RELATION": "reconstructed_relation_accuracy",
        "EXACT_RELATION": "exact_relation_accuracy",
        "USE": "codebook_use",
    }
    try:
        figures = parsing.read_json(quality)
        values = {name: f"{100 * figures[key]:.0f} %" for name, key in shares.items()}
        plain = ("prompts", "scene_prompts", "candidates", "guidance", "temperature")
        values |= {name.upper(): f"{figures[name]:g}" for name in plain}
        right = [[row["emoji"]["name"] in one["names"] for one in row["judged"]] for row in figures["details"]]
        gain, error = pick_gain(right)
        values |= {"GAIN": f"{100 * gain:+.1f}", "GAIN_ERROR": "unknown" if error is None else f"{100 * error:.1f}"}
        return {**values, "PSNR": f"{figures['vqgan_psnr']:.1f}", "RECONSTRUCTIONS": f"{figures['reconstructions']:,}"}
    except FileNotFoundError:
        raise UserError(f"{quality}: no such file: run benchmarks/emoji_quality.py first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{quality}: not what benchmarks/emoji_quality.py writes ({error})") from None


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


def edition(path: Path | None) -> str:
    """The text that follows the template's, if any."""
    try:
        return "" if path is None else "\n" + path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--edition {path}: cannot be read ({error})") from None


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("quality", type=Path, help="quality.json of benchmarks/emoji_quality.py")
    options.add_argument("--runs", type=Path, help="the folder of the training runs, for their steps, rates and times")
    options.add_argument("--edition", type=Path, help="a text to put at the end")
    with user_errors():
        args = options.parse_args()
        values = facts(args.bundle) | scores(args.quality) | history(args.runs)
        card = fill(TEMPLATE.read_text("utf-8"), values) + edition(args.edition)
        path = args.bundle / "README.md"
        files.write_whole(path, card)
        console.answer(path)
