"""Emoji with their Unicode names: a captioned picture data set of any size, drawn on the spot from a font.

The pictures come from Google's Noto Color Emoji font (SIL Open Font License), the names from the Unicode CLDR.
Each example is an emoji on a plain background, with its size and place varied, and a caption that says what is seen:
"a red apple", "a small snail in the top left corner on a yellow background".

Everything lies on a grid of 16 x 16 cells: an emoji's box is a whole number of cells wide and starts at a whole cell.
A VQGAN that makes 16 x 16 tokens then meets an emoji always in the same phase of its own grid, so that an emoji
is one pattern of tokens at each size, moved about, instead of one for every sub-cell shift.
"""

import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from dalle_mini.emoji.captions import background_caption, english_name, pick
from dalle_mini.errors import UserError
from dalle_mini.runtime.hashing import is_chosen

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109  # the one size at which the font holds its bitmaps
BITMAP_SHAPE = (136, 128)  # their width and height, pixels

GRID = 16  # cells along each side of a picture
SMALL, MEDIUM, LARGE = 6, 12, 14  # widths of an emoji's box, cells
MEDIUM_AT_POSITION = 10  # a box of 12 cells would fill the same cells in every position

PLAIN_SHARE, SIZED_SHARE = 0.60, 0.15  # the rest says a position
COLOR_SAID_SHARE = 0.75
HELD_OUT_SHARE = 0.10

PALETTE: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (220, 35, 40),
    "orange": (250, 130, 10),
    "yellow": (255, 230, 60),
    "green": (40, 160, 70),
    "light blue": (125, 205, 250),
    "blue": (35, 80, 220),
    "purple": (130, 45, 170),
    "pink": (250, 150, 200),
    "brown": (120, 70, 35),
}

EVERYDAY = {
    "animals": "🐁🐄🐅🐇🐈🐉🐊🐋🐌🐍🐎🐐🐑🐒🐓🐔🐕🐖🐘🐙🐚🐛🐝🐞🐟🐠🐢🐣🐤🐦🐧🐨🐪🐬🐱🐶🐷🐸🐹🐺🐻🐼"
    "🦀🦁🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦏🦒🦓🦔🦕🦖🦘🦚🦜🦝🦞🦢🦩🪼",
    "plants": "🌱🌲🌳🌴🌵🌷🌸🌹🌺🌻🌽🍀🍁🍄💐🪴🪷",
    "food": "🌭🌮🌶🍅🍆🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🍔🍕🍗🍙🍜🍞🍟🍣🍦🍩🍪🍫🍬🍭🍯🍰🍳🍷🍸🍹🍺🍼🍿"
    "🥐🥑🥒🥕🥚🥝🥞🥡🥤🥥🥦🥨🥩🥪🧀🧁🧄🧊🫐🫖☕",
    "sky and weather": "☀☁☂☃⚡⭐❄🌈🌊🌋🌕🌙🌡🌧🔥💧🪐",
    "vehicles": "✈⛵🚀🚁🚂🚄🚌🚑🚒🚓🚕🚗🚚🚜🚢🚦🚨🚲🛟🛵🛸🛹🛻🏍🏎",
    "places": "⛩⛪⛰⛲⛺🎡🎪🏛🏝🏠🏭🏰🗼🗽🗿",
    "sport and play": "⚽⚾⛸🎈🎉🎁🎂🎃🎨🎭🎮🎯🎱🎲🎳🎷🎸🎹🎺🎻🎾🏀🏆🏈🏓🏹🥁🥊🧩🧸🪁🪆",
    "clothes": "🎀🎒🎓🎩👑👒👓👔👕👖👗👜👟👠👢💄💍💎🕶🧢🧣🧦",
    "objects": "☎⌚⏰⚓⚔⚙✂✉✏🎤🎥🎧💉💊💡💣💰💻💼📌📕📚📦📮📱📷📺📻🔋🔑🔔🔨🔬🔮🕯🖍🚪🚽🛋🛏🛑🧭🧯🧲🧳🧶🧹🪑🪓🪟🪣",
    "faces and creatures": "😀😍😎😡😭😈🤖🤠🤡🤢🥶👻👽👾💀💩❤🧠🦴🦷",
}


@dataclass(frozen=True)
class Emoji:
    """One emoji: its code points and its English CLDR short name in plain lower-case words."""

    characters: str
    name: str


@dataclass(frozen=True)
class EmojiExample:
    """A captioned picture and what it was made from.

    `image` is uint8 [size, size, 3]; `scale` is the width of the emoji's box and `position` the (x, y) of the box's
    top left corner, both in cells of a sixteenth of the picture.
    """

    image: np.ndarray
    caption: str
    emoji: Emoji
    color: str
    scale: int
    position: tuple[float, float]


@dataclass(frozen=True)
class _Plan:
    """An example before it is drawn."""

    caption: str
    emoji: Emoji
    color: str
    scale: int
    position: tuple[float, float]


def find_font(path: str | Path | None = None) -> Path:
    """The emoji font's file: `path`, or the place where Debian and Ubuntu put it. Raises UserError if it is missing."""
    font = Path(path) if path is not None else DEBIAN_FONT
    if not font.is_file():
        raise UserError(
            f"emoji font not found: {font}; install Debian's package fonts-noto-color-emoji "
            "(apt-get install fonts-noto-color-emoji) or give the path of NotoColorEmoji.ttf"
        )
    return font


def is_held_out(emoji: Emoji, color: str) -> bool:
    """Whether the pair of an emoji and a background colour is kept out of training: about one in ten, never on white.

    White is spared because it is also what a caption without a colour means. The answer depends on the two names
    alone, so it is the same for every seed, picture size and set of emoji.
    """
    if color == "white":
        return False
    return is_chosen(f"{emoji.name}|{color}", HELD_OUT_SHARE)


def all_emoji(font: str | Path | None = None) -> list[Emoji]:
    """Every fully-qualified emoji that the font draws as one picture, in a stable order, names unique.

    Takes some seconds the first time. Sequences (flags, families, skin tones) need Pillow's raqm layout: raises
    UserError where it cannot be used.
    """
    if not features.check("raqm"):
        raise UserError("Pillow cannot lay out emoji sequences here: install Debian's package libfribidi0")
    return list(_all_emoji(find_font(font)))


def everyday_emoji(font: str | Path | None = None, kinds: Sequence[str] | None = None) -> list[Emoji]:
    """The emoji of `EVERYDAY` that the font draws: about 300 of single things, each easy to tell from the others.

    `kinds` are keys of `EVERYDAY`; None is all of them.

    Chosen by hand among the emoji of one code point: animals, plants, food, weather, vehicles, buildings, sport,
    clothes, objects, and some faces and creatures. Left out: people and hands, skin tones, flags, signs and buttons,
    letters, arrows, clock faces, whole scenes; of families of near twins (moons, hearts, trains, camels, balls, cats'
    moods ...) all but one or two; and what cannot be told apart at 48 pixels or is drawn in hair-thin lines.
    """
    path = find_font(font)
    return [emoji for emoji in everyday_candidates(kinds) if _is_drawn(path, emoji.characters)]


def everyday_candidates(kinds: Sequence[str] | None = None) -> list[Emoji]:
    """The emoji of `EVERYDAY` in the order written there, whether or not a font has them."""
    unknown = sorted(set(kinds or ()) - set(EVERYDAY))
    if unknown:
        raise UserError(f"no such kind of emoji: {', '.join(unknown)}; there are {', '.join(EVERYDAY)}")
    by_base = {characters.replace("\ufe0f", ""): Emoji(characters, name) for characters, name in _known_emoji()}
    return [by_base[character] for kind in kinds or EVERYDAY for character in EVERYDAY[kind]]


@lru_cache(maxsize=1)
def _known_emoji() -> tuple[tuple[str, str], ...]:
    """(characters, name) of every fully-qualified emoji, by code points. Needs the `emoji` package."""
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError as error:
        raise UserError("the names of the emoji need the Python package emoji: pip install emoji") from error
    full = STATUS["fully_qualified"]
    return tuple(sorted((c, english_name(c, data["en"])) for c, data in EMOJI_DATA.items() if data["status"] == full))


@lru_cache(maxsize=4)
def _all_emoji(font: Path) -> tuple[Emoji, ...]:
    return tuple(Emoji(characters, name) for characters, name in _known_emoji() if _is_drawn(font, characters))


# FreeType faces are not safe to use from two threads at once.
_font_lock = threading.Lock()


@lru_cache(maxsize=4)
def _open_font(path: Path) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(path), BITMAP_SIZE)
    except OSError as error:
        raise UserError(
            f"{path}: not a font with {BITMAP_SIZE}-pixel bitmaps as NotoColorEmoji.ttf is ({error})"
        ) from None


def _bare(characters: str) -> str:
    """Without the variation selector where it is the only addition: Pillow's basic layout would draw it as a glyph."""
    base = characters.replace("\ufe0f", "")
    return base if len(base) == 1 else characters


def _is_drawn(path: Path, characters: str) -> bool:
    # A sequence that the font lacks is laid out as several glyphs, a code point that it lacks as an empty box.
    with _font_lock:
        left, top, right, bottom = _open_font(path).getbbox(_bare(characters), anchor="lt")
        if (right - left, bottom - top) != BITMAP_SHAPE:
            return False
    return _glyph(path, characters).getchannel("A").getbbox() is not None


def _glyph(path: Path, characters: str) -> Image.Image:
    """The font's own bitmap, RGBA."""
    image = Image.new("RGBA", BITMAP_SHAPE)
    with _font_lock:
        ImageDraw.Draw(image).text((0, 0), _bare(characters), font=_open_font(path), embedded_color=True, anchor="lt")
    return image


@lru_cache(maxsize=16)  # for who wants one emoji in several widths
def _premultiplied(path: Path, characters: str) -> Image.Image:
    return _glyph(path, characters).convert("RGBa")


@lru_cache(maxsize=8192)  # every scene emoji at each of the seven widths
def sprite(path: Path, characters: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An emoji `width` pixels wide: premultiplied colours [height, width, 3] and background share [height, width, 1].

    Both uint8; the background's share is 255 - alpha.
    """
    height = round(width * BITMAP_SHAPE[1] / BITMAP_SHAPE[0])
    # Resized with premultiplied alpha, so that the colour of transparent pixels does not bleed into the edges.
    pixels = np.asarray(_premultiplied(path, characters).resize((width, height), Image.Resampling.LANCZOS))
    colors, alpha = pixels[..., :3], pixels[..., 3:]
    colors = np.minimum(colors, alpha)  # LANCZOS overshoots
    colors.flags.writeable = False
    background = 255 - alpha
    background.flags.writeable = False
    return colors, background


def render(
    emoji: Emoji,
    color: str,
    size: int = 64,
    scale: int = 12,
    position: tuple[float, float] | None = None,
    font: str | Path | None = None,
) -> np.ndarray:
    """One emoji on a plain background: uint8 [size, size, 3].

    `color` is a name of `PALETTE`; `size` is in pixels, a multiple of 16; `scale` is the width of the emoji's box and
    `position` the (x, y) of the box's top left corner, in cells of a sixteenth of the picture (None: centred). An emoji
    is a little wider than high and stands in the middle of its square box.
    """
    if color not in PALETTE:
        raise UserError(f"unknown background colour {color!r}: one of {', '.join(PALETTE)}")
    if size < GRID or size % GRID:
        raise UserError(f"image size {size} is not a multiple of {GRID} pixels")
    return _draw(find_font(font), emoji, color, size, scale, position)


def _draw(
    font: Path, emoji: Emoji, color: str, size: int, scale: int, position: tuple[float, float] | None
) -> np.ndarray:
    image = np.empty((size, size, 3), np.uint8)
    image[:] = PALETTE[color]
    paste(image, font, emoji, scale, position if position is not None else ((GRID - scale) / 2,) * 2)
    return image


def paste(image: np.ndarray, font: Path, emoji: Emoji, scale: int, position: tuple[float, float]) -> None:
    """Draw an emoji into `image`, uint8 [size, size, 3], over what is there; scale and position as in `render`."""
    x, y = position
    if not (0 < scale <= GRID and 0 <= x <= GRID - scale and 0 <= y <= GRID - scale):
        raise UserError(f"an emoji {scale} cells wide at cell ({x}, {y}) does not fit into an image of {GRID} cells")
    cell = image.shape[0] // GRID
    box = scale * cell
    colors, background = sprite(font, emoji.characters, box)
    height = colors.shape[0]
    left, top = round(x * cell), round(y * cell) + (box - height) // 2
    under = image[top : top + height, left : left + box]
    shaded = under * background.astype(np.uint16) + np.uint16(128)
    under[:] = colors + (shaded + (shaded >> 8) >> 8)  # the shift is a division by 255, rounded, in a third of the time


def batch_of(examples: Sequence, size: int) -> tuple[np.ndarray, list[str]]:
    """Images uint8 [n, size, size, 3] and captions of n examples, each with an `image` and a `caption`."""
    images = np.zeros((len(examples), size, size, 3), np.uint8)
    for image, example in zip(images, examples, strict=True):
        image[:] = example.image
    return images, [example.caption for example in examples]


class EmojiImages:
    """A map-style source of captioned emoji pictures: `len(source)`, `source[i]` -> `EmojiExample`.

    Example i is a pure function of (seed, i, split) and the emoji given. How they are drawn:

    - 60 % plain: a box of 12 cells, centred to within `jitter` cells; neither size nor place is said.
    - 15 % with a size word: small, tiny (6 cells), big, large, huge (14 cells), centred to within `jitter` cells.
    - 25 % in one of nine positions: with a size word small or tiny (6 cells), or without one (10 cells).

    The background's colour is said in 75 % of the captions and is white in the others. `split="train"` never holds a
    pair of emoji and colour for which `is_held_out`; `split="heldout"` holds only such pairs and always says the
    colour.

    `size` is in pixels, a multiple of 16. Boxes start at multiples of `cell` pixels: size / 16 if None; a divisor of it
    gives a finer grid.
    """

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        length: int = 100_000,
        emoji: Sequence[Emoji] | None = None,
        split: str = "train",
        font: str | Path | None = None,
        cell: int | None = None,
        jitter: int = 1,
    ) -> None:
        if size < GRID or size % GRID:
            raise UserError(f"image size {size} is not a multiple of {GRID} pixels")
        cell = size // GRID if cell is None else cell
        if cell < 1 or (size // GRID) % cell:
            raise UserError(f"cell {cell} does not divide a sixteenth of the image, {size // GRID} pixels")
        if split not in ("train", "heldout"):
            raise UserError(f"unknown split {split!r}: 'train' or 'heldout'")
        if not 0 <= jitter <= (GRID - LARGE) // 2:
            raise UserError(f"jitter {jitter}: 0 to {(GRID - LARGE) // 2} cells keep a large emoji in the image")
        if length < 1:
            raise UserError(f"length {length}: a source holds at least one image")
        self.size, self.seed, self.length, self.split, self.cell = size, seed, length, split, cell
        self.emoji = list(everyday_emoji(font) if emoji is None else emoji)
        if not self.emoji:
            raise UserError("no emoji to draw")
        self._font_path = font
        self._font: Path | None = None  # looked for when a picture is drawn: captions need none
        self._steps, self._jitter = size // GRID // cell, jitter
        colors = [[c for c in PALETTE if is_held_out(e, c) == (split == "heldout")] for e in self.emoji]
        # In the held-out split an emoji stands once for each of its pairs, and emoji without any drop out.
        self._choices = [
            (e, choice)
            for e, choice in zip(self.emoji, colors, strict=True)
            for choice in ([choice] if split == "train" else [[c] for c in choice])
        ]
        if not self._choices:
            raise UserError(f"none of the {len(self.emoji)} emoji has a held-out colour: give more emoji")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> EmojiExample:
        plan = self._plan(index)
        if self._font is None:
            self._font = find_font(self._font_path)
        image = _draw(self._font, plan.emoji, plan.color, self.size, plan.scale, plan.position)
        return EmojiExample(image, plan.caption, plan.emoji, plan.color, plan.scale, plan.position)

    def caption(self, index: int) -> str:
        """The caption of example `index`, without drawing it."""
        return self._plan(index).caption

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 [n, size, size, 3] and their n captions."""
        return batch_of([self[int(i)] for i in indices], self.size)

    def _plan(self, index: int) -> _Plan:
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of {self.length}")
        rng = random.Random(f"dalle-mini emoji {self.seed} {self.split} {index}")
        emoji, colors = pick(rng, self._choices)
        said = pick(rng, colors) if self.split == "heldout" or rng.random() < COLOR_SAID_SHARE else None

        scale, size_word, place, position = place_alone(rng, self._jitter, self._steps)
        caption = background_caption(rng, emoji.name, said, size_word, place)
        return _Plan(caption, emoji, said or "white", scale, position)


def place_alone(
    rng: random.Random, jitter: int, steps: int = 1
) -> tuple[int, str | None, tuple[int, int] | None, tuple[float, float]]:
    """Where a single emoji stands, drawn by the shares of `EmojiImages`, as (scale, size word, place, position).

    `scale` and `position` as in `render`; the size word is a key of `SIZE_WORDS` and the place one of `PLACES`, None
    where it is not said. `steps` are the parts that a cell is divided into for the jitter.
    """
    kind = rng.random()
    if kind < PLAIN_SHARE:
        scale, size_word, place = MEDIUM, None, None
    elif kind < PLAIN_SHARE + SIZED_SHARE:
        scale, size_word = pick(rng, [(SMALL, "small"), (LARGE, "large")])
        place = None
    else:
        scale, size_word = pick(rng, [(SMALL, "small"), (MEDIUM_AT_POSITION, None)])
        place = (pick(rng, (0, 1, 2)), pick(rng, (0, 1, 2)))  # column, row

    if place is None:
        reach = jitter * steps
        offset = [(int(rng.random() * (2 * reach + 1)) - reach) / steps for _ in range(2)]
        return scale, size_word, place, ((GRID - scale) / 2 + offset[0], (GRID - scale) / 2 + offset[1])
    # Small boxes keep a cell's distance from the edge.
    margin = 1 if scale == SMALL else 0
    start = (margin, (GRID - scale) // 2, GRID - scale - margin)
    return scale, size_word, place, (float(start[place[0]]), float(start[place[1]]))
