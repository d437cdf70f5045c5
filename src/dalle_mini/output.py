"""Results on disk: for each prompt a folder with the pictures, a captioned grid and `results.json`.

    pictures/a-red-apple/01.png ... 04.png   the kept pictures, best first
                         grid.png            all of them with the caption and their scores, small ones enlarged
                         results.json        prompt, settings, model identities, scores, timings

A folder is written beside its place under a hidden name and renamed when it is whole, so that an interrupted run leaves
whole folders only. A folder that exists is kept and the new one is numbered (`a-red-apple-2`), unless overwriting was
asked for; and even then a folder without a `results.json`, which is somebody else's, is kept.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import emoji
from PIL import Image, ImageDraw, ImageFont
from unidecode import unidecode

from dalle_mini import __version__
from dalle_mini.errors import UserError

if TYPE_CHECKING:
    from dalle_mini.pipeline import Result

MIN_SIDE = 192  # pixels: a 64-pixel picture is a stamp on today's screens
MARGIN = 12
FONT_SIZE = 18
SLUG_LENGTH = 60
CAPTION_LINES = 4


def check_writable(output: str | Path) -> Path:
    """The folder for results as a path, tried before any work is done and left as it was.

    Raises UserError where the folder, or the parents that it lacks, cannot be made or written to.
    """
    output = Path(output).expanduser()
    try:
        ancestor = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not ancestor.is_dir():
            raise UserError(f"--output {output}: {ancestor} is a file, not a folder: name another")
        with tempfile.TemporaryDirectory(prefix=".dalle-mini-", dir=ancestor) as probe:
            # The missing parents too: a name that is too long shows here, not after the drawing.
            missing = output.absolute().relative_to(ancestor.absolute())
            (Path(probe) / missing / "results.json").parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"--output {output} cannot be written ({reason}): name another folder") from None
    return output


def write_result(
    result: "Result", output: Path, provenance: dict, overwrite: bool = False, taken: set[Path] | None = None
) -> Path:
    """Write one prompt's pictures, grid and `results.json` and return the folder.

    Args:
        result: one of those that `DalleMini` returns.
        output: the folder for results; made where missing.
        provenance: `DalleMini.provenance()`.
        overwrite: replace the folder that an earlier run left for this prompt instead of numbering a new one.
        taken: folders that this run wrote, never replaced; the new folder is added.

    Raises UserError where the folder cannot be written.
    """
    taken = set() if taken is None else taken
    try:
        output.mkdir(parents=True, exist_ok=True)
        target = _target(output, slug(result.prompt), overwrite, taken)
        with _written_beside(target) as folder:
            names = [f"{number:02d}.png" for number in range(1, len(result.images) + 1)]
            for name, image in zip(names, result.images, strict=True):
                image.save(folder / name)
            picture_grid(result.prompt, result.images, result.scores).save(folder / "grid.png")
            report = _report(result, names, provenance)
            (folder / "results.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    taken.add(target)
    return target


def slug(prompt: str) -> str:
    """A folder name for a prompt: lower-case ASCII words joined by dashes, at most 60 characters, never empty."""
    words = re.findall(r"[a-z0-9]+", _to_ascii(prompt).lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer) > SLUG_LENGTH:
            break
        name = longer
    return name or (words[0][:SLUG_LENGTH] if words else "prompt")


def picture_grid(caption: str, images: list[Image.Image], scores: list[float] | None = None) -> Image.Image:
    """One picture of all `images` in near-square rows, the caption above and each one's score below it.

    Pictures whose side is below 192 pixels are enlarged by a whole factor. The caption is transliterated to what
    Pillow's built-in font can draw, so that the grid looks the same on every machine.
    """
    factor = max(1, math.ceil(MIN_SIDE / images[0].width))
    width, height = images[0].width * factor, images[0].height * factor
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 6
    label = line if scores is not None else 0
    total_width = max(MARGIN + columns * (width + MARGIN), 2 * MIN_SIDE)
    lines = _wrap(caption, font, total_width - 2 * MARGIN)

    top = MARGIN + len(lines) * line + MARGIN
    grid = Image.new("RGB", (total_width, top + rows * (height + label + MARGIN)), "white")
    draw = ImageDraw.Draw(grid)
    for number, text in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * line), text, fill="black", font=font)
    for index, image in enumerate(images):
        x = MARGIN + (index % columns) * (width + MARGIN)
        y = top + (index // columns) * (height + label + MARGIN)
        grid.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), (x, y))
        if scores is not None:
            draw.text((x, y + height + 3), f"{scores[index]:.2f}", fill="#555555", font=font)
    return grid


def _report(result: "Result", names: list[str], provenance: dict) -> dict:
    pictures = [
        {"file": name, "score": score, "candidate": index}
        for name, score, index in zip(names, result.scores, result.indices, strict=True)
    ]
    settings = dataclasses.asdict(result.settings)
    return {
        "prompt": result.prompt,
        "seed": settings.pop("seed"),
        "settings": settings,
        **provenance,
        "pictures": pictures,
        "timings_seconds": {stage: round(seconds, 3) for stage, seconds in result.timings.items()},
        "version": __version__,
    }


def _target(output: Path, name: str, overwrite: bool, taken: set[Path]) -> Path:
    target, number = output / name, 1
    while target in taken or (target.exists() and not (overwrite and (target / "results.json").is_file())):
        number += 1
        target = output / f"{name}-{number}"
    return target


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """A new folder that takes `target`'s place when the block ends well, and is removed when it does not."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _to_ascii(text: str) -> str:
    return " ".join(unidecode(emoji.demojize(text, delimiters=(" ", " "))).replace("_", " ").split())


def _wrap(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    drawable = all(" " <= char <= "~" or "\xa0" <= char <= "\xff" for char in caption)
    text = caption if drawable else _to_ascii(caption)
    average = font.getlength("a quick brown fox jumps over it") / 31
    lines = textwrap.wrap(text[:2000], max(8, int(width / average * 0.95)), max_lines=CAPTION_LINES, placeholder=" ...")
    return lines or [""]
