"""Any published checkpoint -> our folder, tensor by tensor from file to file: the model is never built."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dalle_mini.errors import UserError
from dalle_mini.models import CLIP, VQGAN, DalleBart
from dalle_mini.models.tokens_record import check_tokens, record_rounded, vqgan_fingerprints
from dalle_mini.runtime import files
from dalle_mini.text import CaptionTokenizer
from dalle_mini.weights.bundle import (
    PREPROCESSOR,
    TOKENS_RECORD,
    VOCABULARY,
    WORD_LISTS,
    check_fit,
    copy_companion,
    find_parts,
    save_companions,
)
from dalle_mini.weights.folder import CONFIG, load_config, save_tensors
from dalle_mini.weights.hub.repository import TOKENIZERS, Folder, Needs, blaming_cache, open_source
from dalle_mini.weights.pretrained import Pretrained

_TOKENIZERS = ", or ".join(" and ".join(form) for form in TOKENIZERS)

BESIDE = (
    *WORD_LISTS,
    PREPROCESSOR,
    TOKENS_RECORD,
    VOCABULARY,
)  # files that are copied with a network, if they are there

NETWORKS: dict[str, type[Pretrained]] = {"dalle": DalleBart, "vqgan": VQGAN, "clip": CLIP}


def part_of(fields: dict, folder: Path) -> str:
    """Which of `NETWORKS` the config of a folder describes. Raises UserError where it is none of them."""
    kind = fields.get("model_type")
    if kind in ("dallebart", "bart"):
        return "dalle"
    if kind == "clip":
        return "clip"
    if kind in (None, "", "vqgan") and "ch_mult" in fields:  # the published VQGANs do not say what they are
        return "vqgan"
    raise UserError(
        f"{folder / CONFIG}: model_type={kind!r:.60} is none of dallebart, bart (as of 2021), vqgan, clip: "
        "the model belongs to another program"
    )


def check_kind(part: str, kind: str, folder: Path) -> None:
    """Raises UserError where a bundle's part, "vqgan" for example, is of another kind."""
    if kind != part:
        raise UserError(
            f"{folder} holds a {NETWORKS[kind].__name__} where a bundle's {NETWORKS[part].__name__} should be: "
            "name or put one there"
        )


def config_of(part: str, folder: Path) -> Any:
    """The config of a bundle's part. Raises UserError where it is broken or of another network."""
    fields = load_config(folder)
    check_kind(part, part_of(fields, folder), folder)
    try:
        return NETWORKS[part].config_class.from_dict(fields)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    vqgan: str | os.PathLike | None = None,
    clip: str | os.PathLike | None = None,
    *,
    dtype: str | None = None,
    **hub,
) -> list[Path]:
    """Write a network, or a bundle of all three, in our format, with the tokenizers and the word list.

    Args:
        source: a network or a bundle: a folder, a `.ckpt`, a repository of the Hub or a wandb artifact. It may also be
            a training run's checkpoint, or a run, of which the newest checkpoint is taken.
        target: the folder to make. It must not be there yet; it appears when everything in it is written.
        vqgan, clip: with these two, `source` is DalleBart and the result is a bundle.
        dtype: the type to store floating-point values in, such as "float16"; by default the one of the source.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, as in `hub.open_source`.
    Returns:
        The folders of the networks written.
    Raises:
        UserError: a source is missing, damaged or not one of ours, the parts of a bundle do not go together, or the
            target cannot be written.
    """
    named, source, target = source, os.path.expanduser(source), Path(target).expanduser()
    if os.path.lexists(target):
        raise UserError(f"{target} exists already: choose another folder, or remove it")
    if (vqgan is None) != (clip is None):
        raise UserError("a bundle needs both --vqgan and --clip (vqgan= and clip= in Python)")
    stored, stage, exported = None if dtype is None else jnp.dtype(dtype), target, None
    files.remove_leftovers(target.parent)
    with contextlib.ExitStack() as until_written:
        try:
            if _is_of_a_run(source):
                from dalle_mini.training.export import export_checkpoint

                exported = until_written.enter_context(files.work_folder(target))
                export_checkpoint(str(source), exported)
                source = exported
            parts = _bundle(source, vqgan, clip, hub)
            if parts is not None:
                _check_bundle(parts)
                with files.written_beside(target, replace=False) as stage:
                    for part in NETWORKS:
                        _network(part, parts[part], stage / part, stored)
                    save_companions(parts, stage)
                return [target / part for part in NETWORKS]
            folder = open_source(source, **hub).take("", Needs(optional=(*BESIDE, *TOKENIZERS[0], *TOKENIZERS[1])))
            with blaming_cache(folder):
                part = part_of(load_config(folder), folder)
                with files.written_beside(target, replace=False) as stage:
                    _network(part, folder, stage, stored)
            return [target]
        except FileExistsError:
            raise UserError(f"{target} now exists, by another run: choose another folder, or remove it") from None
        except OSError as error:
            raise UserError(f"cannot write {target}: {files.reason(error)}") from None
        except UserError as error:
            said = str(error) if exported is None else str(error).replace(str(exported), str(named))
            raise UserError(said.replace(str(stage), str(target))) from None


def _check_bundle(parts: dict[str, Path]) -> None:
    configs = {part: config_of(part, parts[part]) for part in NETWORKS}
    check_fit(configs["dalle"], configs["vqgan"], parts)
    check_tokens(parts)
    for part in ("dalle", "clip"):
        if not _has_tokenizer(parts[part]):
            raise UserError(f"{parts[part]} has no tokenizer, and a bundle needs it: put {_TOKENIZERS} there")


def _is_of_a_run(source: str | os.PathLike) -> bool:
    """Whether it is a run, its checkpoints or one of them: records tell, so Orbax is not loaded."""
    if str(source).startswith("gs://"):
        return True
    folder = Path(source).expanduser()
    return folder.is_dir() and any(any(folder.glob(f"{at}record")) for at in ("", "*/", "checkpoints/*/"))


def _has_tokenizer(folder: Path) -> bool:
    return bool(Folder(folder).first(*(form[0] for form in TOKENIZERS)))


def _bundle(source, vqgan, clip, hub: dict) -> dict[str, Path] | None:
    """The folders of a bundle's parts, or None where `source` is a network by itself."""
    if vqgan is None:
        path = Path(source).expanduser()
        place = Folder(path) if path.is_dir() else None if path.is_file() else open_source(source, **hub)
        if place is None or not place.first(f"dalle/{CONFIG}"):
            return None
    return find_parts(source, vqgan, clip, **hub)


def _network(part: str, folder: Path, target: Path, dtype) -> Path:
    """Write one network with its tokenizer, and with its preprocessor if it is a CLIP."""
    config, tensors = NETWORKS[part].open_pretrained(folder)
    save_tensors(target, config.to_dict(), tensors, dtype)
    beside = folder if folder.is_dir() else folder.parent
    if part != "vqgan" and _has_tokenizer(beside):
        CaptionTokenizer.from_pretrained(beside).save(target)
    if part == "vqgan" and (dtype is not None or (beside / TOKENS_RECORD).is_file()):
        record_rounded(target, vqgan_fingerprints(folder)[-1])
    for name in BESIDE:
        if part != "vqgan" and (beside / name).is_file():
            copy_companion(beside / name, target / name)
    return target
