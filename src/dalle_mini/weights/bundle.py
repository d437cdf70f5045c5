"""The parts of a pipeline: the folders of its three networks, which may lie under one roof.

    a-bundle/dalle/   DalleBart, its tokenizer, the word list of its captions' hashtags, and the words it has seen
             vqgan/   VQGAN
             clip/    CLIP, its tokenizer and how it wants its pictures

Nothing here imports JAX: what is missing shows, and downloads begin, before the wait for it.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.runtime import files, parsing
from dalle_mini.weights.folder import CONFIG, load_config
from dalle_mini.weights.hub.repository import SHIPPED as SHIPPED  # a bundle
from dalle_mini.weights.hub.repository import (
    SHIPPED_NAME,
    Folder,
    Needs,
    Repository,
    blaming_cache,
    open_source,
    origin,
)

OF_EMOJI = ("emoji.json", "scenes.json")  # what an emoji model knows, for benchmarks/emoji_quality.py
SHIPPED_TOKENS = "1f4aad4b84cf21c5"  # the fingerprint of its VQGAN, as `models.fingerprint` has it
PARTS = ("dalle", "vqgan", "clip")
WORD_LISTS = ("words.txt", "enwiki-words-frequency.txt")  # ours, and the published name
VOCABULARY = "vocabulary.json"  # beside a DalleBart: the words that it has seen, see text/known_words.py
PREPROCESSOR = "preprocessor_config.json"
TOKENS_RECORD = "tokens.json"  # beside a DalleBart: the identity of the VQGAN whose tokens it was trained on
WORDS_REPOSITORY = "dalle-mini/dalle-mini"  # has the published list
CARD = "README.md"
LICENCES = ("LICENSE", "art_credits.md", "art_licences.md")  # beside the card
COMPANIONS = {  # of the published DalleBarts
    "vqgan": "dalle-mini/vqgan_imagenet_f16_16384@e93a26e7707683d349bf5d5c41c5b0ef69b677a9",
    "clip": "openai/clip-vit-base-patch32",
}

RANKER = Needs(tokenizer=True, optional=(PREPROCESSOR,))

logger = logging.getLogger("dalle_mini")


def find_parts(
    source: str | os.PathLike | None = None,
    vqgan: str | os.PathLike | None = None,
    clip: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> dict[str, Path]:
    """The folders of the parts, fetched where they are elsewhere, and under "words" the word list if there is one.

    Args:
        source: a bundle, or DalleBart alone: a folder, a repository of the Hub or a wandb artifact, as in `hub`. None
            (or "shipped") is the model that ships with the package.
        vqgan, clip: those networks' own sources, or bundles that hold them; None takes those of `source`.
        revision: of `source`; that of another repository is written `owner/name@revision`.
        token, cache_dir, local_files_only: as in `hub.resolve`.
    Raises:
        UserError: a part is missing, or cannot be fetched.
    """
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    place = open_source(SHIPPED_NAME if source is None else source, revision=revision, **options)
    config = place.first(f"dalle/{CONFIG}", CONFIG)
    if config is None:
        raise UserError(f"{place} holds no model: neither a bundle (dalle/, vqgan/, clip/) nor DalleBart's {CONFIG}")
    inside = "" if config == CONFIG else "dalle"
    if not inside and isinstance(place, Folder):
        load_config(place.path)  # tells if it is the folder of a training run
    if not inside and (vqgan is None or clip is None):
        advised = " ".join(f"--{part} {name}" for part, name in companions(place).items())
        raise UserError(
            f"{place} is DalleBart alone: name the other networks with --vqgan and --clip (vqgan= and clip= in "
            f"Python), such as {advised}"
        )
    vqgan_place = place if vqgan is None else open_source(vqgan, **options)
    clip_place = place if clip is None else open_source(clip, **options)
    described = place.take(inside, Needs(weights=False, names=(CONFIG,)))
    with blaming_cache(described):
        is_normalising = load_config(described).get("normalize_text")
    lists = WORD_LISTS if is_normalising else ()
    parts = {
        "dalle": place.take(inside, Needs(tokenizer=True, optional=(TOKENS_RECORD, VOCABULARY, *lists))),
        "vqgan": vqgan_place.take("vqgan" if vqgan is None else _inside(vqgan_place, "vqgan")),
        "clip": clip_place.take("clip" if clip is None else _inside(clip_place, "clip"), RANKER),
    }
    words = word_list(parts["dalle"], **options) if is_normalising else None
    return parts | ({"words": words} if words else {})


def companions(place: Folder | Repository) -> dict[str, str]:
    """The sources of the VQGAN and the CLIP that go with a DalleBart that is alone, to be advised.

    A model that was trained here has a record of its VQGAN's tokens, and its run's settings in the folder above. Of
    other models the published networks are the best guess.
    """
    if not isinstance(place, Folder):
        return COMPANIONS
    if _record(place.path / TOKENS_RECORD).get("vqgan") == SHIPPED_TOKENS:
        return {"vqgan": SHIPPED_NAME, "clip": SHIPPED_NAME}
    run = _record(place.path.resolve().parent / CONFIG)
    sections = [section for name in ("samples", "sources") if isinstance(section := run.get(name), dict)]
    named = {part: [section[part] for section in sections if section.get(part)] for part in COMPANIONS}
    return {part: named[part][0] if named[part] else COMPANIONS[part] for part in COMPANIONS}


def _record(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where none can be read: no advice depends on it."""
    try:
        return parsing.read_object(path)
    except (OSError, ValueError):
        return {}


def find_part(part: str, source: str | os.PathLike, *, weights: bool = True, **options) -> Path:
    """The folder of one of `PARTS`, of a bundle or alone, with its tokenizer; `options` are those of `find_parts`.

    Without `weights` only what is beside them is fetched, the config too.

    Raises:
        UserError: it is missing, or cannot be fetched.
    """
    place = open_source(source, **options)
    beside = () if weights else (CONFIG,)
    text = Needs(weights, tokenizer=True, optional=(*beside, TOKENS_RECORD, *WORD_LISTS))
    needs = {"dalle": text, "vqgan": Needs(weights, optional=beside), "clip": RANKER}[part]
    return place.take(_inside(place, part), needs)


def has_part(part: str, source: str | os.PathLike, **options) -> bool:
    """Whether `source` is a bundle with that one of `PARTS`. Raises UserError where it cannot be looked at."""
    return bool(_inside(open_source(source, **options), part))


def _inside(place: Folder | Repository, part: str) -> str:
    """Where the part lies in `place`: in a folder of its own, as in a bundle, or right there."""
    return part if place.first(f"{part}/{CONFIG}", CONFIG) == f"{part}/{CONFIG}" else ""


def check_fit(config, tokenizer, folders: Mapping[str, Path]) -> None:
    """The VQGAN's codebook and grid against the decoder's vocabulary and length; UserError names both folders.

    A decoder's vocabulary may be a little larger than the codebook, as mega's is (16415 for 16384): those ids are
    padding that is never sampled. One that is a lot larger, or smaller, was trained on another codebook.
    """
    both = f"{folders['vqgan']} does not fit {folders['dalle']}"
    if not 0.75 * config.image_vocab_size <= tokenizer.codebook_size <= config.image_vocab_size:
        raise UserError(
            f"{both}: its codebook has n_embed {tokenizer.codebook_size}, the decoder's image_vocab_size is "
            f"{config.image_vocab_size}: use the VQGAN that the model was trained with"
        )
    if tokenizer.grid**2 != config.image_length:
        raise UserError(
            f"{both}: its images are {tokenizer.grid}x{tokenizer.grid} tokens, the decoder's image_length is "
            f"{config.image_length}: use the VQGAN that the model was trained with"
        )


def save_companions(parts: Mapping[str, Path], target: Path) -> None:
    """Copy what a bundle holds beside its networks and their tokenizers into the bundle `target`.

    Raises:
        UserError: a file cannot be read or written.
    """
    companions = {
        target / "clip" / PREPROCESSOR: parts["clip"] / PREPROCESSOR,
        **{target / "dalle" / name: parts["dalle"] / name for name in (TOKENS_RECORD, VOCABULARY)},
    }
    if "words" in parts:
        companions[target / "dalle" / parts["words"].name] = parts["words"]
    bundle = parts["dalle"].parent
    if all(parts[part] == bundle / part for part in PARTS):  # its card tells where the weights come from
        companions |= {target / name: bundle / name for name in (CARD, *LICENCES, *OF_EMOJI)}
    for new, old in companions.items():
        if old.is_file():
            copy_companion(old, new)


def copy_companion(old: Path, new: Path) -> None:
    """Copy a file that lies beside weights, of no more bytes than a list of words may have.

    Raises:
        UserError: it cannot be read or written.
    """
    files.write_whole(new, parsing.read_bytes(old, "words_bytes"))


def word_list(folder: Path, **options) -> Path | None:
    """The list of words beside a tokenizer, or else the published one; None, and a notice, where that is not to be had.

    `options` are `token`, `cache_dir` and `local_files_only` of `find_parts`.
    """
    name = Folder(folder).first(*WORD_LISTS)
    if name:
        return folder / name
    published = WORD_LISTS[-1]
    # First without a request: a cached list will do, of whatever commit.
    for local_files_only in (True, options.get("local_files_only", False)):
        repository = Repository(WORDS_REPOSITORY, **options | {"local_files_only": local_files_only})
        try:
            return repository.take(needs=Needs(weights=False, names=(published,))) / published
        except UserError as error:
            reason = error
    logger.warning("hashtags are not split into words: %s has no %s, and %s", folder, WORD_LISTS[0], reason)
    return None


def identity(folder: Path) -> dict:
    """Repository and commit, or the folder's name; weight files and the first 16 hex digits of their joint SHA-256."""
    kinds = ("*.safetensors", "flax_model*.msgpack", "pytorch_model*.bin", "*.ckpt")
    files = next(filter(None, (sorted(folder.glob(kind)) for kind in kinds)), [])
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    whence = origin(folder) or {"folder": folder.name}
    return whence | {"weights": [path.name for path in files], "sha256": digest.hexdigest()[:16]}
