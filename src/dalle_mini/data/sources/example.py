"""The seam of all sources of captioned images: examples that are not decoded yet, in parts that can be read apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Example:
    """One captioned image as its source has it.

    Attributes:
        key: its name within the source; the same in every run.
        image: a file's bytes, or uint8 [H, W, 3] from a source that draws; None where `problem` says why.
        captions: as they were found, neither cleaned nor filtered; none is a reason to drop it.
        columns: other values that the source has for it, for filters such as `clip_score > 0.28`.
        problem: one of `reasons.py` where the source could not read it; it is counted, not lost.
        detail: more about the problem.
    """

    key: str
    image: bytes | np.ndarray | None
    captions: tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    detail: str = ""


class Part(Protocol):
    """Some of a source's examples, in an order of their own: a tar, some rows of a Parquet file, some of a folder.

    It can be pickled, for it is read in another process; `examples` streams and may be called again.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None:
        """Examples in it, where that is known without reading it."""
        ...

    def examples(self) -> Iterator[Example]: ...


class Source(Protocol):
    """A dataset of captioned images. Parts and their order depend on the dataset alone.

    Attributes:
        sparse_columns: whether an example may have columns that others lack, as there is no schema.
    """

    sparse_columns: bool

    def origin(self) -> dict[str, Any]:
        """Flat JSON that tells this dataset from others. It is kept with everything that is made of the dataset."""
        ...

    def parts(self) -> Sequence[Part]: ...


def total_size(parts: Iterable[Part]) -> int | None:
    """Examples in these parts, where each of them knows its number."""
    sizes = [part.size for part in parts]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
