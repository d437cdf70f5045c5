"""A model's folder: `config.json` beside its weights.

Ours is `config.json` + `model.safetensors`. The published models are `config.json` + `flax_model.msgpack`; torch's are
`config.json` + `pytorch_model.bin`. All three may be split into shards listed by `<name>.index.json`. The files of
taming-transformers are `<name>.ckpt` + `<name>.yaml`. Reading never unpickles and never trusts a size
that the file itself does not bear out; writing never leaves half a folder.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import files, parsing
from dalle_mini.runtime.paths import no_folder
from dalle_mini.weights.formats import taming
from dalle_mini.weights.formats.flax_msgpack import read_msgpack
from dalle_mini.weights.formats.safetensors import read_safetensors, write_safetensors
from dalle_mini.weights.formats.tensors import Tensor
from dalle_mini.weights.formats.torch import read_torch_file

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
MSGPACK = "flax_model.msgpack"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"
WEIGHTS = tuple(name + end for name in (SAFETENSORS, MSGPACK, TORCH) for end in ("", INDEX))  # in order of preference

_A_MODEL = f"a model is a folder with {CONFIG} and {SAFETENSORS} (or {MSGPACK}, or {TORCH})"


class Tensors(dict[str, Tensor]):
    """The tensors of a folder by name; none of them is read yet.

    Attributes:
        file: the weights file (or the index of its shards), for messages.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]):
        super().__init__(tensors)
        self.file = file


def load_config(folder: str | Path) -> dict:
    """Read `config.json`, or what stands for it in the `.yaml` beside a `.ckpt`.

    Args:
        folder: may be the path of a `.ckpt`.
    Raises:
        UserError: no such folder, no config.json in it, it is not a JSON object, or the folder is a training run's.
    """
    folder = _existing(folder)
    path = (folder.parent if folder.is_file() else folder) / CONFIG
    if path.is_file():
        fields = parsing.read_object(path, "config_bytes")
        if {"training", "loop"} <= fields.keys():
            raise UserError(f"{folder}: the folder of a training run, not of a model: {_way_to_weights(folder)}")
        return fields
    checkpoint = taming.find_checkpoint(folder)
    if checkpoint:
        return taming.vqgan_yaml_config(taming.find_yaml(checkpoint))
    if (folder / "dalle" / CONFIG).is_file():
        raise UserError(f"{folder} is a bundle: name the network in it, such as {folder / 'dalle'}")
    raise UserError(f"{folder} has no {CONFIG}: {_A_MODEL}")


def _way_to_weights(run: Path) -> str:
    final = run / "final"
    if (final / CONFIG).is_file():
        return f"name {final}"
    return f"it has no weights before its end; `dalle-mini convert {run} FOLDER` writes those of its newest checkpoint"


def load_tensors(folder: str | Path) -> Tensors:
    """Open the weights of a folder: name -> tensor, in the stored dtype, to be read when its values are asked for.

    Names are those of the file: joined by "." in safetensors and torch's files, by "/" in msgpack.

    Args:
        folder: may be the path of a `.ckpt`.
    Raises:
        UserError: no weights in the folder, a missing shard, or a cut, damaged or foreign file. Files are checked when
            they are opened, not when a tensor is asked for.
    """
    folder = _existing(folder)
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return Tensors(path, _read_shards(path) if name.endswith(INDEX) else _read_weights(path))
    checkpoint = taming.find_checkpoint(folder)
    if checkpoint:
        return Tensors(checkpoint, _read_weights(checkpoint))
    raise UserError(f"{folder} has no weights: looked for {', '.join(WEIGHTS)} and *.ckpt")


def save_tensors(folder: str | Path, config: dict, tensors: Mapping[str, Tensor | np.ndarray], dtype=None) -> None:
    """Write `config.json` and `model.safetensors`, one tensor at a time; equal contents give equal bytes.

    Both are written and flushed beside their final place and then renamed, so a crash or a full disk leaves either
    the folder that was there or the new one. The other files of an existing folder are kept.

    Args:
        dtype: to store floating-point values in, such as float16; as they are by default.
    Raises:
        UserError: the folder cannot be written, a tensor cannot be read, or a value does not fit the dtype.
    """
    stored = {name: t if isinstance(t, Tensor) else Tensor.of(np.asarray(t)) for name, t in tensors.items()}
    folder = Path(folder)
    try:
        standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not standing.is_dir():
            raise UserError(f"cannot save into {folder}: {standing} is a file")
        if standing != folder:
            files.remove_leftovers(folder.parent)
            with files.written_beside(folder, replace=False) as stage:
                _write(stage, config, stored, dtype)
            files.sync(folder.parent)
            return
        files.remove_leftovers(folder)
        with files.work_folder(folder / SAFETENSORS) as stage:
            _write(stage, config, stored, dtype)
            for name in (SAFETENSORS, CONFIG):
                os.replace(stage / name, folder / name)
            files.sync(folder)
    except OSError as error:
        raise UserError(f"cannot save into {folder}: {files.reason(error)}") from None


def _write(stage: Path, config: dict, tensors: Mapping[str, Tensor], dtype) -> None:
    files.write_new(stage / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_safetensors(stage / SAFETENSORS, tensors, dtype)
    for path in (stage / CONFIG, stage / SAFETENSORS, stage):
        files.sync(path)


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    try:
        if not (stat.S_ISDIR(folder.stat().st_mode) or folder.suffix == ".ckpt"):
            raise UserError(f"{folder} is a file: {_A_MODEL}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{no_folder(folder)} ({_A_MODEL})") from None
    except OSError as error:
        raise UserError(f"cannot read {folder}: {files.reason(error)}") from None
    if not os.access(folder if folder.is_dir() else folder.parent, os.X_OK):
        raise UserError(f"cannot read {folder}: Permission denied")
    return folder


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All the shards that `{"weight_map": {tensor name: file name}}` lists."""
    weight_map = parsing.read_object(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(f, str) for f in weight_map.values())):
        raise UserError(f"{index} has no weight_map from tensor names to files")
    promised: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        promised.setdefault(file, []).append(name)
    tensors: dict[str, Tensor] = {}
    for file, names in sorted(promised.items()):
        if Path(file).name != file:
            raise UserError(f"{index} names the file {file!r:.200}: shards lie in the folder of their index")
        path = index.parent / file
        if not os.path.isfile(path):  # unlike Path's, it bears names that no file can have
            raise UserError(f"{path} is missing: {index.name} lists it as one of the shards")
        shard = _read_weights(path)
        absent = [name for name in names if name not in shard]
        if absent:
            raise UserError(f"{path} lacks tensors that {index.name} promises: {listed(absent)}")
        twice = [name for name in shard if name in tensors]
        if twice:
            raise UserError(f"{path} holds tensors that another shard of {index.name} has too: {listed(twice)}")
        tensors |= shard
    return tensors


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with files.open_regular(path) as stream:
            foreign = _foreign(stream.read(64), path.suffix)
        if foreign:
            raise UserError(f"{path} is {foreign}")
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        return read_msgpack(path) if path.suffix == ".msgpack" else read_torch_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {files.reason(error)}") from None


def _foreign(head: bytes, suffix: str) -> str | None:
    """The kind of a file that is not what its name says, by its first bytes, and how to get at the weights; or None."""
    if head.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not the weights: download them again, logged in if need be"
    # In a safetensors file any bytes may come first; the ninth opens its header.
    if suffix in (".safetensors", ".msgpack") and not (suffix == ".safetensors" and head[8:9] == b"{"):
        if head.startswith(b"PK\x03\x04"):
            return f"a zip archive, such as torch.save writes: call it {TORCH} if it is a torch checkpoint"
        if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
            return f"a pickle, not weights: call it {TORCH} if it is a torch checkpoint; no other pickle is ever read"
    return None
