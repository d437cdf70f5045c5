"""The limits of inputs, in one table. docs/limits.md explains each; raise one for a file that you trust.

`DALLE_MINI_LIMITS="pixels=400000000 json_bytes=1000000000"` raises limits of a command and of its workers, and
`raise_limits(pixels=400_000_000)` does so from Python.
"""

import dataclasses
import functools
import os

from dalle_mini.errors import UserError

VARIABLE = "DALLE_MINI_LIMITS"


def _limit(default: int, guards: str) -> int:
    return dataclasses.field(default=default, metadata={"guards": guards})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Whole numbers above 0. Each says in its metadata what it guards."""

    json_bytes: int = _limit(64 << 20, "bytes of a JSON file: configs, manifests, records, indexes of shards")
    json_depth: int = _limit(64, "nested lists and objects in JSON and YAML")
    download_bytes: int = _limit(1 << 40, "bytes of a file that is downloaded from the Hub or a mirror")
    yaml_bytes: int = _limit(256 << 10, "bytes of a YAML file")
    yaml_nodes: int = _limit(
        100_000,
        "values of a YAML file; 100 characters of text count as one value, and an alias counts each time it is used",
    )
    config_bytes: int = _limit(4 << 20, "bytes of a config.json, and of a file with a tokenizer's settings")
    model_layers: int = _limit(256, "layers or blocks in a model's config")
    model_width: int = _limit(1 << 17, "features, channels or heads in a model's config")
    model_length: int = _limit(1 << 16, "positions in a model's config, and pixels of a side")
    model_rows: int = _limit((1 << 31) - 1, "rows of a table in a model, and other whole numbers of its config")
    preprocessing_side: int = _limit(4096, "pixels of a side in a preprocessor_config.json")
    tokenizer_bytes: int = _limit(64 << 20, "bytes of a tokenizer.json, a vocab.json or a merges.txt")
    tokenizer_tokens: int = _limit(4_000_000, "tokens, merges or added tokens of a tokenizer")
    tokenizer_parts: int = _limit(64, "normalizers, pre-tokenizers and similar parts of a tokenizer")
    tokenizer_growth: int = _limit(512, "the factor by which a tokenizer's parts can lengthen a text, in bytes")
    words_bytes: int = _limit(256 << 20, "bytes of a word list or a list of classes")
    safetensors_header_bytes: int = _limit(16 << 20, "bytes of a safetensors file's header")
    pickle_bytes: int = _limit(32 << 20, "bytes of a PyTorch file's pickle, and of the directory of its zip archive")
    pickle_steps: int = _limit(2_000_000, "instructions of a PyTorch file's pickle; a tensor takes about 25")
    tensors: int = _limit(100_000, "tensors of a weights file, and the modules that hold them, counted together")
    tensor_name: int = _limit(1024, "characters of a tensor's name, including its modules' names")
    picture_bytes: int = _limit(64 << 20, "bytes of an image file in a dataset")
    text_bytes: int = _limit(1 << 20, "bytes of a caption file, of one row of a list, or of one prompt of a table")
    key_characters: int = _limit(
        4096, "characters of an image's key in a table; instead of a longer key, the row's place is used"
    )
    pattern_names: int = _limit(1_000_000, "names that the braces of a pattern expand to")
    tar_headers: int = _limit(1 << 18, "bytes of names and other headers of one tar member")
    parquet_rows: int = _limit(1_000_000, "rows of a Parquet file, in addition to one row for each byte of the file")
    parquet_values: int = _limit(1 << 25, "values of the lists in a Parquet row group")
    parquet_chunk: int = _limit(
        64 << 20, "bytes of a column of a Parquet row group that grows more than 200 times when it is unpacked"
    )
    parquet_bytes: int = _limit(
        1 << 30, "bytes of images and captions of a Parquet file, in addition to 1000 times the file's size"
    )
    prompts_bytes: int = _limit(256 << 20, "bytes of a file of prompts, and of its prompts after they are unpacked")
    pixels: int = _limit(1 << 26, "pixels of an image, width times height, unless --max-pixels is given")
    image_side: int = _limit(1 << 20, "pixels of an image's longer side")
    image_bytes: int = _limit(512 << 20, "bytes of an image file that you name yourself, as with --picture")
    image_parts: int = _limit(100_000, "segments, chunks, blocks, strips or tiles of an image file")
    jpeg_scans: int = _limit(100, "scans of a JPEG file; a progressive JPEG has about ten")
    rle_pixels: int = _limit(
        1 << 23, "pixels, and bytes, of a run-length encoded BMP file; Python needs a second for these"
    )


@functools.cache
def _read(text: str) -> Limits:
    known, chosen = {field.name for field in dataclasses.fields(Limits)}, {}
    for assignment in text.replace(",", " ").split():
        name, _, value = assignment.partition("=")
        if name not in known:
            raise UserError(f"{VARIABLE}: there is no limit {name!r:.60}; known are {', '.join(sorted(known))}")
        if not (value.isascii() and value.isdecimal() and len(value) < 19 and int(value)):
            raise UserError(f"{VARIABLE}: {name} is {value!r:.60}, not a whole number above 0")
        chosen[name] = int(value)
    return Limits(**chosen)


def limits() -> Limits:
    """The limits in force. Raises UserError where the environment's setting of them makes no sense."""
    return _read(os.environ.get(VARIABLE, ""))


def raise_limits(**values: int) -> None:
    """Set limits for this process and for those that it starts. Raises UserError for a name that is none."""
    both = " ".join([os.environ.get(VARIABLE, ""), *(f"{name}={value}" for name, value in values.items())])
    _read(both)
    os.environ[VARIABLE] = both


def exceeded(name: str) -> str:
    """The way out of an error about a limit: "limit NAME; ..."."""
    return f"limit {name}: if you trust it, raise the limit with {VARIABLE}={name}=N"


class Exceeded(ValueError):
    """An input takes more than a limit allows: one line, without the input's name."""


def check(name: str, value: int, told: str) -> None:
    """Raises Exceeded where `value` is above the limit `name`; `told` says so, with {} for the limit."""
    most = getattr(limits(), name)
    if value > most:
        raise Exceeded(f"{told.format(most)} ({exceeded(name)})")
