"""Write the shipped model's card: the template's blanks filled from the bundle and from the benchmark's figures.

python benchmarks/emoji_quality.py --model runs/emoji/bundle --output runs/emoji/quality
python tools/train/make_card.py runs/emoji/bundle runs/emoji/quality/quality.json
"""

import argparse
import json
import math
import re
from pathlib import Path

from entry import user_errors

from dalle_mini.errors import UserError
from dalle_mini.weights.folder import load_tensors

TEMPLATE = Path(__file__).with_name("emoji_model_card.md")


def fill(template: str, values: dict[str, str]) -> str:
    """Every @NAME@ replaced. Raises UserError where one has no value."""
    missing = sorted({name for name in re.findall(r"@(\w+)@", template) if name not in values})
    if missing:
        raise UserError(f"{TEMPLATE}: no value for {', '.join(missing)}")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], template)


def facts(bundle: Path) -> dict[str, str]:
    """What the bundle itself tells: millions of parameters, size on disk, number of emoji."""
    values = {}
    for name in ("dalle", "vqgan", "clip"):
        count = sum(math.prod(tensor.shape) for tensor in load_tensors(bundle / name).values())
        values[name.upper()] = f"{count / 1e6:.1f}"
    values["SIZE"] = f"{sum(path.stat().st_size for path in bundle.rglob('*') if path.is_file()) / 1e6:.1f}"
    values["EMOJI"] = str(len(json.loads((bundle / "emoji.json").read_text("utf-8"))))
    return values


def scores(figures: dict) -> dict[str, str]:
    """What the benchmark measured."""
    shares = {
        "SINGLE": "single_accuracy",
        "BACKGROUND": "background_accuracy",
        "RANDOM_SINGLE": "random_single_accuracy",
        "RANDOM_BACKGROUND": "random_background_accuracy",
        "ANY": "any_single_accuracy",
        "CEILING": "reconstructed_single_accuracy",
        "USE": "codebook_use",
    }
    values = {name: f"{100 * figures[key]:.0f} %" for name, key in shares.items()}
    values |= {name.upper(): f"{figures[name]:g}" for name in ("prompts", "candidates", "guidance", "temperature")}
    return {**values, "PSNR": f"{figures['vqgan_psnr']:.1f}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("quality", type=Path, help="quality.json of benchmarks/emoji_quality.py")
    with user_errors():
        args = parser.parse_args()
        values = facts(args.bundle) | scores(json.loads(args.quality.read_text("utf-8")))
        (args.bundle / "README.md").write_text(fill(TEMPLATE.read_text("utf-8"), values), "utf-8")
        print(args.bundle / "README.md")
