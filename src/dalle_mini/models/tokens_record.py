"""`tokens.json`: which VQGAN's tokens a DalleBart that was trained here draws. With another VQGAN they are noise.

    dalle/tokens.json    {"vqgan": fingerprint of the VQGAN}                    as `models.fingerprint` has it
    vqgan/tokens.json    the same, and "stored": the fingerprint of its files, where it was rounded to another type

Published models have neither file, and nothing is checked of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import write_whole
from dalle_mini.runtime.parsing import read_record
from dalle_mini.weights.bundle import TOKENS_RECORD


@dataclass(frozen=True)
class _Record:
    vqgan: str
    stored: str | None = None


def known_tokens(dalle: Path) -> str | None:
    """The fingerprint of the VQGAN whose tokens the model in a folder draws; None where nothing tells.

    Raises:
        UserError: its record is damaged.
    """
    record = dalle / TOKENS_RECORD
    return read_record(record, _Record).vqgan if record.is_file() else None


def vqgan_fingerprints(folder: Path) -> tuple[str, ...]:
    """The fingerprint of the VQGAN in a folder, and that of the one that it is a rounded copy of.

    Raises:
        UserError: the folder cannot be read.
    """
    from dalle_mini.models.fingerprint import stored_fingerprint

    stored, path = stored_fingerprint(folder), (folder if folder.is_dir() else folder.parent) / TOKENS_RECORD
    record = read_record(path, _Record) if path.is_file() else None
    return (stored, record.vqgan) if record is not None and record.stored == stored else (stored,)


def check_tokens(folders: Mapping[str, Path]) -> None:
    """Check that the model in `folders["dalle"]` draws the tokens of the VQGAN in `folders["vqgan"]`.

    The VQGAN's encoding half is read and hashed where the model tells: 0.1 s of a processor for one of 16,384 codes.

    Raises:
        UserError: it draws those of another one.
    """
    known = known_tokens(folders["dalle"])
    if known is not None and known not in (here := vqgan_fingerprints(folders["vqgan"])):
        raise UserError(
            f"{folders['dalle']} draws the tokens of another VQGAN ({known}) than {folders['vqgan']} ({here[0]}): "
            "name the one that it was trained with (--vqgan, vqgan= in Python)"
        )


def record_rounded(folder: Path, of: str) -> None:
    """Write down beside a VQGAN that was stored in another type which one it is: `of` is that one's fingerprint."""
    from dalle_mini.models.fingerprint import stored_fingerprint

    if (stored := stored_fingerprint(folder)) != of:
        write_whole(folder / TOKENS_RECORD, json.dumps({"vqgan": of, "stored": stored}) + "\n")
