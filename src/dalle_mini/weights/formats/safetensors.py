"""Reading and writing `*.safetensors` tensor by tensor.

    [length of the header: 8 bytes, little-endian] [header: JSON, padded with spaces] [the tensors, one after the other]

The header maps names to `{"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}`, offsets being counted from
its own end. The library of that name reads through a memory map, whose pages stay with the process, and writes
only what is in memory as a whole; neither will do for a model that just fits.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import parsing
from dalle_mini.runtime.limits import Exceeded, check
from dalle_mini.weights.formats.tensors import Tensor, TensorFile, is_float

# In the library's order, by which it arranges the tensors it writes. A closed list: other names are refused.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
METADATA = "__metadata__"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Open a file: name -> tensor, whose values are read when they are asked for.

    Raises:
        UserError: the file is cut short, damaged, foreign or of a type that we do not read, which is found out now; the
            message names the tensors.
        OSError: it cannot be opened.
    """
    file = TensorFile(path)
    try:
        begin, header = _header(file)
        spans = {name: _span(name, entry) for name, entry in header.items()}
        in_order = sorted(spans, key=spans.__getitem__)
        cut = [name for name in in_order if spans[name][1] > file.size - begin]
        if cut:
            raise UserError(
                f"{path} is cut short: its {file.size} bytes end before {listed(cut)}; download or copy it again"
            )
        end = 0
        for name in in_order:
            if spans[name][0] != end:
                raise ValueError(f"tensor {name} does not begin where the one before it ends")
            end = spans[name][1]
        if begin + end != file.size:
            raise ValueError(f"{file.size - begin - end} bytes follow the last tensor")
        return {name: _tensor(file, name, header[name], begin + spans[name][0]) for name in header}
    except UserError:
        raise
    except Exceeded as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}; download or copy it again") from None


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype=None) -> None:
    """Write tensors one by one, with no more than one of them in memory; equal contents give equal bytes.

    Args:
        dtype: what floating-point values are stored as; as they are by default.
    Raises:
        UserError: a value does not fit the dtype.
        OSError: the file cannot be written.
    """
    stored = {name: np.dtype(dtype) if dtype and is_float(t.dtype) else t.dtype for name, t in tensors.items()}
    codes = {name: next(code for code, known in DTYPES.items() if known == stored[name]) for name in tensors}
    rank = list(DTYPES)
    # The largest dtypes first, so that all are aligned.
    in_order = sorted(tensors, key=lambda name: (-rank.index(codes[name]), name))
    header: dict[str, dict[str, object]] = {METADATA: {"format": "flax"}}
    end = 0
    for name in in_order:
        begin, end = end, end + math.prod(tensors[name].shape) * stored[name].itemsize
        header[name] = {"dtype": codes[name], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in in_order:
            stream.write(_stored(name, tensors[name], stored[name]))


def _header(file: TensorFile) -> tuple[int, dict]:
    """Where the tensors begin, and what the header says of each."""
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > file.size - 8:
        raise ValueError(f"its first 8 bytes announce a header of {length} bytes, and it has {file.size} in all")
    check("safetensors_header_bytes", length, "its header has more than {} bytes")
    header = parsing.parse_json(file.bytes(8, length), unique=True)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop(METADATA, None)
    check("tensors", len(header), "it has more than {} tensors")
    check("tensor_name", max(map(len, header), default=0), "a tensor's name has more than {} characters")
    return 8 + length, header


def _span(name: str, entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(), "shape": [*shape], "data_offsets": [begin, end]} if (
            all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and begin <= end
        ):
            return begin, end
    raise ValueError(f"the header does not say of what dtype and shape tensor {name} is, or where it lies")


def _tensor(file: TensorFile, name: str, entry: dict, start: int) -> Tensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{file.path} stores tensor {name} as {entry['dtype']!r:.60}, a type that is not supported: "
            "save the model as F32, F16 or BF16"
        )
    try:
        return file.tensor(name, start, end - begin, entry["shape"], DTYPES[entry["dtype"]])
    except ValueError as error:
        raise ValueError(f"tensor {name}: {error}") from None


def _stored(name: str, tensor: Tensor, dtype: np.dtype) -> memoryview:
    """The bytes of a tensor, cast to a dtype that has to hold its values."""
    values = tensor.read(dtype)
    infinite = np.count_nonzero(np.isinf(values)) if dtype != tensor.dtype else 0
    if infinite and infinite != np.count_nonzero(np.isinf(tensor.read())):
        raise UserError(f"cannot save as {dtype.name}: {name} has values beyond it; use bfloat16 or float32")
    return values.reshape(-1).view(np.uint8).data
