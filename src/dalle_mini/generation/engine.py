"""From encoded prompts to ranked pictures: which rows share a call, on which devices, in how much memory.

Prompts of few candidates are drawn together, many candidates of one prompt in several calls; a picture is the same
either way. While the devices draw the tokens of the next call, a thread makes pixels of the last one's, and where
these were a prompt's last, scores and PIL's pictures.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation.canvas import Canvas
from dalle_mini.generation.decode import UNDRAWABLE, compile_tokens, replicated, stream_tokens
from dalle_mini.generation.memory import batch_that_fits, chunked
from dalle_mini.generation.pixels import PixelDecoder
from dalle_mini.generation.prepare import LEAST_ROWS
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.generation.sampling import stack
from dalle_mini.models import VQGAN, DalleBart
from dalle_mini.models.config import DalleBartConfig, VQGANConfig
from dalle_mini.settings import GenerationSettings, check_whole

Progress = Callable[[str, int, int], None]
LOOK_EVERY = 16  # tokens from one report of progress to the next


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt as the networks read it; `ids` and `mask` are int32 [2, text_length], second what not to draw."""

    prompt: str
    ranked_by: str
    settings: GenerationSettings
    ids: np.ndarray
    mask: np.ndarray
    canvas: Canvas | None = None
    first: int = 0  # the first candidate's number
    text_seconds: float = 0.0

    @property
    def kind(self) -> tuple:
        """Jobs of one kind may share a call."""
        settings = self.settings
        return settings.candidates, settings.guided, settings.top_p is None, self.canvas is None, self.first


@dataclasses.dataclass(frozen=True)
class Result:
    """The pictures of one prompt, best first.

    Attributes:
        prompt: the prompt as it was given.
        images: `keep` pictures.
        scores: CLIP's logits_per_image, same order.
        tokens: int32 [keep, image_length], same order.
        indices: each picture's number among the candidates, same order.
        timings: seconds of each stage; the first prompt's hold the compilation, and prompts that were drawn
            together have equal parts.
        settings: as resolved; `guidance`, `temperature` and `top_k` are never None.
        canvas: what the pictures started from, if from something.
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float]
    tokens: np.ndarray
    indices: list[int]
    timings: dict[str, float]
    settings: GenerationSettings
    canvas: Canvas | None = None


@dataclasses.dataclass(frozen=True)
class Partial:
    """A look at a prompt's pictures while they are drawn.

    Attributes:
        prompt, number: the prompt and its place among those given, from 0.
        count, total: tokens that each picture has so far, and will have.
        images: of the first candidates, gray where nothing is drawn yet. The seam is not as it will be: what comes
            next changes the pixels above it a little.
        tokens: int32 [previews, image_length], zero where none is drawn yet.
    """

    prompt: str
    number: int
    count: int
    total: int
    images: list[Image.Image]
    tokens: np.ndarray


class Engine:
    """The three networks, ready to draw.

    Args:
        model: as `prepare` returns it.
        vqgan, ranker: the other two.
        devices: draw together; None is all local ones.
    """

    def __init__(self, model: DalleBart, vqgan: VQGAN, ranker: ClipRanker, devices: Sequence[jax.Device] | None = None):
        self.devices = list(devices or jax.local_devices())
        self.model, self.vqgan, self.ranker = model, vqgan, ranker
        self.pixels = PixelDecoder(vqgan, self.devices)
        self._compiled = False  # or about to be
        if len(self.devices) > 1:
            self.model = replicated(model, self.devices)

    def run(
        self,
        jobs: Sequence[Job],
        progress: Progress | None = None,
        *,
        batch_size: int | None = None,
        every: int | None = None,
        previews: int = 1,
        overlap: bool | None = None,
        alone: bool = False,
    ) -> Iterator[Result | Partial]:
        """The jobs' results, in order; a job's looks come right before its result.

        Args:
            jobs: what to draw.
            progress: called as `progress(stage, done, total)`.
            batch_size: pictures that one call draws at most; None is what fits in memory.
            every, previews: yield a `Partial` of the first `previews` candidates every so many tokens.
            overlap: make pixels and scores while the next tokens are drawn; None does so unless the CPU computes, which
                is busy.
            alone: draw everything here. Else, where JAX runs in several processes, each of which must make the same
                call, they share the candidates and all have the results.
        """
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        else:
            batch_size = batch_that_fits(self.model.config, self.model.lm_head.dtype, self.vqgan.config, self.devices)
        if overlap is None:
            overlap = jax.default_backend() != "cpu"
        processes, process = (1, 0) if alone else (jax.process_count(), jax.process_index())
        # A share is the same for all, so that shares can be gathered; what is beyond the last candidate is dropped.
        shares = [-(-job.settings.candidates // processes) for job in jobs]
        report = Totals(progress, sum(shares), self.model.config.image_length)
        number = 0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = None
            if jobs and not self._compiled:
                self._compiled = True
                pool.submit(self._compile_the_rest, shares[0])
            for group in grouped(jobs, batch_size if every is None else 1):
                clock = time.perf_counter()
                parts, share = [], -(-group[0].settings.candidates // processes)
                for start, size in chunked(share, batch_size):
                    first = group[0].first + process * share + start
                    for count, tokens in self._tokens(group, first, size, report, bool(every or progress), every):
                        if every and process == 0 == start and count < tokens.shape[-1] and count % every == 0:
                            if waiting is not None:  # who watches sees a prompt's end before the next one's beginning
                                yield from waiting.result()
                                waiting = None
                            yield from self._look(group, number, count, np.asarray(tokens), previews)
                    drawn = np.asarray(tokens)[:, :size]
                    if (drawn == UNDRAWABLE).any():
                        raise UserError(
                            "the decoder's logits are not numbers: its weights are damaged, or too large for this dtype"
                        )
                    parts.append((drawn, pool.submit(self._pictures, drawn, report) if overlap else None))
                seconds = time.perf_counter() - clock
                number += len(group)
                if waiting is not None:
                    yield from waiting.result()
                    waiting = None
                if overlap:
                    waiting = pool.submit(self._finish, group, parts, seconds, report, processes)
                else:
                    yield from self._finish(group, parts, seconds, report, processes)
            if waiting is not None:
                yield from waiting.result()

    def _tokens(
        self, group: list[Job], start: int, size: int, report: Totals, watched: bool, every: int | None
    ) -> Iterator[tuple[int, jax.Array]]:
        """Candidates `start` .. `start + size - 1` of each job, and some more that make even shares."""
        length, before = self.model.config.image_length, report.done("tokens")
        look = length
        if watched:
            look = min(LOOK_EVERY, every or LOOK_EVERY)
            look = look if not every or every % look == 0 else every
        arguments, options = decoding_arguments(group, start, size, self.vqgan.config.n_embed, self.devices)
        for count, tokens in stream_tokens(self.model, *arguments, every=look, **options):
            jax.block_until_ready(tokens)
            report.reach("tokens", before + count * size * len(group))
            yield count, tokens

    def _pictures(self, tokens: np.ndarray, report: Totals) -> tuple[np.ndarray, float]:
        """Tokens [jobs, candidates, image_length] to uint8 [jobs, candidates, H, W, 3], and the seconds it took."""
        clock = time.perf_counter()
        images = self.pixels(
            tokens.reshape(-1, tokens.shape[-1]), lambda more: report.reach("pictures", report.done("pictures") + more)
        )
        return images.reshape(*tokens.shape[:2], *images.shape[1:]), time.perf_counter() - clock

    def _finish(
        self,
        group: list[Job],
        parts: list[tuple[np.ndarray, concurrent.futures.Future | None]],
        seconds: float,
        report: Totals,
        processes: int,
    ) -> list[Result]:
        """Each call's tokens, and what makes pixels of them if something does yet, to scores and the best pictures."""
        made = [self._pictures(tokens, report) if future is None else future.result() for tokens, future in parts]
        tokens = np.concatenate([tokens for tokens, _ in parts], axis=1)
        images = np.concatenate([images for images, _ in made], axis=1)
        timings = {"tokens": seconds / len(group), "pictures": sum(took for _, took in made) / len(group)}
        clock = time.perf_counter()
        scores = []
        for job, pictures in zip(group, images, strict=True):
            scores.append(self.ranker.scores(pictures, job.ranked_by))
            if not np.isfinite(scores[-1]).all():
                raise UserError("CLIP's scores are not numbers: its weights are damaged, or too large for this dtype")
            report.reach("scores", report.done("scores") + len(pictures))
        timings["scores"] = (time.perf_counter() - clock) / len(group)
        rows = tokens, images, np.stack(scores)
        if processes > 1:
            rows = gathered(rows, group[0].settings.candidates)
        return [
            _result(job, *parts, {"text": job.text_seconds, **timings})
            for job, *parts in zip(group, *rows, strict=True)
        ]

    def _compile_the_rest(self, candidates: int) -> None:
        """What pixels and scores need, while the first tokens are drawn. What fails here will fail when it runs."""
        self.pixels.compile(candidates)
        self.ranker.compile()

    def _look(self, group: list[Job], number: int, count: int, tokens: np.ndarray, previews: int) -> Iterator[Partial]:
        rows = count // self.vqgan.config.grid
        for place, job in enumerate(group):
            drawn = tokens[place, : min(previews, job.settings.candidates)]
            images = map(Image.fromarray, self.pixels.top(drawn, rows))
            yield Partial(job.prompt, number + place, count, tokens.shape[-1], list(images), drawn)


def compile_ahead(
    jobs: Sequence[Job],
    config: DalleBartConfig,
    vqgan_config: VQGANConfig,
    dtype,
    *,
    int8: bool,
    batch_size: int | None,
) -> None:
    """Compile what `Engine.run` decodes the first of these jobs with, while the weights are still being read.

    Of the jobs' texts only the shapes count.
    """
    devices = jax.local_devices()
    if batch_size is None:
        batch_size = batch_that_fits(config, dtype, vqgan_config, devices)
    group = next(grouped(jobs, batch_size))
    start, size = chunked(group[0].settings.candidates, batch_size)[0]
    arguments, options = decoding_arguments(group, start, size, vqgan_config.n_embed, devices)
    compile_tokens(config, dtype, *arguments, int8=int8, **options)


def decoding_arguments(
    group: Sequence[Job], start: int, size: int, codebook_size: int, devices: Sequence[jax.Device]
) -> tuple[tuple, dict]:
    """What `stream_tokens` takes after the model, by place and by name, for candidates `start` .. `start + size - 1` of
    each job, and some more that make even shares.
    """
    first = group[0].settings
    rows = _rows(len(devices), len(group), size, 1 + first.guided)
    keys = picture_keys([(job.settings.seed, job.prompt) for job in group], np.arange(start, start + rows))
    canvases = [job.canvas.forced(row) for job, row in zip(group, keys, strict=True) if job.canvas is not None]

    ids, mask = (np.stack([getattr(job, name) for job in group], axis=1) for name in ("ids", "mask"))  # [2, P, S]
    return (ids[0], mask[0], keys), {
        "sampling": stack([job.settings.sampling for job in group]),
        "uncond_input_ids": ids[1],
        "uncond_attention_mask": mask[1],
        "codebook_size": codebook_size,
        "forced": np.stack(canvases) if canvases else None,
        "devices": devices if len(devices) > 1 else None,
    }


def _rows(devices: int, prompts: int, candidates: int, groups: int) -> int:
    """The candidates to draw where `candidates` are wanted: enough for a product of rows, and even shares."""
    if prompts % devices:
        candidates = -(-candidates // devices) * devices
        prompts_each, candidates_each = prompts, candidates // devices
    else:
        prompts_each, candidates_each = prompts // devices, candidates
    if groups * prompts_each * candidates_each < LEAST_ROWS:
        candidates *= LEAST_ROWS
    return candidates


def _result(job: Job, tokens: np.ndarray, pictures: np.ndarray, scores: np.ndarray, timings: dict) -> Result:
    order = ClipRanker.rank(scores, job.settings.keep)
    return Result(
        prompt=job.prompt,
        images=[Image.fromarray(pictures[index]) for index in order],
        scores=[float(scores[index]) for index in order],
        tokens=tokens[order],
        indices=[job.first + int(index) for index in order],
        timings=timings,
        settings=job.settings,
        canvas=job.canvas,
    )


def gathered(shares: tuple[np.ndarray, ...], candidates: int) -> tuple[np.ndarray, ...]:
    """Each process's arrays [jobs, share, ...] to everyone's, [jobs, candidates, ...], in every process."""
    from jax.experimental import multihost_utils

    def joined(array: np.ndarray) -> np.ndarray:
        parts = np.asarray(multihost_utils.process_allgather(array))  # [processes, jobs, share, ...]
        parts = np.moveaxis(parts, 0, 1)
        return parts.reshape(len(array), -1, *array.shape[2:])[:, :candidates]

    return tuple(map(joined, shares))


def grouped(jobs: Sequence[Job], batch_size: int) -> Iterator[list[Job]]:
    """Consecutive jobs of one kind, as many as fit one call; a job that does not fit is a group of its own."""
    for _, alike in itertools.groupby(jobs, key=lambda job: job.kind):
        alike = list(alike)
        together = max(1, batch_size // alike[0].settings.candidates)
        for start in range(0, len(alike), together):
            yield alike[start : start + together]


def picture_keys(jobs: Sequence[tuple[int, str]], indices: np.ndarray) -> jax.Array:
    """JAX keys [jobs, n], of seeds and prompts.

    The seed, into it the words of the prompt's SHA-256, and into that each picture's number.
    """
    words = [np.frombuffer(hashlib.sha256(prompt.encode("utf-8")).digest(), "<u4") for _, prompt in jobs]
    return _keys(np.asarray([seed for seed, _ in jobs], np.uint32), np.stack(words), np.asarray(indices, np.uint32))


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None))
def _keys(seed: jax.Array, words: jax.Array, indices: jax.Array) -> jax.Array:
    key = jax.random.key(seed, impl="threefry2x32")
    key, _ = jax.lax.scan(lambda key, word: (jax.random.fold_in(key, word), None), key, words)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


class Totals:
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
