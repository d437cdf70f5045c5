"""Rows of tables (metadata files, Parquet, Hugging Face data sets) -> examples: which column is what, what it holds."""

import datetime
import decimal
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dalle_mini.data.sources import captions, reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.files import IMAGE_SUFFIXES, Unreadable, text_key
from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.arrow import text_or_path
from dalle_mini.runtime.limits import limits

# In the order in which they are taken; capitals do not matter
IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "image_data", "bytes", "pixels"),
    *("file_name", "image_path", "image_file", "filepath", "file_path", "filename", "path", "file"),
)
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "txt", "alt_text", "alt", "prompt"),
    *("sentence", "sentences", "sentences_raw", "label_text"),
)
TITLE_NAMES, DESCRIPTION_NAMES = ("title_clean", "title"), ("description_clean", "description")
LONGEST_PATH = 1024  # bytes, of one that a column of bytes tells
_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
KEY_NAMES = ("key", "__key__", "id", "uid")


@dataclass(frozen=True)
class Options:
    """The user's choices for a dataset; see `open_source`."""

    image_column: str | None = None
    caption_column: str | None = None
    split: str | None = None
    subset: str | None = None
    streaming: bool = True
    image_root: str | None = None


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are what.

    Attributes:
        image: the column of pictures; None where they are found another way.
        captions: columns of captions, each of one or several.
        joined: (title, description), one caption of two columns, or None.
        key: a column of names that are unique, or None.
    """

    image: str | None
    captions: tuple[str, ...] = ()
    joined: tuple[str, str | None] | None = None
    key: str | None = None

    def image_of(self, row: Mapping[str, Any]) -> Any:
        """A row's picture as it is, or None."""
        return None if self.image is None else row.get(self.image)

    def captions_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """A row's captions, as they are."""
        if self.joined:
            title, description = (next(_texts(row.get(name)), "") if name else "" for name in self.joined)
            both = captions.join(title, description)
            return (both,) if both else ()
        return tuple(text for name in self.captions for text in _texts(row.get(name)))

    def key_of(self, row: Mapping[str, Any]) -> str | None:
        """A row's key by its column of keys, or None."""
        key = row.get(self.key) if self.key else None
        key = str(key) if isinstance(key, (str, int)) else ""
        return key if 0 < len(key) <= limits().key_characters else None

    def rest_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's other columns, as far as they are single values."""
        used = {self.image, *self.captions}
        return {name: plain for name, value in row.items() if name not in used and (plain := _plain(value)) is not _NOT}

    def origin(self) -> dict[str, Any]:
        """Which columns are read, for `Source.origin`."""
        names = self.captions or tuple(name for name in self.joined or () if name)
        return {"image_column": self.image, "caption_column": ("+" if self.joined else ",").join(names)}


@dataclass(frozen=True)
class Kinds:
    """A table's columns by what they may hold, as its schema tells. A table of text alone needs none.

    Attributes:
        images: columns that hold images.
        numbers: columns of numbers, dates and the like, which are no images, with their types.
        no_captions: columns that are neither text nor lists of text, with their types.
    """

    images: tuple[str, ...] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    no_captions: Mapping[str, str] = field(default_factory=dict)


def find_layout(where: str, names: Iterable[str], options: Options, kinds: Kinds | None = None) -> Layout:
    """The layout of a table with these column names.

    `where` is the table, for messages. Raises UserError, naming the columns there are, where one that is asked for or
    needed is not among them, or cannot be what is asked of it.
    """
    names, kinds = list(names), kinds or Kinds()
    if options.image_column is None:
        usual = _known([name for name in names if name not in kinds.numbers], IMAGE_NAMES)
        image = next(iter([*_known(kinds.images, IMAGE_NAMES), *kinds.images, *usual]), None)
    else:
        image = _named(where, options.image_column, names, "--image-column")
    if image is None:
        raise UserError(f"{where}: which column holds the images? Name it with --image-column: {listed(names, 30)}")
    if image in kinds.numbers:
        wanted = "images are bytes or paths"
        raise UserError(f"{where}: --image-column is {image!r}, which holds {kinds.numbers[image]}: {wanted}")
    looked_through = names
    if options.caption_column is None:
        looked_through = [name for name in names if name not in kinds.no_captions]
    found, joined = find_captions(looked_through, options.caption_column, where)
    if not found and joined is None:
        raise UserError(f"{where}: which column holds the captions? Name it with --caption-column: {listed(names, 30)}")
    for name in (*found, *(joined or ())):
        if name in kinds.no_captions:
            wanted = "captions are text, or lists of text"
            raise UserError(f"{where}: --caption-column is {name!r}, which holds {kinds.no_captions[name]}: {wanted}")
    return Layout(image, found, joined, next(iter(_known(names, KEY_NAMES)), None))


def find_captions(
    names: Iterable[str], caption_column: str | None, where: str | None = None
) -> tuple[tuple[str, ...], tuple[str, str | None] | None]:
    """(columns of captions, (title, description) or None), as `caption_column` says or as columns are usually called.

    With `where` (the table, for messages) a column that is asked for and not there is a UserError.
    """
    names = list(names)
    if caption_column is not None:
        if caption_column in names:
            return (caption_column,), None
        if caption_column.count("+") == 1:
            title, description = caption_column.split("+")
            if where is not None:
                _named(where, title, names, "--caption-column")
                _named(where, description, names, "--caption-column")
            return (), (title, description)
        wanted = tuple(caption_column.split(","))
        if where is not None:
            for name in wanted:
                _named(where, name, names, "--caption-column")
        return wanted, None
    usual = _known(names, CAPTION_NAMES)
    if usual:
        return (usual[0],), None
    titles, descriptions = _known(names, TITLE_NAMES), _known(names, DESCRIPTION_NAMES)
    if titles and descriptions:
        return (), (titles[0], descriptions[0])
    return tuple((titles or descriptions)[:1]), None


def example_of(key: str, row: Mapping[str, Any], layout: Layout, read_path: Callable[[str], bytes]) -> Example:
    """A row's example. `read_path` reads a picture that is told by its path, and raises Unreadable."""
    texts, rest = layout.captions_of(row), layout.rest_of(row)
    try:
        image = _image(layout.image_of(row), read_path)
    except Unreadable as error:
        detail = "" if layout.image in row else f"no column {layout.image!r}"
        return Example(text_key(key), None, texts, rest, error.reason, detail)
    return Example(text_key(key), image, texts, rest)


def json_row(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError and RecursionError; a number of any length is one."""
    return json.loads(captions.read_text(data), parse_int=lambda text: int(text) if len(text) < 20 else float(text))


def _known(names: Iterable[str], usual: Iterable[str]) -> list[str]:
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    return [lower[name] for name in usual if name in lower]


def _named(where: str, name: str, names: Iterable[str], option: str) -> str:
    if name not in names:
        raise UserError(f"{where}: {option} is {name!r}; the columns are {listed(names, 30)}")
    return name


def _image(value: Any, read_path: Callable[[str], bytes]) -> bytes | np.ndarray:
    path = path_of(value)
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if path is not None:
        value = read_path(path)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
        return value
    if value is None or not isinstance(value, bytes):
        raise Unreadable(reasons.NO_IMAGE)
    if not value:
        raise Unreadable(reasons.EMPTY_FILE)
    if len(value) > limits().picture_bytes:
        raise Unreadable(reasons.FILE_TOO_LARGE)
    return value


def path_of(value: Any) -> str | None:
    """The path by which a value tells its picture, or None: text, bytes that end like a picture's name, or a struct's.

    Hugging Face stores pictures as {bytes, path}, of which the path counts where there are no bytes.
    """
    if isinstance(value, Mapping):
        path = value.get("path") if value.get("bytes") is None else None
        return text_or_path(path) if isinstance(path, bytes) else path if isinstance(path, str) and path else None
    if isinstance(value, bytes) and len(value) <= LONGEST_PATH and b"\0" not in value:
        is_path = value.rpartition(b".")[2].lower() in _SUFFIXES
        return text_or_path(value) if is_path else None
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> Iterator[str]:
    """The captions that a value holds: text, or a list of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield captions.read_text(bytes(value))
    elif isinstance(value, (list, tuple, np.ndarray)):
        for one in value:
            if isinstance(one, (str, bytes)):
                yield from _texts(one)


_NOT = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.ndim == 0:
        return _plain(value.item())
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    return _NOT
