"""Prompts to ranked images: caption -> tokens of text -> tokens of an image -> pixels -> CLIP score.

The order of operations and the defaults are those of the published inference notebook. Unlike there, every image has a
key of its own, derived from (seed, prompt text, candidate number), and a row's arithmetic is the same whatever the
other rows are and however many. So an image depends neither on the other prompts, nor on their order, nor on how many
candidates are drawn beside it, nor on how many devices draw. (This holds on a CPU. A GPU's products may round
otherwise for another number of rows.)
"""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation import canvas as canvases
from dalle_mini.generation.ahead import Ahead
from dalle_mini.generation.canvas import Canvas
from dalle_mini.generation.engine import Engine, Preview, Progress, Result
from dalle_mini.generation.optimize import compute_dtypes, optimize_for_decoding, undo_optimization
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.generation.scheduling import Request, resolved
from dalle_mini.imaging.decoding import load_image
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.models.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini.models.token_model import TokenModel, load_token_model
from dalle_mini.models.tokens_record import check_tokens, known_tokens, record_rounded
from dalle_mini.runtime.xla import Jit
from dalle_mini.settings import GenerationSettings, check_number, check_prompts, check_whole, settings_of_each
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.weights.bundle import PARTS, check_fit, find_parts, identity, save_companions
from dalle_mini.weights.bundle import SHIPPED as SHIPPED  # for those who look for it here

MAX_CHARACTERS = 2000  # of a prompt are read: far more than 64 tokens hold, little enough to normalise at once
PREVIEWS = 8  # of an image while it is drawn

logger = logging.getLogger("dalle_mini")
ImageSource = str | os.PathLike | Image.Image | np.ndarray
Settings = GenerationSettings | Sequence[GenerationSettings]


class DalleMini:
    """The whole pipeline. Make one with `from_pretrained`.

    >>> pipe = DalleMini.from_pretrained()
    >>> best = pipe.generate(["a red apple"], candidates=16, keep=4, seed=0)[0].images[0]

    Args:
        model, vqgan, ranker, tokenizer: the parts; `model` is kept as `generation.optimize` returns it.
        normalizer: applied to captions ahead of the tokenizer; None leaves them as they are.
        folders: where each part came from, as of `find_parts`, for `provenance` and `save_pretrained`.
        dtype: what the parts were loaded in, for `provenance`; "int8" rounds the decoder's weights to 8 bits.
        devices: draw together; None is all local ones.

    Raises:
        UserError: the VQGAN or the tokenizer does not fit the model.
    """

    def __init__(
        self,
        model: TokenModel,
        vqgan: ImageTokenizer,
        ranker: ClipRanker,
        tokenizer: CaptionTokenizer,
        normalizer: CaptionNormalizer | None,
        folders: Mapping[str, Path],
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,
    ):
        check_fit(model.config, vqgan, folders)
        tokenizer.check_vocab_size(model.config.encoder_vocab_size)
        self.engine = Engine(optimize_for_decoding(model, int8=dtype == "int8"), vqgan, ranker, devices)
        self.vqgan, self.ranker = vqgan, ranker
        self.tokenizer, self.normalizer = tokenizer, normalizer
        self.folders, self.dtype = folders, dtype

    @property
    def model(self) -> TokenModel:
        """The seq2seq model, as `optimize_for_decoding` returns it."""
        return self.engine.model

    def use(self, model: TokenModel | None) -> None:
        """Draw with other parameters of the same network from now on; the compiled programs stay.

        None frees the memory of the last ones: nothing can be drawn until there are others.
        """
        self.engine.use(None if model is None else optimize_for_decoding(model, int8=self.dtype == "int8"))

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
            dtype: the type of the computation, "float32", "bfloat16" (on a CPU of the seq2seq model's products alone)
                or "float16"; or "int8", the decoder's weights in 8 bits, and the rest in float32 on a CPU, in
                bfloat16 elsewhere.
            revision: branch, tag or commit of `source` on the Hub; every repository may also be written with its own,
                `owner/name@revision`.
            token: for private and gated repositories; `HF_TOKEN` or the token of `hf auth login` by default.
            cache_dir: where downloads are kept; the Hub client's cache by default.
            local_files_only: make no request.

        Raises:
            UserError: something is missing, damaged or does not fit. The message names the file or the repository, and
                the way out.
        """
        parts = find_parts(
            source, vqgan, clip, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_parts(parts, dtype)

    @classmethod
    def from_parts(cls, folders: Mapping[str, Path], dtype: str = "float32", ahead: Ahead | None = None) -> "DalleMini":
        """Load the networks from the folders that `find_parts` gives, and compile `ahead` the while."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            # Its errors are not asked for: what is wrong with a config is told by the loading below.
            if ahead is not None and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
                pool.submit(ahead.compile, folders, compute_dtypes(dtype)[0], int8=dtype == "int8")
            return cls._load(folders, dtype)

    @classmethod
    def _load(cls, folders: Mapping[str, Path], dtype: str) -> "DalleMini":
        compute, others = compute_dtypes(dtype)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            fits = pool.submit(check_tokens, folders)  # which hashes, and lets this thread run
            model = load_token_model(folders["dalle"], dtype=compute)
            vqgan_model = load_image_tokenizer(folders["vqgan"], dtype=others)
            check_fit(model.config, vqgan_model, folders)  # before the wait for CLIP
            fits.result()
        return cls(
            optimize_for_decoding(model, int8=dtype == "int8", consume=True),
            vqgan_model,
            ClipRanker.from_pretrained(folders["clip"], dtype=others),
            CaptionTokenizer.from_pretrained(folders["dalle"]),
            CaptionNormalizer(folders.get("words")) if model.config.normalize_text else None,
            folders,
            "int8" if dtype == "int8" else compute.name,
        )

    def save_pretrained(self, folder: str | os.PathLike, dtype=None) -> None:
        """Write a bundle: the networks, each in our format, with tokenizers, word list and card beside them.

        Args:
            dtype: to store floating-point parameters in, such as float16; as they are in memory by default.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        undo_optimization(self.model).save_pretrained(folder / "dalle", dtype)
        self.vqgan.save_pretrained(folder / "vqgan", dtype)
        self.ranker.clip.save_pretrained(folder / "clip", dtype)
        self.tokenizer.save(folder / "dalle")
        self.ranker.tokenizer.save(folder / "clip")
        save_companions(self.folders, folder)
        if (known := known_tokens(self.folders["dalle"])) is not None:
            record_rounded(folder / "vqgan", known)

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
        seed: int | Sequence[int] = 0,
        guidance: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        *,
        last_guidance: float | Sequence[float] | None = None,
        negative_prompt: str | Sequence[str] = "",
        decode: str = "auto",
        canvas: Canvas | Sequence[Canvas | None] | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[Result]:
        """Draw `candidates` images for each prompt and return the best `keep` of them (None: 4, or all of fewer).

        The arguments are those of `GenerationSettings`; those from `seed` to `negative_prompt` may be lists, one value
        a prompt. `canvas`, made by `DalleMini.canvas`, is where the images start from: one for all or a list.
        `batch_size` is how many images are drawn together; None is what fits in memory, 32 a device at most.
        `progress(stage, done, total)` follows "tokens", "passes", "pictures" and "scores", as in `Engine.run`.
        In several processes of `jax.distributed`, each makes the same call, draws its share and gets all results.

        Raises:
            UserError: a prompt is blank, or a value makes no sense.
        """
        prompts = check_prompts(prompts)
        settings = settings_of_each(
            len(prompts),
            candidates=candidates,
            keep=keep,
            seed=seed,
            guidance=guidance,
            last_guidance=last_guidance,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            decode=decode,
        )
        return list(self.generate_each(prompts, settings, canvas, batch_size=batch_size, progress=progress))

    def generate_each(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        canvas: Canvas | Sequence[Canvas | None] | None = None,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        alone: bool = False,
    ) -> Iterator[Result]:
        """Like `generate`, but each prompt's result comes as soon as it is drawn.

        `settings` are for all prompts, or a list. With `alone`, processes of `jax.distributed` do not share the work.
        """
        requests = self.requests(prompts, settings, canvas)
        self.note_idle(requests)
        return self.engine.run(requests, progress, batch_size=batch_size, alone=alone)

    def stream(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        canvas: Canvas | Sequence[Canvas | None] | None = None,
        *,
        every: int | None = None,
        previews: int = 1,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[Preview | Result]:
        """Watch the images grow: a `Preview` every so many tokens (None: an eighth), and last each prompt's `Result`.

        The tokens are those of `generate`, whose arguments `options` may be, in place of `settings`. A preview costs
        decoding half of the rows, or all of them, of the first `previews` candidates.

        >>> for preview in pipe.stream(["a red apple"], candidates=4, seed=7):
        ...     preview.images[0].show()
        """
        if options:
            if settings is not None:
                raise UserError(f"give either settings or {', '.join(options)}")
            settings = settings_of_each(len(check_prompts(prompts)), **options)
        every = max(1, self.model.config.image_length // PREVIEWS) if every is None else every
        check_whole("every", every, 1)
        check_whole("previews", previews, 1)
        requests = self.requests(prompts, settings, canvas)
        self.note_idle(requests)
        return self.engine.run(requests, progress, batch_size=batch_size, every=every, previews=previews)

    def redraw(
        self,
        prompt: str,
        number: int,
        settings: GenerationSettings | None = None,
        canvas: Canvas | None = None,
        *,
        progress: Progress | None = None,
    ) -> Result:
        """Candidate `number` of a prompt alone, as `generate` draws it among the others (`Result.indices`)."""
        check_number(number)
        settings = dataclasses.replace(settings or GenerationSettings(), candidates=1, keep=1)
        (request,) = self.requests([prompt], settings, canvas)
        (result,) = self.engine.run([dataclasses.replace(request, first=number)], progress, alone=True)
        return result

    def canvas(
        self, picture: ImageSource, *, top: float | None = None, mask: ImageSource | None = None, vary: float = 0.0
    ) -> Canvas:
        """Start images from a given one, some tokens of which are kept.

        >>> pipe.canvas("photo.jpg", top=0.5)                # its upper half; the lower one is drawn
        >>> pipe.canvas("photo.jpg", mask="mask.png")        # all but what is white in the mask
        >>> pipe.canvas("photo.jpg", vary=0.3)               # seven tenths, others for each candidate

        The picture is resized and its central square cropped. A token is drawn in view of those above it and to its
        left alone, so what is kept below does not shape it.

        Args:
            picture: a file, a PIL image, or uint8 [height, width, 3].
            top: the part of the height that is kept, in whole rows of tokens: at least one, and not all.
            mask: an image as large as `picture`, or a pixel a token; white is drawn anew, also where it covers a
                token in part, and black or transparent places are kept.
            vary: the part of the kept tokens that each candidate draws anew, at places of its own.

        Raises:
            UserError: a picture cannot be read, an array or the mask has another shape, or nothing would be drawn.
        """
        canvases.check_kept(top, mask is not None, vary)
        image = canvases.as_image(load_image(picture) if isinstance(picture, str | os.PathLike) else picture)
        resolution, grid = self.vqgan.resolution, self.vqgan.grid
        if mask is not None:
            mask = load_image(mask, background="black") if isinstance(mask, str | os.PathLike) else mask
            mask = canvases.cells_to_draw(mask, image.size, resolution, grid)
        pixels = resize_and_crop(image, resolution)
        tokens = np.asarray(self._encode(pixels[None].astype(np.float32) / 255))[0]
        if top is not None:
            tokens = canvases.below(tokens, top)
        if mask is not None:
            tokens = np.where(mask.reshape(-1), canvases.DRAWN, tokens)
        return Canvas(tokens, vary)

    @functools.cached_property
    def _encode(self):
        graphdef, state = nnx.split(self.vqgan)
        return functools.partial(Jit(lambda state, pixels: nnx.merge(graphdef, state).encode(pixels)), state)

    def encode_text(self, prompts: Sequence[str], name: str = "prompt {}") -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int32 [prompts, text_length], of the prompts as the model reads them.

        A prompt that is too long is cut and logged. A message calls a prompt `name`, with its number from 1.

        Raises:
            UserError: normalisation leaves nothing of a prompt.
        """
        config = self.model.config
        captions = [prompt[:MAX_CHARACTERS] for prompt in prompts]
        if self.normalizer is not None:
            captions = [self.normalizer(caption) for caption in captions]
        for number, caption in enumerate(captions, 1):
            if not caption.strip():
                text = prompts[number - 1][:60]
                raise UserError(f"{name.format(number)} has no words that the model can read: {text!r}")
        limit = config.text_length
        for number, (prompt, caption) in enumerate(zip(prompts, captions, strict=True), 1):
            if len(prompt) > MAX_CHARACTERS or self.tokenizer.count(caption) > limit:
                logger.warning(
                    "%s is too long and was truncated: the model reads %d tokens of it", name.format(number), limit
                )
        return self.tokenizer(captions, max_length=limit)

    def provenance(self) -> dict:
        """The origins of the images, for a report: where each model is from, its SHA-256, the dtype and the device."""
        return {
            "models": self._identities,
            "dtype": self.dtype,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }

    @functools.cached_property
    def _identities(self) -> dict[str, dict]:
        return {part: identity(self.folders[part]) for part in PARTS}

    def requests(
        self,
        prompts: Sequence[str],
        settings: Settings | None = None,
        canvas: Canvas | Sequence[Canvas | None] | None = None,
    ) -> list[Request]:
        """The prompts as `engine.run` takes them.

        Raises:
            UserError: a prompt, a setting or a canvas makes no sense.
        """
        prompts = check_prompts(prompts)
        settings = settings or GenerationSettings()
        settings = [settings] * len(prompts) if isinstance(settings, GenerationSettings) else list(settings)
        canvas = [canvas] * len(prompts) if canvas is None or isinstance(canvas, Canvas) else list(canvas)
        for name, values in (("settings", settings), ("canvas", canvas)):
            if len(values) != len(prompts):
                raise UserError(f"{name} has {len(values)} values for {len(prompts)} prompts: give one for each")
        for one in filter(None, canvas):
            if not isinstance(one, Canvas):
                raise UserError(f"a canvas is {type(one).__name__}: make one by pipe.canvas(picture, ...)")
            one.check_fits(self.model.image_length, self.vqgan.codebook_size)
        started = time.perf_counter()
        ids, mask = self.encode_text(prompts)
        rows = [self._uncond(one.negative_prompt) for one in settings]
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Request(
                prompt=prompt,
                ranked_by=prompt[:MAX_CHARACTERS],
                settings=resolved(settings[number], self.model.config, self.vqgan.codebook_size),
                ids=np.stack([ids[number], rows[number][0]]),
                mask=np.stack([mask[number], rows[number][1]]),
                canvas=canvas[number],
                text_seconds=seconds,
            )
            for number, prompt in enumerate(prompts)
        ]

    @staticmethod
    def note_idle(requests: Sequence[Request]) -> None:
        """Log that negative prompts do nothing, where some do."""
        idle = sum(bool(one.settings.negative_prompt.strip()) and not one.settings.guided for one in requests)
        if idle:
            of = f" of {idle} prompts" if idle > 1 else ""
            logger.warning("the negative prompt%s does nothing where guidance is 1: raise the guidance", of)

    def _uncond(self, negative_prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """The unconditional row, [text_length] each. An empty caption is not normalised, as published."""
        if negative_prompt.strip():
            ids, mask = self.encode_text([negative_prompt], name="the negative prompt")
        else:
            ids, mask = self.tokenizer([""], max_length=self.model.config.text_length)
        return ids[0], mask[0]
