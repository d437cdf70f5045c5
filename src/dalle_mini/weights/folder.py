"""A model's folder: `config.json` beside its weights.

Ours is `config.json` + `model.safetensors`. The published models are `config.json` + `flax_model.msgpack`, and either
kind of weights may be split into shards listed by `<name>.index.json`. Reading never unpickles and never trusts a size
that the file itself does not bear out; writing never leaves half a folder.
"""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from dalle_mini.errors import UserError
from dalle_mini.weights.flax_msgpack import read_msgpack

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
MSGPACK = "flax_model.msgpack"
INDEX = ".index.json"
WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, MSGPACK, MSGPACK + INDEX)  # in order of preference

MAX_JSON_BYTES = 64 << 20


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by name. A safetensors file is read tensor by tensor, when one is asked for.

    Attributes:
        file: the weights file (or the index of its shards), for messages.
    """

    def __init__(self, file: Path, readers: dict[str, Callable[[], np.ndarray]]):
        self.file = file
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first names of a possibly long list, for a message of one line: 'a, b and 7 more'."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def load_config(folder: str | Path) -> dict:
    """Read `config.json`.

    Raises:
        UserError: no such folder, no config.json in it, or it is not a JSON object.
    """
    folder = _existing(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: a model is a folder with {CONFIG} and {SAFETENSORS} (or {MSGPACK})")
    return _read_json(path)


def load_tensors(folder: str | Path) -> Tensors:
    """Open the weights of a folder: name -> numpy array, in the stored dtype.

    Names are those of the file: joined by "." in safetensors, by "/" in msgpack.

    Raises:
        UserError: no weights in the folder, a missing shard, or a cut, damaged or foreign file. A safetensors
            file is checked when it is opened, not when a tensor is asked for.
    """
    folder = _existing(folder)
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return Tensors(path, _read_shards(path) if name.endswith(INDEX) else _read_weights(path))
    raise UserError(f"{folder} has no weights: looked for {', '.join(WEIGHTS)}")


def save_tensors(folder: str | Path, config: dict, tensors: Mapping[str, np.ndarray]) -> None:
    """Write `config.json` and `model.safetensors`; equal contents give equal bytes.

    Both are written and flushed beside their final place and then renamed, so a crash or a full disk leaves either
    the folder that was there or the new one. The other files of an existing folder are kept.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not standing.is_dir():
            raise UserError(f"cannot save into {folder}: {standing} is a file")
        is_new = standing != folder
        stage = (folder.parent if is_new else folder) / f".{folder.absolute().name}.{secrets.token_hex(4)}.partial"
        stage.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
        try:
            (stage / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            # safetensors copies memory in whatever order it lies, so the order has to be C.
            contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
            safetensors.numpy.save_file(contiguous, stage / SAFETENSORS, metadata={"format": "flax"})
            # safetensors creates files for the owner only; give them the permissions that config.json got.
            (stage / SAFETENSORS).chmod((stage / CONFIG).stat().st_mode)
            for path in (stage / CONFIG, stage / SAFETENSORS, stage):
                _flush(path)
            if is_new:
                stage.rename(folder)
            else:
                for name in (SAFETENSORS, CONFIG):
                    os.replace(stage / name, folder / name)
            _flush(folder.parent if is_new else folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot save into {folder}: {_reason(error)}") from None


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    model = f"a model is a folder with {CONFIG} and {SAFETENSORS} (or {MSGPACK})"
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{folder} is a file: {model}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such folder: {folder} ({model})") from None
    except OSError as error:
        raise UserError(f"cannot read {folder}: {_reason(error)}") from None
    if not os.access(folder, os.X_OK):
        raise UserError(f"cannot read {folder}: Permission denied")
    return folder


def _read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: that is no configuration")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: it is nested too deep") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object with named fields")
    return value


def _read_shards(index: Path) -> dict[str, Callable[[], np.ndarray]]:
    """All the shards that `{"weight_map": {tensor name: file name}}` lists."""
    weight_map = _read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(f, str) for f in weight_map.values())):
        raise UserError(f"{index} has no weight_map from tensor names to files")
    readers = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise UserError(f"{index} names the file {file!r}: shards lie in the folder of their index")
        path = index.parent / file
        if not path.is_file():
            raise UserError(f"{path} is missing: {index.name} lists it as one of the shards")
        readers |= _read_weights(path)
        absent = [name for name in weight_map if weight_map[name] == file and name not in readers]
        if absent:
            raise UserError(f"{path} lacks tensors that {index.name} promises: {listed(absent)}")
    return readers


def _read_weights(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        with path.open("rb") as stream:
            if stream.read(24) == b"version https://git-lfs.":
                raise UserError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
        if path.suffix == ".msgpack":
            return {name: lambda tensor=tensor: tensor for name, tensor in read_msgpack(path).items()}
        return _open_safetensors(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None


def _open_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        cut = _cut_tensors(path)
        if cut:
            raise UserError(
                f"{path} is cut short: its {path.stat().st_size} bytes end before {listed(cut)}; "
                "download or copy it again"
            ) from None
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None

    def read(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: cannot read the tensor {name}: {error}") from None

    return {name: lambda name=name: read(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _cut_tensors(path: Path) -> list[str]:
    """Tensors that the header of a safetensors file places beyond the end of the file."""
    # [header length, 8 bytes little-endian] [JSON: name -> {"data_offsets": [begin, end]}] [data]
    with path.open("rb") as stream, contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, IndexError):
        length = int.from_bytes(stream.read(8), "little")
        data = path.stat().st_size - 8 - length
        if data >= 0 and length <= MAX_JSON_BYTES:
            header = json.loads(stream.read(length))
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
            return sorted((name for name, end in ends.items() if end > data), key=ends.get)
    return []


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
