"""Finds out which kind of dataset a path, a pattern or a name stands for."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dalle_mini.addresses import without_secrets
from dalle_mini.data.sources import files, metadata, webdataset
from dalle_mini.data.sources.example import Source
from dalle_mini.data.sources.folder import ImageFolder
from dalle_mini.data.sources.huggingface import Address, HuggingFace
from dalle_mini.data.sources.parquet import ParquetFiles, tells_images
from dalle_mini.data.sources.rows import Options
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import reason
from dalle_mini.runtime.paths import nearest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HUB = "hf://"
_HUB_FILES = re.compile(r"hf://datasets/[^/]+/[^/]+/.")  # which fsspec reads like any other store's
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".txt")


def open_source(
    spec: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    streaming: bool = True,
    image_root: str | None = None,
) -> Source:
    """A dataset of captioned pictures, by a local path, any fsspec url (`gs://`, `s3://`, ...) or a data set's name.

    Args:
        spec: a folder, a file, a pattern such as `tars/{00000..00099}.tar` or `s3://bucket/*.parquet`, `hf://owner/name`
            (also `hf://owner/name@revision`, or `hf://` and a local folder that `datasets.load_dataset` can read);
            `hf://datasets/owner/name/...` are files on the Hub.
        image_column: of tables, the column of pictures; of tars, their suffix. Default: the usual names.
        caption_column: one column, several with commas between them, or `title+description`, which are joined; of tars
            and folders without text files, fields of their JSON. Default: the usual names.
        split: of a data set; of files, those whose path has it as a part of its name, such as `train-00000.parquet`.
            Default: `train` of a Hugging Face data set, all of files.
        subset: of a Hugging Face data set that has several configurations.
        streaming: read a data set from the Hub as it comes; False downloads it first.
        image_root: the folder that paths in tables are within (default: the dataset's own, and relative ones are
            relative to the table). A path that leads out of it is a problem of its example.

    Raises:
        UserError: there is no such dataset, it cannot be reached, or its columns are not clear. An example or file that
            is damaged raises nothing: `Example.problem` tells it.
    """
    options = Options(image_column, caption_column, split, subset, streaming, image_root)
    if image_root is not None and files.kind(*files.locate(image_root)) != "directory":
        raise UserError(f"--image-root is {image_root!r}: there is no such folder")
    if spec.startswith(HUB) and not _HUB_FILES.match(spec):
        return _hugging_face(spec, spec.removeprefix(HUB), options)
    fs, root = files.locate(spec)
    spec = without_secrets(spec)  # from here on it is only told, and kept
    if image_root is not None:
        options = replace(options, image_root=files.locate(image_root)[1])
    kind = files.kind(fs, root)
    if kind is None and re.search(r"[*?\[{]", spec):
        paths = _of_split(_matching(fs, root, spec), root, split)
        folder = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if paths else root
        return _of_files(spec, fs, folder, paths, options)
    if kind == "directory":
        return _of_folder(spec, fs, root, options)
    if kind == "file":
        return _of_files(spec, fs, posixpath.dirname(root), [root], options)
    if not files.is_url(spec) and files.HUB_NAME.fullmatch(spec):
        return _hugging_face(spec, spec, options)
    raise UserError(f"{spec}: there is no such file or folder{nearest(spec)}")


def _of_folder(spec: str, fs: AbstractFileSystem, root: str, options: Options) -> Source:
    tars, parquets, tables, images = [], [], [], 0
    for folder, found in files.walk(fs, root):
        if not folder and any(file.name in SAVED for file in found):
            if not files.is_local(fs):
                raise UserError(f"{spec}: what save_to_disk wrote is read from a local folder: copy it, or use Parquet")
            return _hugging_face(spec, root, options, saved=True)
        for name in (file.name for file in found):
            path = posixpath.join(root, folder, name)
            if name.endswith(webdataset.SUFFIXES):
                tars.append(path)
            elif name.endswith(".parquet"):
                parquets.append(path)
            elif name in metadata.NAMES:
                tables.append(path)
            else:
                images += files.suffix(name) in files.IMAGE_SUFFIXES
    lists = [path for path in parquets if posixpath.basename(path) == "metadata.parquet"]
    if tars and images:
        name = files.relative(root, tars[0])
        ending = next(ending for ending in webdataset.SUFFIXES if name.endswith(ending))
        pattern = posixpath.join(spec, posixpath.dirname(name), f"*{ending}")
        raise UserError(f"{spec}: holds images and tars ({name}): name '{pattern}' for the tars, or move them away")
    if tars:  # img2dataset puts a .parquet and a .json of statistics beside each
        return _of_files(spec, fs, root, _of_split(tars, root, options.split), options)
    if tables or lists or (parquets and (not images or tells_images(fs, parquets, options))):
        chosen = _of_split(tables or lists or parquets, root, options.split)
        return _of_files(spec, fs, root, chosen, options, images if options.split is None else 0)
    if options.split is not None:
        root = posixpath.join(root, options.split)
        if files.kind(fs, root) != "directory":
            raise UserError(f"{spec}: --split is {options.split!r}, and there is no such folder in it")
    if not images:
        raise UserError(f"{spec}: holds no images, tars or Parquet files")
    return ImageFolder(spec, fs, root, options)


def _of_files(
    spec: str, fs: AbstractFileSystem, root: str, paths: Sequence[str], options: Options, images: int = 0
) -> Source:
    """A source of tars, of Parquet files or of metadata files, and how many loose pictures lie beside those."""
    if not paths:
        raise UserError(f"{spec}: matches no file")
    if all(path.endswith(webdataset.SUFFIXES) for path in paths):
        return webdataset.WebDataset(spec, fs, root, paths, options)
    if all(path.endswith(".parquet") for path in paths):
        return ParquetFiles(spec, fs, root, paths, options, images)
    if all(posixpath.basename(path) in metadata.NAMES for path in paths):
        return metadata.MetadataFolder(spec, fs, root, paths, options, images)
    if paths[0].endswith(LISTS):
        raise UserError(
            f"{paths[0]}: a list of addresses is for img2dataset, whose output is read (docs/data.md shows the "
            "command); a list of files on this machine is a metadata.csv or metadata.jsonl with a column file_name"
        )
    raise UserError(f"{spec}: images are read from folders, .tar, .parquet and Hugging Face data sets")


def _matching(fs: AbstractFileSystem, pattern: str, spec: str) -> list[str]:
    """The files of a pattern. Braces name all, so that a missing one is counted; wildcards those that exist."""
    paths = []
    for path in files.expand(pattern):
        try:
            paths += sorted(fs.glob(path)) if re.search(r"[*?\[]", path) else [path]
        except Exception as error:  # every store has exceptions of its own
            raise UserError(f"{spec}: cannot be listed ({reason(error)})") from None
    return list(dict.fromkeys(paths))


def _of_split(paths: Sequence[str], root: str, split: str | None) -> list[str]:
    if split is None:
        return list(paths)
    own = re.compile(rf"(^|[/._-]){re.escape(split)}([/._-]|$)")
    found = [path for path in paths if own.search(files.relative(root, path))]
    if paths and not found:
        raise UserError(f"--split is {split!r}, and no file is called so: {files.relative(root, paths[0])}, ...")
    return found


def _hugging_face(spec: str, name: str, options: Options, *, saved: bool = False) -> Source:
    name, revision = name.removeprefix("datasets/"), None
    if files.HUB_NAME.fullmatch(name) and "@" in name:
        name, _, revision = name.partition("@")
    streaming = options.streaming and not saved
    return HuggingFace(spec, Address(name, saved, options.subset, options.split, revision, streaming), options)
