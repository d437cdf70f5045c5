"""Hugging Face data sets: on the Hub, streamed or downloaded first, and those that `save_to_disk` wrote.

Pictures are taken as they are stored, and decoded later with limits. No code of a data set is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from dalle_mini.data.sources import files, hub_parquet, reasons
from dalle_mini.data.sources.captions import read_text
from dalle_mini.data.sources.example import Example
from dalle_mini.data.sources.fingerprint import Fingerprint
from dalle_mini.data.sources.hub_paths import check_card, check_saved, read_url
from dalle_mini.data.sources.parquet import kinds_of
from dalle_mini.data.sources.rows import Kinds, Layout, Options, example_of, find_layout
from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import arrow
from dalle_mini.runtime.files import reason
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.limits import exceeded
from dalle_mini.weights.hub.errors import client

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PART = 4096  # rows of a data set that is on this machine
BATCH = 16  # rows that are in memory at a time


@dataclass(frozen=True)
class Address:
    """A split of a data set, by all that another process needs to open it too.

    Attributes:
        name: `owner/name` on the Hub, or a local folder.
        saved: whether `save_to_disk` wrote the folder.
        revision: the commit on the Hub; None for a local folder.
    """

    name: str
    saved: bool
    subset: str | None
    split: str | None
    revision: str | None
    streaming: bool


class HuggingFace:
    """One split of a data set. A part is a shard of one that is streamed, or some thousand rows of one that is here."""

    sparse_columns = False

    def __init__(self, spec: str, address: Address, options: Options):
        self.spec, self.image_root = spec, options.image_root
        self.address, dataset = _resolved(address)
        names, kinds = _columns(dataset, self.address, options)
        self.layout = find_layout(spec, names, options, kinds)
        _refuse_to_decode(spec, dataset, self.layout)

    def origin(self) -> dict[str, Any]:
        address = self.address
        told = {"kind": "huggingface", "source": self.spec} | self.layout.origin()
        told |= {"subset": address.subset, "split": address.split, "revision": address.revision}
        told |= {"streaming": address.streaming, "parts": len(self._parts)}
        if not address.streaming:
            told["rows"] = len(_dataset(address))
        if address.saved:
            told["saved"] = _dataset(address)._fingerprint
        return told | (_files_of(address.name) if os.path.isdir(address.name) else {"name": address.name})

    def parts(self) -> Sequence[Shard]:
        return self._parts

    @cached_property
    def _parts(self) -> list[Shard]:
        dataset = _dataset(self.address)
        if self.address.streaming:
            count = dataset.num_shards
            return [Shard(self.address, self.layout, self.image_root, i, count) for i in range(count)]
        starts = range(0, len(dataset), PART)
        return [
            Shard(self.address, self.layout, self.image_root, start, size=min(PART, len(dataset) - start))
            for start in starts
        ]


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, or `size` rows from `index` on. A key is the column `key` or `id`, or else a place."""

    address: Address
    layout: Layout
    image_root: str | None
    index: int
    count: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        place = f"{self.index:09d}" if self.count is None else f"{self.index:05d}-of-{self.count:05d}"
        return f"{self.address.split or 'all'}/{place}"

    def examples(self) -> Iterator[Example]:
        """Its rows in order. Where it fails in the middle what is left is lost, and counted if its number is known."""
        number = 0
        try:
            for row in self._rows():
                yield self._example(number, row)
                number += 1
        except Exception as error:  # whatever the network, a damaged file or the library raises: the other parts go on
            if type(error) is MemoryError:  # Arrow has one of its own, of sizes that a file may claim
                raise
            reason = error.reason if isinstance(error, files.Unreadable) else reasons.CANNOT_READ
            for lost in range(number, max(self.size or 0, number + 1)):
                yield Example(f"{self.name}/{lost}/{reason}", None, (), {}, reason)

    def _rows(self) -> Iterator[dict[str, Any]]:
        from datasets import ClassLabel

        dataset = _undecoded(_dataset(self.address), self.layout)
        captions = [*self.layout.captions, *filter(None, self.layout.joined or ())]
        kinds = {name: (dataset.features or {}).get(name) for name in captions}
        labels = {name: kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)}
        for row in self._read_rows(dataset):
            yield _with_names(row, labels) if labels else row

    def _read_rows(self, dataset: Dataset | IterableDataset) -> Iterator[dict[str, Any]]:
        """As Arrow has them, so that a value which Python cannot hold costs nothing but itself."""
        if self.count is not None and dataset.features is None:  # a stream without a schema
            yield from dataset.shard(self.count, self.index)
            return
        batches: Iterable[Any]
        if self.count is None:
            assert self.size is not None  # of a shard one of the two is known
            tables, stop = dataset.with_format("arrow"), self.index + self.size
            batches = (tables[start : min(start + BATCH, stop)] for start in range(self.index, stop, BATCH))
        else:
            shard = dataset.shard(self.count, self.index)
            batches = hub_parquet.tables(shard) or shard.with_format("arrow").iter(BATCH)
        for batch in batches:
            yield from arrow.rows_of(batch, self._texts)

    def _texts(self, column: str) -> Callable[[bytes], str]:
        return arrow.text_or_path if column == self.layout.image else read_text

    def _example(self, number: int, row: dict[str, Any]) -> Example:
        key = self.layout.key_of(row)
        if key is None:
            split = self.address.split or "all"
            key = f"{split}/{self.index + number}" if self.count is None else f"{split}/{self.index:05d}/{number}"
        return example_of(key, row, self.layout, self._read)

    def _read(self, path: str) -> bytes:
        """A picture that the data set tells by its path: on the Hub, in its cache, or in the data set's folder."""
        import datasets

        if "://" in path:
            return read_url(path, self.address.name)
        local, _ = files.locate(".")
        name = self.address.name
        if os.path.isdir(name):
            roots = [self.image_root or name]
        else:  # not all of the Hub's cache: there are the user's token, and what other data sets hold
            hub = client()
            cached = hub.file_download.repo_folder_name(repo_id=name, repo_type="dataset")
            roots = [self.image_root or "/", os.path.join(hub.constants.HF_HUB_CACHE, cached)]
        for root in [*roots, str(datasets.config.HF_DATASETS_CACHE)]:
            root = os.path.abspath(os.path.expanduser(root))
            try:
                place = files.inside(local, root, root, path)
            except files.Unreadable:
                continue
            if root != "/":
                return files.read(local, place)
        raise files.Unreadable(reasons.LEAVES_FOLDER)


def _resolved(address: Address) -> tuple[Address, Dataset | IterableDataset]:
    """The address with its split and commit filled in, and the data set. Raises UserError where it cannot be opened."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"reading a Hugging Face data set needs datasets: {install_line('data')}") from None
    try:
        revision = address.revision
        is_here = os.path.isdir(address.name)
        if not is_here:
            hub = client()
            if not hub.constants.HF_HUB_OFFLINE:  # else what was downloaded is taken, as `datasets` does
                revision = hub.HfApi().dataset_info(address.name, revision=revision).sha
        if address.saved:
            check_saved(address.name)
            found = datasets.load_from_disk(address.name)
            splits = list(found) if isinstance(found, datasets.DatasetDict) else []
        else:
            check_card(address.name, revision)
            splits = datasets.get_dataset_split_names(address.name, address.subset, revision=revision)
        split = _split(address, splits)
        address = Address(address.name, address.saved, address.subset, split, revision, address.streaming)
        return address, _dataset(address)
    except UserError:
        raise
    except Exception as error:  # the library and the network raise nearly every type there is
        said = reason(error)
        if isinstance(error.__cause__, files.Unreadable):
            said = f"a Parquet file of it {error.__cause__}: stream it; {exceeded('parquet_bytes')}"
        where = address.name if os.path.isdir(address.name) else f"{address.name}: there is no such folder, and it"
        raise UserError(f"{where} cannot be opened as a Hugging Face data set ({said:.300})") from None


def _split(address: Address, splits: Sequence[str]) -> str | None:
    if address.split is not None:
        if address.split.partition("[")[0] not in splits:
            raise UserError(f"{address.name}: --split is {address.split!r}; there are {listed(splits) or 'none'}")
        return address.split
    if len(splits) < 2:
        return splits[0] if splits else None
    if "train" in splits:
        return "train"
    raise UserError(f"{address.name}: which split? Name it with --split: {listed(splits)}")


def _files_of(folder: str) -> dict[str, Any]:
    """The fingerprint of a local data set's files, without those that `datasets` puts there as a cache."""
    fs, root = files.locate(folder)
    fingerprint = Fingerprint()
    for place, found in files.walk(fs, root, sized=True):
        for file in found:
            if not file.name.startswith("cache-"):
                fingerprint.add(os.path.join(place, file.name), file)
    return fingerprint.told()


@lru_cache(maxsize=4)
def _dataset(address: Address) -> Dataset | IterableDataset:
    """A process opens a data set once, however many of its parts it reads."""
    import datasets

    client()  # whose answers are checked in this process too
    if address.saved:
        found = datasets.load_from_disk(address.name)
        return found[address.split] if isinstance(found, datasets.DatasetDict) else found
    builder = datasets.load_dataset_builder(address.name, address.subset, revision=address.revision)
    hub_parquet.bound(builder)
    if address.streaming:
        return builder.as_streaming_dataset(split=address.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=address.split)


def _columns(dataset: Dataset | IterableDataset, address: Address, options: Options) -> tuple[list[str], Kinds]:
    """(names of all columns, what they hold)."""
    from datasets import ClassLabel, Image, Value

    if dataset.features is not None:
        kinds = kinds_of(dataset.features.arrow_schema)
        images = [name for name in kinds.images if isinstance(dataset.features[name], (Image, Value))]  # no sounds
        kinds = replace(kinds, images=tuple(images))
        labels = {name for name, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
        if options.caption_column is not None:  # who asks for labels gets their names
            no_captions = {name: kind for name, kind in kinds.no_captions.items() if name not in labels}
            kinds = replace(kinds, no_captions=no_captions)
        return list(dataset.features), kinds
    row = next(iter(dataset), None)  # a stream may not know its columns ahead
    if row is None:
        raise UserError(f"{address.name}: there is no row in it")
    return list(row), Kinds(tuple(name for name, value in row.items() if isinstance(value, (bytes, dict))))


def _with_names(row: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    """A row with the names of labels instead of their numbers."""
    named = {}
    for name, names in labels.items():
        number = row.get(name)
        named[name] = names[number] if isinstance(number, int) and 0 <= number < len(names) else None
    return row | named


def _refuse_to_decode(spec: str, dataset: Dataset | IterableDataset, layout: Layout) -> None:
    """Raises UserError where `datasets` would have to decode the column of pictures, by whatever paths it holds."""
    from datasets import Image

    kind = (dataset.features or {}).get(layout.image)
    if kind is not None and not isinstance(kind, Image) and not _is_plain(kind):
        raise UserError(f"{spec}: --image-column is {layout.image!r}, which holds {kind!s:.80}: images are wanted")


def _is_plain(feature: Any) -> bool:
    """Whether a column is of values alone, which `datasets` gives as they are."""
    from datasets import ClassLabel, LargeList, List, Value

    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, (List, LargeList)):
        return _is_plain(feature.feature)
    return isinstance(feature, (ClassLabel, Value))


def _undecoded(dataset: Dataset | IterableDataset, layout: Layout) -> Dataset | IterableDataset:
    """The data set with the columns worth reading, pictures as they are stored, and none that would be decoded."""
    from datasets import Image, Value

    features = dataset.features
    if features is None:
        return dataset
    named = {layout.key, *layout.captions, *(layout.joined or ())}
    read = {name for name, kind in features.items() if name in named and _is_plain(kind)}
    read |= {name for name, kind in features.items() if isinstance(kind, Value) and kind.dtype != "binary"}
    dataset = dataset.select_columns([name for name in features if name in read or name == layout.image])
    if isinstance(features[layout.image], Image):
        dataset = dataset.cast_column(layout.image, Image(decode=False))
    return dataset
