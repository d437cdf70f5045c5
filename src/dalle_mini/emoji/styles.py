"""The same emoji in several styles: drawn once from the packages of `packages.py`, 256 pixels wide, and kept.

A drawn style is one zip file, `noto-1.2.9.zip`: an image of each emoji, named by its code points, the list of those
that can be painted, and a `CREDITS.txt`. Who trains needs these files alone.
"""

import dataclasses
import io
import json
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dalle_mini.emoji.packages import (
    FETCH,
    FLUENT_3D,
    FLUENT_FLAT,
    NOTO,
    OPENMOJI,
    TWEMOJI,
    Package,
    default_folder,
    find_package,
    list_members,
    read_members,
)
from dalle_mini.emoji.recolor import Dominant, dominant, painted
from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import decode_rgba
from dalle_mini.imaging.problems import BadImage
from dalle_mini.runtime import files
from dalle_mini.runtime.hashing import short_hash

SIDE = 256  # pixels of a kept image, which is square
PAINTABLE = "paintable.json"  # in a zip file: the images that `recolor` may paint, and their hues
SPRITES = 2048  # of a style kept in memory, some 70 KB each at the usual width
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{body}</svg>'
)


@dataclass(frozen=True)
class Style:
    """One way in which all emoji are drawn.

    Attributes:
        name: its name in code and files.
        package: where its pictures are.
        ships: whether its licence lets a model ship that was trained on it under this project's terms.
    """

    name: str
    package: Package
    ships: bool = True

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.package.version}.zip"


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("noto", NOTO),
        Style("3d", FLUENT_3D),
        Style("flat", FLUENT_FLAT),
        Style("twemoji", TWEMOJI),
        Style("openmoji", OPENMOJI, ships=False),
        Style("openmoji-black", OPENMOJI, ships=False),
    )
}
SHIPPED_STYLES = tuple(name for name, style in STYLES.items() if style.ships)


def find_style(name: str) -> Style:
    """Raises UserError if there is no style of this name."""
    if name not in STYLES:
        raise UserError(f"no such style: {name!r}; there are {', '.join(STYLES)}")
    return STYLES[name]


def key(characters: str) -> str:
    """An emoji's code points without variation selectors, by which the styles agree: "1f441-200d-1f5e8"."""
    return "-".join(f"{ord(one):x}" for one in characters if one != "\ufe0f")


def draw_style(
    style: Style, folder: Path, emoji: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw emoji, given by their characters, into the style's zip file in `folder`; those that it lacks are left out.

    Needs the style's package in `folder` and, for SVG, the Python package resvg-py. Raises UserError where one is
    missing. A file that is there is replaced as a whole.
    """
    archive = find_package(style.package, folder)
    drawings = _drawings(style, archive, list(dict.fromkeys(key(one) for one in emoji)))
    credit = f"{style.package.credit}. Licence: {style.package.licence}. Package: {style.package.spec}\n"
    path = folder / style.file_name
    with files.blamed(path), files.writing_whole(path) as stream, zipfile.ZipFile(stream, "w") as out:
        out.writestr(zipfile.ZipInfo("CREDITS.txt"), credit)
        paintable = {}
        for number, (name, draw) in enumerate(drawings):
            content = draw()
            out.writestr(zipfile.ZipInfo(name), content)
            hue = dominant(_opened(content))
            if hue is not None and hue.paintable:
                paintable[Path(name).stem] = dataclasses.astuple(hue)
            if progress is not None:
                progress(number + 1, len(drawings))
        out.writestr(zipfile.ZipInfo(PAINTABLE), json.dumps(paintable))
    return path


def _drawings(style: Style, archive: Path, keys: Sequence[str]) -> list[tuple[str, Callable[[], bytes]]]:
    """A name and what makes an image file, for each emoji that the package has."""
    if style.package is FLUENT_3D:
        return _copied(archive, keys, "assets/", ".webp")
    if style.package is OPENMOJI:
        start = f"{'black' if style.name.endswith('black') else 'color'}/svg/"
        svgs = _copied(archive, keys, start, ".svg")
        return [(_png(name), partial(_rendered, svg().decode())) for name, svg in svgs]
    icons_file, characters_file = read_members(archive, "icons.json", "chars.json")
    icons = json.loads(icons_file)
    names = {_plain(point): name for point, name in json.loads(characters_file).items()}
    return [(f"{one}.png", partial(_rendered, _svg(icons, names[one]))) for one in keys if one in names]


def _copied(archive: Path, keys: Sequence[str], start: str, end: str) -> list[tuple[str, Callable[[], bytes]]]:
    members = {
        _plain(name.removeprefix(start).removesuffix(end).lower()): name for name in list_members(archive, start)
    }
    found = [one for one in keys if one in members]
    contents = read_members(archive, *(members[one] for one in found))
    return [(one + end, partial(bytes, content)) for one, content in zip(found, contents, strict=True)]


def _plain(points: str) -> str:
    return points.replace("-fe0f", "")


def _png(name: str) -> str:
    return str(Path(name).with_suffix(".png"))


def _svg(icons: dict, name: str) -> str:
    """One icon of an Iconify set, which leaves out what is as usual, as an SVG file of `SIDE` pixels."""
    icon = icons["icons"][icons.get("aliases", {}).get(name, {}).get("parent", name)]
    sizes = {one: icon.get(one, icons.get(one, usual)) for one, usual in _ICON.items()}
    return _SVG.format(**sizes, side=SIDE, body=icon["body"])


_ICON = {"left": 0, "top": 0, "width": 16, "height": 16}


def _rendered(svg: str) -> bytes:
    """An SVG as a PNG file of `SIDE` x `SIDE` pixels."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("drawing SVG needs the Python package resvg-py: pip install 'dalle-mini-jax[art]'") from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True))


class Sprite(NamedTuple):
    """An emoji as it is drawn, without the empty border of its box.

    Attributes:
        colors: premultiplied, uint8 [height, width * 3], read-only.
        background: the share of what is under it, 255 - alpha, once for each channel: uint8 [height, width * 3].
        left: column of the box, pixels.
        top: row of the box.
    """

    colors: np.ndarray
    background: np.ndarray
    left: int
    top: int

    def paste(self, image: np.ndarray, left: int, top: int) -> None:
        """Draw it into an image, uint8 [height, width, 3], with the box's corner at (left, top)."""
        height, width = self.colors.shape
        rows = image.reshape(len(image), -1)  # channels beside each other: inner loops are long, and fast
        first = 3 * (left + self.left)
        under = rows[top + self.top : top + self.top + height, first : first + width]
        shaded = under.astype(np.uint16)
        shaded *= self.background
        shaded += 128
        shaded += shaded >> 8  # with the next shift a division by 255, rounded
        shaded >>= 8
        np.add(self.colors, shaded, out=under, casting="unsafe")


def cut(pixels: np.ndarray) -> Sprite:
    """A sprite of the pixels that `_premultiplied` gives."""
    drawn = pixels[..., 3] < 255
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        rows = columns = np.array([0])
    inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    colors = inner[..., :3].reshape(len(inner), -1).copy()
    background = np.repeat(inner[..., 3], 3, axis=1)
    colors.flags.writeable = background.flags.writeable = False
    return Sprite(colors, background, int(columns[0]), int(rows[0]))


class StyleArt:
    """A drawn style: `art.sprite(characters, width)`.

    Args:
        name: a key of `STYLES`.
        folder: where its zip file is; the user's cache if None.

    Raises:
        UserError: there is no such style, or its file is missing or damaged.
    """

    def __init__(self, name: str, folder: str | Path | None = None):
        style = find_style(name)
        self.name = name
        self.path = Path(folder if folder is not None else default_folder()) / style.file_name
        if not self.path.is_file():
            raise UserError(f"{self.path}: the style {name!r} is not there; fetch and draw it with: {FETCH}")
        try:
            # In memory: processes that were forked from this one would share the position in a file.
            self._zip = zipfile.ZipFile(io.BytesIO(self.path.read_bytes()))
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); delete it, then run: {FETCH}") from None
        self._members = {Path(name).stem: name for name in self._zip.namelist()}
        self._paintable = {one: Dominant(*values) for one, values in json.loads(self._zip.read(PAINTABLE)).items()}
        self._lock = threading.Lock()
        self.sprite = lru_cache(maxsize=SPRITES)(self._sprite)
        self._image = lru_cache(maxsize=4)(self.image)  # for several widths in turn

    def __contains__(self, characters: str) -> bool:
        return key(characters) in self._members

    def is_paintable(self, characters: str) -> bool:
        """Whether the thing can be asked for in another colour."""
        return key(characters) in self._paintable

    def __reduce__(self):
        return type(self), (self.name, self.path.parent)

    def fingerprint(self) -> str:
        """The same for the same images, whenever they were drawn."""
        checksums = sorted((one.filename, one.CRC) for one in self._zip.infolist())
        return short_hash(json.dumps(checksums))

    def image(self, characters: str) -> Image.Image:
        """The emoji as it is kept: RGBA of 256 x 256 pixels. Raises UserError if the style lacks it."""
        if characters not in self:
            raise UserError(f"the style {self.name!r} does not have {characters}")
        try:
            with self._lock:
                content = self._zip.read(self._members[key(characters)])
            return _opened(content)
        except (OSError, zlib.error, zipfile.BadZipFile, BadImage) as error:
            raise UserError(f"{self.path}: {characters} is damaged ({error}); delete it, then run: {FETCH}") from None

    def _sprite(self, characters: str, width: int, color: str | None = None, flipped: bool = False) -> Sprite:
        """An emoji in a box `width` pixels wide.

        Args:
            characters: which.
            width: of the box, pixels.
            color: a key of `recolor.COLORS`, in which the thing is painted. `is_paintable` must be true.
            flipped: mirror it.
        """
        small = self._image(characters).convert("RGBa").resize((width, width), Image.Resampling.HAMMING)
        if flipped:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if color is not None:
            small = painted(small.convert("RGBA"), color, self._paintable[key(characters)]).convert("RGBa")
        return cut(_premultiplied(small))


def _opened(content: bytes) -> Image.Image:
    opened = decode_rgba(content)
    return opened if opened.size == (SIDE, SIDE) else opened.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _premultiplied(image: Image.Image) -> np.ndarray:
    """An image of mode RGBa as its colours and the background's share: uint8 [height, width, 4]."""
    pixels = np.array(image)
    np.minimum(pixels[..., :3], pixels[..., 3:], out=pixels[..., :3])  # painting rounds
    np.subtract(255, pixels[..., 3], out=pixels[..., 3])
    return pixels


@lru_cache(maxsize=16)
def open_style(name: str, folder: str | Path | None = None) -> StyleArt:
    """As `StyleArt`, opened once in a process."""
    return StyleArt(name, folder)


def credits_table(styles: Iterable[str] = SHIPPED_STYLES, others: Sequence[Package] = ()) -> str:
    """The Markdown table of whose work a model was trained on, for its card."""
    uses = {STYLES[name].package: f"style {name!r}" for name in styles} | dict.fromkeys(others, "names and keywords")
    rows = [f"| {use} | {one.credit} | {one.licence} | {one.spec} |" for one, use in uses.items()]
    return "\n".join(["| used for | made by | licence | npm package |", "|---|---|---|---|", *rows, ""])
