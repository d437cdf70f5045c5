"""Results on disk: for each prompt a folder with the pictures, a captioned grid and `results.json`.

    pictures/a-red-apple/01.png ... 04.png   the kept pictures, best first
                         grid.png            all of them with the caption and their scores, small ones enlarged
                         results.json        prompt, settings, model identities, scores, timings
                         progress/, progress.gif   the first candidates while they were drawn, if asked for

A folder is written beside its place under a hidden name and renamed when it is whole, so that an interrupted run leaves
whole folders only; what a killed run left of others, the next one removes. A folder that exists is kept and the new one
is numbered (`a-red-apple-2`), also where another run is quicker, unless overwriting was asked for; and even then a
folder without a `results.json`, which is somebody else's, is kept.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import emoji
from PIL import Image, ImageDraw
from unidecode import unidecode

from dalle_mini.errors import UserError
from dalle_mini.imaging.lettering import load_font, wrapped
from dalle_mini.runtime import files
from dalle_mini.runtime.locks import Busy
from dalle_mini.version import __version__

if TYPE_CHECKING:
    from dalle_mini.pipeline import Preview, Result

REPORT = "results.json"
FRAME_MS, LAST_FRAME_MS = 300, 2000
MIN_SIDE = 192  # pixels: a 64-pixel picture is a stamp on today's screens
MARGIN = 12
FONT_SIZE = 18
SLUG_LENGTH = 60
CAPTION_LINES = 4


def check_writable(output: str | Path) -> Path:
    """The folder for results as a path, tried before any work is done; what a killed run left in it is removed.

    Raises:
        UserError: the folder, or the parents that it lacks, cannot be made or written to.
    """
    if not str(output).strip():
        raise UserError("--output is blank: name a folder")
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
        raise UserError(f"--output {output} cannot be written ({files.reason(error)}): name another folder") from None
    files.remove_leftovers(output)
    return output


def write_result(
    result: "Result",
    output: Path,
    provenance: dict,
    overwrite: bool = False,
    taken: set[Path] | None = None,
    previews: "Sequence[Preview]" = (),
) -> Path:
    """Write one prompt's pictures, grid and `results.json` and return the folder.

    Args:
        result: one of those that `DalleMini` returns.
        output: the folder for results; made where missing.
        provenance: `DalleMini.provenance()`.
        overwrite: replace the folder that an earlier run left for this prompt instead of numbering a new one.
        taken: folders that are never replaced, resolved, such as those that this run wrote; the new one is added.
        previews: of the images while they were drawn, for `progress/` and `progress.gif`.

    Raises:
        UserError: the folder cannot be written.
    """
    taken = set() if taken is None else taken
    with files.blamed(f"--output {output}"):
        output.mkdir(parents=True, exist_ok=True)
        while True:
            target, replace = _target(output, slug(result.prompt), overwrite, taken)
            try:
                with files.written_beside(target, replace=replace) as folder:
                    _save(result, folder, provenance)
                    image_grid(result.prompt, result.images, result.scores).save(folder / "grid.png")
                    if previews:
                        save_previews(folder, previews, result)
            except FileExistsError:
                if not os.path.lexists(target):
                    raise
                continue  # another run has taken the name meanwhile
            taken.add(_real(target))
            return target


def write_folder(result: "Result", target: Path, provenance: dict, **more) -> None:
    """A prompt's pictures and `results.json`, with `more` fields, into `target`; what is there is replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    with files.blamed(target), files.written_beside(target) as folder:
        _save(result, folder, provenance, **more)


class Previews:
    """The previews of a run: the last one is a file in the output folder, until the block ends.

    Its name, `.progress-....png`, is one that no other run and nobody else has. `files.remove_leftovers`
    removes the files of killed runs.
    """

    def __init__(self, output: Path):
        self._file = output / f".progress-{secrets.token_hex(16)}.png"
        self._seen: list[Preview] = []
        self._held: int | None = None

    def __enter__(self) -> "Previews":
        return self

    def __exit__(self, *_) -> None:
        self._file.unlink(missing_ok=True)
        self._let_go()

    def add(self, preview: "Preview") -> None:
        """Show a preview.

        Raises:
            UserError: it cannot be written.
        """
        self._seen.append(preview)
        buffer = io.BytesIO()
        image_grid(preview.prompt, preview.images).save(buffer, "PNG")
        with files.blamed(self._file):
            files.write_whole(self._file, buffer.getvalue(), sync=False)
            self._let_go()
            with contextlib.suppress(FileNotFoundError, Busy):  # another run has just removed it: there will be more
                self._held = files.hold(self._file)

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def take(self) -> "list[Preview]":
        """The previews of the prompt that is drawn now; the next ones are another's."""
        seen, self._seen = self._seen, []
        return seen


def save_previews(folder: Path, previews: "Sequence[Preview]", result: "Result") -> None:
    """Write `progress/` with an image of each preview, and `progress.gif` of them all, which ends with the results."""
    (folder / "progress").mkdir()
    grids = [image_grid(preview.prompt, preview.images) for preview in previews]
    for preview, grid in zip(previews, grids, strict=True):
        grid.save(folder / "progress" / f"{preview.count:04d}.png")
    count, kept = len(previews[0].images), dict(zip(result.indices, result.images, strict=True))
    # The candidates of the previews, in their places, if all were kept; else the best ones.
    shown = [kept[index] for index in range(count)] if kept.keys() >= set(range(count)) else result.images[:count]
    grids.append(image_grid(result.prompt, shown))
    size = tuple(max(sides) for sides in zip(*(grid.size for grid in grids), strict=True))
    frames = [Image.new("RGB", size, "white") for _ in grids]
    for frame, grid in zip(frames, grids, strict=True):
        frame.paste(grid)
    durations = [FRAME_MS] * len(previews) + [LAST_FRAME_MS]
    frames[0].save(folder / "progress.gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)


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


def image_grid(caption: str, images: list[Image.Image], scores: list[float] | None = None) -> Image.Image:
    """One picture of all `images` in near-square rows, the caption above and each one's score below it.

    Pictures whose side is below 192 pixels are enlarged by a whole factor. The caption is spelled with what
    Pillow's built-in font can draw (`lettering.drawable`), so that the grid looks the same on every machine.
    """
    factor = max(1, math.ceil(MIN_SIDE / images[0].width))
    width, height = images[0].width * factor, images[0].height * factor
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    font = load_font(FONT_SIZE)
    line = FONT_SIZE + 6
    label = line if scores is not None else 0
    total_width = max(MARGIN + columns * (width + MARGIN), 2 * MIN_SIDE)
    lines = wrapped(caption, font, total_width - 2 * MARGIN, CAPTION_LINES)

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


def _save(result: "Result", folder: Path, provenance: dict, **more) -> None:
    names = [f"{number:02d}.png" for number in range(1, len(result.images) + 1)]
    for name, image in zip(names, result.images, strict=True):
        image.save(folder / name)
    report = more | _report(result, names, provenance)
    files.write_new(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _report(result: "Result", names: list[str], provenance: dict) -> dict:
    pictures = [
        {"file": name, "score": score, "candidate": index}
        for name, score, index in zip(names, result.scores, result.indices, strict=True)
    ]
    for picture, passes in zip(pictures, result.passes, strict=False):  # there are none where nobody counted
        picture["passes"] = passes
    settings, canvas = dataclasses.asdict(result.settings), result.canvas
    sampler = settings.pop("sampler")
    for asked in ("decode", "window"):  # told as what came of them
        del settings[asked]
    return {
        "prompt": result.prompt,
        "seed": settings.pop("seed"),
        "sampler": sampler,
        "settings": settings,
        "decode": {"mode": "sequential" if result.window == 1 else "parallel", "window": result.window},
        **({} if canvas is None else {"canvas": {"tokens": " ".join(map(str, canvas.tokens)), "vary": canvas.vary}}),
        **provenance,
        "pictures": pictures,
        "timings_seconds": {stage: round(seconds, 3) for stage, seconds in result.timings.items()},
        "version": __version__,
    }


def _target(output: Path, name: str, overwrite: bool, taken: set[Path]) -> tuple[Path, bool]:
    """The folder for a prompt, and whether it is there and to be replaced."""
    target, number = output / name, 1
    while os.path.lexists(target):
        if overwrite and _real(target) not in taken and (target / REPORT).is_file():
            return target, True
        number += 1
        target = output / f"{name}-{number}"
    return target, False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _to_ascii(text: str) -> str:
    return " ".join(unidecode(emoji.demojize(text, delimiters=(" ", " "))).replace("_", " ").split())
