"""What a source of weights holds, told from configs and headers: no weights are read."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.text import CaptionTokenizer
from dalle_mini.weights.bundle import PREPROCESSOR, SHIPPED, WORD_LISTS
from dalle_mini.weights.convert import NETWORKS, part_of
from dalle_mini.weights.folder import CONFIG, load_config, load_tensors
from dalle_mini.weights.hub import TOKENIZERS, Folder, Needs, open_source
from dalle_mini.weights.model_card import ARCHITECTURES, LOADERS


@dataclasses.dataclass(frozen=True)
class Description:
    """Of one network.

    Attributes:
        folder: where it lies.
        network: "DalleBart", "VQGAN" or "CLIP".
        architecture: in words.
        parameters: how many.
        dtypes: parameters by stored type.
        files: sizes of the weights files and of what lies beside them, bytes.
        tokens: the vocabulary of the tokenizer beside it, None where there is none.
        missing: what keeps it from being loaded or used, one line each.
    """

    folder: Path
    network: str
    architecture: str
    parameters: int
    dtypes: dict[str, int]
    files: dict[str, int]
    tokens: int | None
    missing: list[str]

    def __str__(self) -> str:
        stored = ", ".join(f"{dtype} {count:,}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.network}  {self.folder}",
            f"  architecture  {self.architecture}",
            f"  parameters    {self.parameters:,} ({stored})",
            *(f"  file          {name}  {size:,} bytes" for name, size in self.files.items()),
        ]
        if self.tokens is not None:
            lines.append(f"  tokenizer     {self.tokens} tokens")
        return "\n".join([*lines, *(f"  missing       {line}" for line in self.missing or ["nothing"])])

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def describe(source: str | os.PathLike | None, **hub) -> list[Description]:
    """A network, or the three of a bundle.

    Args:
        source: a folder, a `.ckpt`, a repository of the Hub or a wandb artifact; None is the model that ships.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, as in `hub.open_source`.
    Raises:
        UserError: there is no network at all, or a file is damaged.
    """
    place = Folder(SHIPPED) if source is None else open_source(source, **hub)
    is_bundle = not isinstance(place, Folder) or place.path.is_dir()
    is_bundle = is_bundle and place.first(f"dalle/{CONFIG}") is not None
    beside = Needs(optional=(*WORD_LISTS, PREPROCESSOR, *TOKENIZERS[0], *TOKENIZERS[1]))
    return [_network(place.take(part, beside)) for part in (NETWORKS if is_bundle else ("",))]


def _network(folder: Path) -> Description:
    fields = load_config(folder)
    part = part_of(fields, folder)
    try:
        config = NETWORKS[part].config_class.from_dict(fields)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    sizes, missing = Counter(), []
    try:
        NETWORKS[part].open_pretrained(folder)
    except UserError as error:
        missing.append(str(error))
    try:
        for tensor in load_tensors(folder).values():
            sizes[str(tensor.dtype)] += math.prod(tensor.shape)
    except UserError:
        pass  # said above
    beside = folder if folder.is_dir() else folder.parent
    tokens, lacking = _tokenizer(part, beside, config)
    if part == "dalle" and config.normalize_text and not Folder(beside).first(*WORD_LISTS):
        lacking.append(f"{WORD_LISTS[0]}: hashtags in captions are not split into words")
    described = config.to_dict()
    return Description(
        folder=folder,
        network=LOADERS[described["model_type"]],
        architecture=ARCHITECTURES[described["model_type"]](described),
        parameters=sizes.total(),
        dtypes=dict(sizes.most_common()),
        files={path.name: path.stat().st_size for path in sorted(beside.iterdir()) if path.is_file()},
        tokens=tokens,
        missing=missing + lacking,
    )


def _tokenizer(part: str, folder: Path, config) -> tuple[int | None, list[str]]:
    """The size of the vocabulary, and what is wrong with it."""
    if part == "vqgan":
        return None, []
    if not Folder(folder).first(*(form[0] for form in TOKENIZERS)):
        return None, [f"{TOKENIZERS[0][0]}: captions cannot be read"]
    rows = config.encoder_vocab_size if part == "dalle" else config.text.vocab_size
    try:
        tokenizer = CaptionTokenizer.from_pretrained(folder)
        tokenizer.check_vocab_size(rows)
    except UserError as error:
        return None, [str(error)]
    return tokenizer.vocab_size, []
