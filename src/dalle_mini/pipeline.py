"""Prompts to ranked pictures: caption -> tokens of text -> tokens of a picture -> pixels -> CLIP score.

The order of operations and the defaults are those of the published inference notebook. Unlike there, every picture
has a key of its own, derived from (seed, prompt text, picture number), and a row's arithmetic is the same whatever the
other rows are and however many. So a picture depends neither on the other prompts, nor on their order, nor on how many
candidates are drawn beside it. (On a CPU to the bit; a GPU's products may round otherwise for another number of rows.)
"""

import dataclasses
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from dalle_mini.data.images import to_uint8
from dalle_mini.errors import UserError
from dalle_mini.generation import generate_tokens
from dalle_mini.generation.prepare import LEAST_ROWS, prepare, restore
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.models import VQGAN, DalleBart
from dalle_mini.settings import GenerationSettings, check_prompts
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.weights.bundle import PARTS, find_parts, save_companions
from dalle_mini.weights.bundle import SHIPPED as SHIPPED  # for those who look for it here
from dalle_mini.weights.hub import origin
from dalle_mini.weights.pretrained import compute_dtype

BATCH = 32  # pictures that one call draws at most: beyond it arithmetic binds, and more only takes more memory
MAX_CHARACTERS = 2000  # of a prompt are looked at: far more than 64 tokens hold, little enough to normalise at once

logger = logging.getLogger("dalle_mini")
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """The pictures of one prompt, best first.

    Attributes:
        prompt: the prompt as it was given.
        images: `keep` pictures.
        scores: CLIP's logits_per_image, same order.
        tokens: int32 [keep, image_length], same order.
        indices: each picture's number among the candidates, same order.
        timings: seconds of each stage; the first prompt's hold the compilation.
        settings: as resolved; `guidance`, `temperature` and `top_k` are never None.
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float]
    tokens: np.ndarray
    indices: list[int]
    timings: dict[str, float]
    settings: GenerationSettings


class DalleMini:
    """The whole pipeline. Make one with `from_pretrained`.

    >>> pipe = DalleMini.from_pretrained()
    >>> best = pipe.generate(["a red apple"], candidates=16, keep=4, seed=0)[0].images[0]

    Args:
        model, vqgan, ranker, tokenizer: the parts; `model` is kept as `generation.prepare` returns it.
        normalizer: what a caption goes through before the tokenizer; None leaves it as it is.
        folders: where each part came from, as of `find_parts`, for `provenance` and `save_pretrained`.
    Raises UserError where the VQGAN or the tokenizer does not fit the model.
    """

    def __init__(
        self,
        model: DalleBart,
        vqgan: VQGAN,
        ranker: ClipRanker,
        tokenizer: CaptionTokenizer,
        normalizer: CaptionNormalizer | None,
        folders: Mapping[str, Path],
        dtype: str = "float32",
    ):
        _check_fit(model.config, vqgan.config, folders)
        tokenizer.check_vocab_size(model.config.encoder_vocab_size)
        self.model, self.vqgan, self.ranker = prepare(model), vqgan, ranker
        self.tokenizer, self.normalizer = tokenizer, normalizer
        self.folders, self.dtype = folders, dtype
        graphdef, self._vqgan_state = nnx.split(vqgan)

        def decode(state, tokens):
            # One by one: a picture's pixels are the same whatever is decoded beside it, in little memory.
            network = nnx.merge(graphdef, state)
            return jax.lax.map(lambda row: network.decode(row[None])[0], tokens)

        self._decode = jax.jit(decode)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike | None = None,
        vqgan: str | os.PathLike | None = None,
        clip: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> "DalleMini":
        """Load the three networks.

        >>> DalleMini.from_pretrained("dalle-mini/dalle-mini", vqgan="dalle-mini/vqgan_imagenet_f16_16384",
        ...                           clip="openai/clip-vit-base-patch32")

        Args:
            source: a bundle (sub-folders `dalle`, `vqgan`, `clip`), or DalleBart alone: a folder, a repository of the
                Hugging Face Hub or a wandb artifact (`entity/project/name:version`); None is the model that ships with
                the package.
            vqgan, clip: those networks' sources; None takes the bundle's.
            dtype: the type of the computation, "float32", "bfloat16" or "float16".
            revision: branch, tag or commit of `source` on the Hub; every repository may also be written with its own,
                `owner/name@revision`.
            token: for private and gated repositories; `HF_TOKEN` or the token of `hf auth login` by default.
            cache_dir: where downloads are kept; the Hub client's cache by default.
            local_files_only: make no request.
        Raises UserError, naming the file or the repository and the way out, where something is missing, damaged or
        does not fit.
        """
        parts = find_parts(
            source,
            vqgan,
            clip,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls.from_parts(parts, dtype)

    @classmethod
    def from_parts(cls, folders: Mapping[str, Path], dtype: str = "float32") -> "DalleMini":
        """Load the networks from the folders that `find_parts` gives."""
        compute = compute_dtype(dtype)
        model = DalleBart.from_pretrained(folders["dalle"], dtype=compute)
        vqgan_model = VQGAN.from_pretrained(folders["vqgan"], dtype=compute)
        _check_fit(model.config, vqgan_model.config, folders)  # before the wait for CLIP
        return cls(
            model,
            vqgan_model,
            ClipRanker.from_pretrained(folders["clip"], dtype=compute),
            CaptionTokenizer.from_pretrained(folders["dalle"]),
            CaptionNormalizer(folders.get("words")) if model.config.normalize_text else None,
            folders,
            compute.name,
        )

    def save_pretrained(self, folder: str | os.PathLike, dtype=None) -> None:
        """Write a bundle: the networks, each in our format, with tokenizers, word list and card beside them.

        Args:
            dtype: to store floating-point parameters in, such as float16; as they are in memory by default.
        Raises UserError where the folder cannot be written.
        """
        folder = Path(folder)
        for part, network in zip(PARTS, (restore(self.model), self.vqgan, self.ranker.clip), strict=True):
            network.save_pretrained(folder / part, dtype=dtype)
        self.tokenizer.save(folder / "dalle")
        self.ranker.tokenizer.save(folder / "clip")
        save_companions(self.folders, folder)

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Upload a bundle to the Hub and return the commit's address.

        The options are `private`, `token`, `commit_message`, `revision` and `license`, as in `publish.push`.
        """
        from dalle_mini.weights.publish import push

        return push(self.save_pretrained, repo_id, **options)

    def generate(
        self,
        prompts: Sequence[str],
        candidates: int = 16,
        keep: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Progress | None = None,
    ) -> list[Result]:
        """Draw `candidates` pictures for each prompt and return the best `keep` of them (None: 4, or all of fewer).

        The arguments are those of `GenerationSettings`. `progress(stage, done, total)` is called as the stages
        "tokens", "pictures" and "scores" advance, in image tokens and in pictures over all prompts.
        Raises UserError on a blank prompt and on a value that makes no sense.
        """
        settings = GenerationSettings(candidates, keep, seed, guidance, temperature, top_k, top_p)
        return list(self.stream(prompts, settings, progress))

    def stream(
        self, prompts: Sequence[str], settings: GenerationSettings | None = None, progress: Progress | None = None
    ) -> Iterator[Result]:
        """Like `generate`, but each prompt's result comes as soon as it is drawn."""
        settings = self._resolve(settings or GenerationSettings())
        prompts = check_prompts(prompts)
        started = time.perf_counter()
        input_ids, attention_mask = self.encode_text(prompts)
        text_seconds = (time.perf_counter() - started) / len(prompts)
        report = _Totals(progress, len(prompts) * settings.candidates, self.model.config.image_length)
        for prompt, ids, mask in zip(prompts, input_ids, attention_mask, strict=True):
            yield self._draw(prompt, ids, mask, settings, text_seconds, report)

    def encode_text(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int32 [prompts, text_length], of the prompts as the model reads them.

        Raises UserError on a prompt of which normalisation leaves nothing. One that is too long is cut and logged.
        """
        config = self.model.config
        captions = [prompt[:MAX_CHARACTERS] for prompt in prompts]
        if self.normalizer is not None:
            captions = [self.normalizer(caption) for caption in captions]
        for number, caption in enumerate(captions, 1):
            if not caption.strip():
                raise UserError(f"prompt {number} has no words that the model can read: {prompts[number - 1][:60]!r}")
        limit = config.text_length
        for number, (prompt, caption) in enumerate(zip(prompts, captions, strict=True), 1):
            if len(prompt) > MAX_CHARACTERS or self.tokenizer.count(caption) > limit:
                logger.warning(
                    "prompt %d is too long and was truncated: the model reads %d tokens of it", number, limit
                )
        return self.tokenizer(captions, max_length=limit)

    def provenance(self) -> dict:
        """What drew the pictures, for a report: where each model is from, its SHA-256, the dtype and the device."""
        return {
            "models": self._identities,
            "dtype": self.dtype,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }

    @functools.cached_property
    def _identities(self) -> dict[str, dict]:
        return {part: _identity(self.folders[part]) for part in PARTS}

    @functools.cached_property
    def _uncond(self) -> tuple[np.ndarray, np.ndarray]:
        """The row of an empty caption, which no normaliser has seen: [1, text_length] each."""
        return self.tokenizer([""], max_length=self.model.config.text_length)

    def _resolve(self, settings: GenerationSettings) -> GenerationSettings:
        codebook = self.vqgan.config.n_embed
        wanted = settings.top_k or self.model.config.top_k or codebook  # 0 in a config means no limit
        defaults = {name: getattr(self.model.config, name) for name in ("guidance", "temperature")}
        chosen = {name: default for name, default in defaults.items() if getattr(settings, name) is None}
        return dataclasses.replace(settings, **chosen, top_k=min(wanted, codebook))

    def _draw(self, prompt, input_ids, attention_mask, settings, text_seconds, report) -> Result:
        timings = {"text": text_seconds}
        clock = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            timings[stage], clock = now - clock, now

        chunks = _chunks(settings.candidates)
        tokens = []
        for start, size in chunks:
            before = report.done("tokens")
            tokens.append(
                self._draw_tokens(
                    prompt,
                    input_ids,
                    attention_mask,
                    start,
                    size,
                    settings,
                    lambda count, _, before=before, size=size: report.reach("tokens", before + count * size),
                )
            )
        lap("tokens")
        images = []
        for rows in tokens:
            images.append(to_uint8(self._decode(self._vqgan_state, rows)))
            report.reach("pictures", report.done("pictures") + len(rows))
        images = np.concatenate(images)
        lap("pictures")
        scores = self.ranker.scores(images, prompt[:MAX_CHARACTERS])
        order = self.ranker.rank(scores, settings.keep)
        report.reach("scores", report.done("scores") + settings.candidates)
        lap("scores")
        return Result(
            prompt=prompt,
            images=[Image.fromarray(images[index]) for index in order],
            scores=[float(scores[index]) for index in order],
            tokens=np.concatenate(tokens)[order],
            indices=[int(index) for index in order],
            timings=timings,
            settings=settings,
        )

    def _draw_tokens(self, prompt, input_ids, attention_mask, start, size, settings, progress) -> np.ndarray:
        """Pictures `start` .. `start + size - 1` of a prompt, int32 [size, image_length]."""
        uncond_ids, uncond_mask = self._uncond
        rows = max(size, LEAST_ROWS)
        tokens = generate_tokens(
            self.model,
            input_ids[None],
            attention_mask[None],
            picture_keys(settings.seed, prompt, np.arange(start, start + rows))[None],  # [1 caption, rows]
            guidance=settings.guidance,
            uncond_input_ids=uncond_ids,
            uncond_attention_mask=uncond_mask,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            codebook_size=self.vqgan.config.n_embed,
            progress=progress,
        )
        return np.asarray(tokens)[0, :size]


def _chunks(candidates: int) -> list[tuple[int, int]]:
    """(first, number) of each call's pictures: as even as may be, so that few programs are compiled."""
    calls = -(-candidates // BATCH)
    size = -(-candidates // calls)
    return [(start, min(size, candidates - start)) for start in range(0, candidates, size)]


def picture_keys(seed: int, prompt: str, indices: np.ndarray) -> jax.Array:
    """JAX keys [n]: the seed, into it the words of the prompt's SHA-256, and into that each picture's number."""
    key = jax.random.key(seed, impl="threefry2x32")
    for word in np.frombuffer(hashlib.sha256(prompt.encode("utf-8")).digest(), "<u4"):
        key = jax.random.fold_in(key, word)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(indices, jnp.uint32))


class _Totals:
    """How far each stage is over all prompts, passed on as it changes."""

    def __init__(self, progress: Progress | None, pictures: int, image_length: int):
        self._progress = progress
        self._totals = {"tokens": pictures * image_length, "pictures": pictures, "scores": pictures}
        self._done = {}
        for stage in self._totals:
            self.reach(stage, 0)

    def done(self, stage: str) -> int:
        return self._done[stage]

    def reach(self, stage: str, count: int) -> None:
        self._done[stage] = count
        if self._progress is not None:
            self._progress(stage, count, self._totals[stage])


def _check_fit(config, vqgan_config, folders: Mapping[str, Path]) -> None:
    """The VQGAN's codebook and grid against the decoder's vocabulary and length; UserError names both folders.

    A decoder's vocabulary may be a little larger than the codebook, as mega's is (16415 for 16384): those ids are
    padding that is never sampled. One that is a lot larger, or smaller, was trained on another codebook.
    """
    both = f"{folders['vqgan']} does not fit {folders['dalle']}"
    if not 0.75 * config.image_vocab_size <= vqgan_config.n_embed <= config.image_vocab_size:
        raise UserError(
            f"{both}: its codebook has n_embed {vqgan_config.n_embed}, the decoder's image_vocab_size is "
            f"{config.image_vocab_size}: use the VQGAN that the model was trained with"
        )
    if vqgan_config.grid**2 != config.image_length:
        raise UserError(
            f"{both}: its pictures are {vqgan_config.grid}x{vqgan_config.grid} tokens, the decoder's image_length is "
            f"{config.image_length}: use the VQGAN that the model was trained with"
        )


def _identity(folder: Path) -> dict:
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
