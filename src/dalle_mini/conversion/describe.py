"""The content of a source of weights, told from configs and headers: no weights are read."""

import dataclasses
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from dalle_mini.conversion.convert import NETWORKS, check_kind, config_of, part_of
from dalle_mini.errors import UserError
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.runtime.console import one_line
from dalle_mini.text import CaptionTokenizer
from dalle_mini.weights.bundle import PREPROCESSOR, SHIPPED_NAME, VOCABULARY, WORD_LISTS, check_fit
from dalle_mini.weights.folder import CONFIG, load_config, load_tensors
from dalle_mini.weights.hub.repository import TOKENIZERS, Folder, Needs, Repository, open_source
from dalle_mini.weights.model_card import ARCHITECTURES, LOADERS


@dataclasses.dataclass(frozen=True)
class Description:
    """One network.

    Attributes:
        folder: its folder.
        network: "DalleBart", "VQGAN" or "CLIP".
        architecture: in words; "" where it cannot be told.
        parameters: the number of parameters.
        dtypes: the number of parameters by stored type.
        files: sizes of the files in the folder, bytes.
        tokens: the vocabulary of the tokenizer in the folder; None without one.
        missing: the reasons why it cannot be loaded or used, one line each.
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
        lines = [f"{self.network}  {one_line(self.folder)}"]
        if self.architecture:
            lines.append(f"  architecture  {self.architecture}")
        if self.dtypes:
            stored = ", ".join(f"{dtype} {count:,}" for dtype, count in self.dtypes.items())
            lines.append(f"  parameters    {self.parameters:,} ({stored})")
        lines += [f"  file          {one_line(name)}  {size:,} bytes" for name, size in self.files.items()]
        if self.tokens is not None:
            lines.append(f"  tokenizer     {self.tokens} tokens")
        return "\n".join([*lines, *(f"  missing       {one_line(line)}" for line in self.missing or ["nothing"])])

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def describe(source: str | os.PathLike | None, **hub) -> list[Description]:
    """A network, or the three of a bundle. The description of a broken or missing part says so.

    Args:
        source: a folder, a `.ckpt`, a repository of the Hub or a wandb artifact; None is the model that ships.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, as in `hub.open_source`.
    Raises:
        UserError: there is no network at all, or a network that is not in a bundle has no readable config.
    """
    place = open_source(SHIPPED_NAME if source is None else source, **hub)
    beside = Needs(optional=(*WORD_LISTS, PREPROCESSOR, VOCABULARY, *TOKENIZERS[0], *TOKENIZERS[1]))
    # `generate` looks for the first two; the others tell of a bundle without DalleBart.
    first = place.first(f"dalle/{CONFIG}", CONFIG, f"vqgan/{CONFIG}", f"clip/{CONFIG}")
    if first in (None, CONFIG):
        return [_network(place.take("", beside))]
    described = [_part(place, part, beside) for part in NETWORKS]
    described[1].missing.extend(_misfit({part: one.folder for part, one in zip(NETWORKS, described, strict=True)}))
    return described


def _part(place: Folder | Repository, part: str, needs: Needs) -> Description:
    """A bundle's part, whatever state it is in."""
    folder = Path(str(place)) / part
    try:
        folder = place.take(part, needs)
        return _network(folder, part)
    except UserError as error:
        nothing: dict[str, Any] = {"architecture": "", "parameters": 0, "dtypes": {}, "tokens": None}
        files, network = _file_sizes(folder), NETWORKS[part].__name__
        return Description(folder=folder, network=network, files=files, missing=[str(error)], **nothing)


def _misfit(folders: dict[str, Path]) -> list[str]:
    """The reasons why a bundle's VQGAN cannot draw its DalleBart's tokens; none where either is broken by itself."""
    try:
        dalle, vqgan = (config_of(part, folders[part]) for part in ("dalle", "vqgan"))
    except UserError:
        return []
    try:
        check_fit(dalle, vqgan, folders)
    except UserError as error:
        return [str(error)]
    return []


def _network(folder: Path, expected: str | None = None) -> Description:
    """A network; `expected` is the part of a bundle that it should be."""
    fields = load_config(folder)
    part = part_of(fields, folder)
    try:
        config = NETWORKS[part].config_class.from_dict(fields)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    sizes: Counter[str] = Counter()
    missing = []
    try:
        check_kind(expected or part, part, folder)
    except UserError as error:
        missing.append(str(error))
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
    if isinstance(config, DalleBartConfig) and config.normalize_text and not Folder(beside).first(*WORD_LISTS):
        lacking.append(f"{WORD_LISTS[0]}: hashtags in captions are not split into words")
    described = config.to_dict()
    return Description(
        folder=folder,
        network=LOADERS[described["model_type"]],
        architecture=ARCHITECTURES[described["model_type"]](described),
        parameters=sizes.total(),
        dtypes=dict(sizes.most_common()),
        files=_file_sizes(beside),
        tokens=tokens,
        missing=missing + lacking,
    )


def _file_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _tokenizer(part: str, folder: Path, config) -> tuple[int | None, list[str]]:
    """(the size of the vocabulary, the problems of the tokenizer)."""
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
