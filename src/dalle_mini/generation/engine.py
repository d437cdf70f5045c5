"""From requests to ranked images: the three networks at work.

`scheduling.py` says which images share a call. For each group of requests the engine draws tokens, makes pixels of
them, scores these and keeps the best; on the way it shows previews. While a device draws the tokens of the next group,
a thread makes pixels and scores of the last one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.generation.canvas import Canvas
from dalle_mini.generation.decode import UNDRAWABLE, Decoded, decode_tokens
from dalle_mini.generation.memory import batch_that_fits
from dalle_mini.generation.optimize import weight_type
from dalle_mini.generation.pixels import PixelDecoder
from dalle_mini.generation.programs import replicated
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.generation.scheduling import Group, Request, Share, decoding_arguments, least_rows, schedule
from dalle_mini.generation.windows import widest
from dalle_mini.models.image_tokenizer import ImageTokenizer
from dalle_mini.models.token_model import TokenModel
from dalle_mini.runtime.cores import side_by_side, workers
from dalle_mini.settings import GenerationSettings, check_whole

Progress = Callable[[str, int, int], None]
REPORT_EVERY = 16  # tokens from one report of progress to the next


@dataclasses.dataclass(frozen=True)
class Result:
    """The images of one prompt, best first.

    Attributes:
        prompt: the prompt as it was given.
        images: `keep` images.
        scores: CLIP's logits_per_image, same order.
        tokens: int32 [keep, image_length], same order.
        indices: each image's number among the candidates, same order.
        passes: passes of the decoder that each image took, prefill aside, same order.
        window: tokens that a pass drew of each image; 1 is sequential decoding.
        timings: seconds of each stage; the first prompt's hold the compilation, and prompts that were drawn
            together have equal parts.
        settings: as resolved; `guidance`, `temperature` and `top_k` are never None.
        canvas: what the images started from, if from something.
    """

    prompt: str
    images: list[Image.Image]
    scores: list[float]
    tokens: np.ndarray
    indices: list[int]
    timings: dict[str, float]
    settings: GenerationSettings
    canvas: Canvas | None = None
    passes: list[int] = dataclasses.field(default_factory=list)
    window: int = 1


@dataclasses.dataclass(frozen=True)
class Preview:
    """A prompt's images while they are drawn.

    Attributes:
        prompt, number: the prompt and its place among those given, from 0.
        count, total: tokens that are final in every image, and those that an image will have.
        images: of the first candidates, gray where nothing is drawn yet. The seam is not as it will be: what comes
            next changes the pixels above it a little.
        tokens: int32 [previews, image_length], zero where none is final yet. In parallel decoding an image may have
            more of them than `count`.
    """

    prompt: str
    number: int
    count: int
    total: int
    images: list[Image.Image]
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One call's tokens, int32 [requests, candidates, image_length], and a function that returns their pixels.

    `passes`, int32 [requests, candidates], are those of the decoder.
    """

    tokens: np.ndarray
    passes: np.ndarray
    pixels: Callable[[], tuple[np.ndarray, float]]


class Engine:
    """The three networks, ready to draw.

    Args:
        model: as `optimize_for_decoding` returns it.
        tokenizer, ranker: the other two.
        devices: draw together; None is all local ones. A CPU that is the only one draws on each of its cores.
    """

    def __init__(
        self,
        model: TokenModel,
        tokenizer: ImageTokenizer,
        ranker: ClipRanker,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.devices = workers(devices or jax.local_devices())
        self.tokenizer, self.ranker = tokenizer, ranker
        self.pixels = PixelDecoder(tokenizer, self.devices)
        self._compiled = False  # or about to be
        self.use(model)

    def use(self, model: TokenModel | None) -> None:
        """Draw with this model from now on: other parameters of the same network, as the compiled programs stay.

        None frees the memory of the last one.
        """
        if model is not None and len(set(self.devices)) > 1:
            model = replicated(model, self.devices)
        self.model: TokenModel = model  # type: ignore[assignment]  # None until the next call: nothing can be drawn

    @overload
    def run(
        self,
        requests: Sequence[Request],
        progress: Progress | None = None,
        *,
        batch_size: int | None = None,
        overlap: bool | None = None,
        alone: bool = False,
    ) -> Iterator[Result]: ...

    @overload
    def run(
        self,
        requests: Sequence[Request],
        progress: Progress | None = None,
        *,
        batch_size: int | None = None,
        every: int | None,
        previews: int = 1,
        overlap: bool | None = None,
        alone: bool = False,
    ) -> Iterator[Result | Preview]: ...

    def run(
        self,
        requests: Sequence[Request],
        progress: Progress | None = None,
        *,
        batch_size: int | None = None,
        every: int | None = None,
        previews: int = 1,
        overlap: bool | None = None,
        alone: bool = False,
    ) -> Iterator[Result | Preview]:
        """The requests' results, in order; a request's previews come right before its result.

        Args:
            requests: what to draw.
            progress: called as `progress(stage, done, total)`. The stages are "tokens", "passes" (of the decoder; the
                total is that of sequential decoding), "pictures" and "scores".
            batch_size: images that one call draws at most; None is what fits in memory.
            every, previews: yield a `Preview` of the first `previews` candidates every so many tokens.
            overlap: make pixels and scores while the next tokens are drawn; None does so unless the CPU computes, which
                is busy.
            alone: draw everything here. Else, where JAX runs in several processes, each of which must make the same
                call, they share the candidates and all have the results.
        """
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        else:
            platform = self.devices[0].platform
            window = max((widest(one.settings, self.model.config, platform) for one in requests), default=1)
            batch_size = batch_that_fits(self.model.config, self.model.dtype, self.tokenizer, self.devices, window)
        if overlap is None:
            overlap = jax.default_backend() != "cpu"
        processes, process = (1, 0) if alone else (jax.process_count(), jax.process_index())
        least = least_rows(self.model.config, weight_type(self.model))
        among = {"processes": processes, "process": process}
        groups = list(schedule(requests, batch_size, least=least, alone=every is not None, **among))
        images = sum(group.share * len(group.requests) for group in groups)
        calls = sum(len(group.calls) for group in groups)
        report = Totals(progress, images, calls, self.model.image_length)
        shown = previews if every and process == 0 else 0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            later = _in_thread(pool) if overlap else partial
            if groups and not self._compiled:
                self._compiled = True
                pool.submit(self._compile_the_rest, groups[0].share)
            unfinished: Callable[[], list[Result]] = list  # of the last group; `list` stands for nothing
            for group in groups:
                clock = time.perf_counter()
                drawn: list[Drawn] = []
                for preview in self._draw(group, drawn, report, later, every, shown):
                    yield from unfinished()  # who watches sees a prompt's end before the next one's beginning
                    unfinished = list
                    yield preview
                seconds = time.perf_counter() - clock
                yield from unfinished()
                unfinished = later(self._finish, group, drawn, seconds, report, processes)
                if not overlap:
                    yield from unfinished()
                    unfinished = list
            yield from unfinished()

    def _draw(
        self, group: Group, drawn: list[Drawn], report: Totals, later: Callable, every: int | None, previews: int
    ) -> Iterator[Preview]:
        """Draw a group's tokens call by call into `drawn`; yield previews on the way."""
        for number, (first, size) in enumerate(group.calls):
            for decoded in self._tokens(group, first, size, report, every):
                count = decoded.drawn
                if every and previews and number == 0 and count < self.model.image_length and count % every == 0:
                    yield from self._previews(group, count, np.asarray(decoded.tokens), previews)
            tokens, passes = (np.asarray(array)[:, :size] for array in (decoded.tokens, decoded.passes))
            if (tokens == UNDRAWABLE).any():
                raise UserError(
                    "the decoder's logits are not numbers: its weights are damaged, or too large for this dtype"
                )
            drawn.append(Drawn(tokens, passes, later(self._pixels, tokens, report)))

    def _tokens(self, group: Group, first: int, size: int, report: Totals, every: int | None) -> Iterator[Decoded]:
        """The tokens of `size` candidates of each request, and of some more for several devices, as they are drawn.

        There is a pause at every multiple of `every`, and often enough to report progress.
        """
        pause = self.model.image_length
        if every or report.is_watched:
            pause = min(REPORT_EVERY, every or REPORT_EVERY)
            pause = every if every and every % pause else pause
        before, passes_before, requests = report.done("tokens"), report.done("passes"), group.requests
        window = group.window(self.model.config, self.devices)
        parts, streams = group.shares(size, self.devices), []
        for some, numbers in parts:
            start, count = first + numbers.start, numbers.stop - numbers.start
            arguments = decoding_arguments(
                requests[some], start, count, window, self.tokenizer.codebook_size, self.devices
            )
            streams.append(decode_tokens(self.model, every=pause, **arguments))
        for decoded in _together(parts, streams):
            if report.is_watched:
                report.reach("passes", passes_before + int(np.asarray(decoded.passes).max()))
                report.reach("tokens", before + decoded.drawn * size * len(requests))
            yield decoded

    def _previews(self, group: Group, count: int, tokens: np.ndarray, previews: int) -> Iterator[Preview]:
        rows = count // self.tokenizer.grid
        for place, request in enumerate(group.requests):
            seen = tokens[place, : min(previews, request.settings.candidates)]
            images = [Image.fromarray(image) for image in self.pixels.top(seen, rows)]
            yield Preview(request.prompt, group.number + place, count, tokens.shape[-1], images, seen)

    def _pixels(self, tokens: np.ndarray, report: Totals) -> tuple[np.ndarray, float]:
        """Tokens [requests, candidates, image_length] to uint8 [requests, candidates, H, W, 3], and the seconds."""
        clock = time.perf_counter()
        images = self.pixels(tokens.reshape(-1, tokens.shape[-1]), partial(report.add, "pictures"))
        return images.reshape(*tokens.shape[:2], *images.shape[1:]), time.perf_counter() - clock

    def _finish(self, group: Group, drawn: list[Drawn], seconds: float, report: Totals, processes: int) -> list[Result]:
        """A group's tokens, which took so many seconds, to scores and the best images."""
        made, size = [call.pixels() for call in drawn], len(group.requests)
        tokens = np.concatenate([call.tokens for call in drawn], axis=1)
        images = np.concatenate([pixels for pixels, _ in made], axis=1)
        timings = {"tokens": seconds / size, "pictures": sum(took for _, took in made) / size}
        window = group.window(self.model.config, self.devices)
        clock = time.perf_counter()
        prompts = [request.ranked_by for request in group.requests]
        scores = np.stack(self.ranker.scores_of(list(images), prompts, partial(report.add, "scores")))
        if not np.isfinite(scores).all():
            raise UserError("CLIP's scores are not numbers: its weights are damaged, or too large for this dtype")
        timings["scores"] = (time.perf_counter() - clock) / size
        passes = np.concatenate([call.passes for call in drawn], axis=1)
        rows: tuple[np.ndarray, ...] = tokens, images, scores, passes
        if processes > 1:
            rows = gathered(rows, group.requests[0].settings.candidates)
        return [
            _result(request, *row, window=window, timings={"text": request.text_seconds, **timings})
            for request, *row in zip(group.requests, *rows, strict=True)
        ]

    def _compile_the_rest(self, candidates: int) -> None:
        """Compile what pixels and scores need, while the first tokens are drawn. A failure shows when it runs."""
        self.pixels.compile(candidates)
        self.ranker.compile()


def _together(parts: Sequence[Share], streams: Sequence[Iterator[Decoded]]) -> Iterator[Decoded]:
    """The tokens of a call's shares at each pause, as computed arrays."""

    def advanced(stream: Iterator[Decoded]) -> Decoded | None:
        return jax.block_until_ready(next(stream, None))

    while decoded := [one for one in side_by_side(advanced, streams, len(streams)) if one is not None]:
        yield decoded[0] if len(parts) == 1 else _joined(parts, decoded)


def _joined(parts: Sequence[Share], decoded: Sequence[Decoded]) -> Decoded:
    size = parts[-1].requests.stop, parts[-1].candidates.stop
    tokens = np.empty((*size, decoded[0].tokens.shape[-1]), np.int32)
    passes = np.empty(size, np.int32)
    for part, one in zip(parts, decoded, strict=True):
        count = part.candidates.stop - part.candidates.start  # there may be more, which nobody asked for
        tokens[part], passes[part] = one.tokens[:, :count], one.passes[:, :count]
    return Decoded(decoded[0].drawn, jnp.asarray(tokens), jnp.asarray(passes))


def _in_thread(pool: concurrent.futures.Executor) -> Callable:
    """As `functools.partial`, but the work begins at once, in the pool."""
    return lambda function, *arguments: pool.submit(function, *arguments).result


def _result(
    request: Request, tokens: np.ndarray, images: np.ndarray, scores: np.ndarray, passes: np.ndarray, **told: Any
) -> Result:
    """The best of a request's candidates; `told` are the result's timings and window."""
    assert request.settings.keep is not None  # `GenerationSettings` resolves it
    order = ClipRanker.rank(scores, request.settings.keep)
    return Result(
        prompt=request.prompt,
        images=[Image.fromarray(images[index]) for index in order],
        scores=[float(scores[index]) for index in order],
        tokens=tokens[order],
        indices=[request.first + int(index) for index in order],
        settings=request.settings,
        canvas=request.canvas,
        passes=passes[order].tolist(),
        **told,
    )


def gathered(shares: tuple[np.ndarray, ...], candidates: int) -> tuple[np.ndarray, ...]:
    """Each process's arrays [requests, share, ...] to everyone's, [requests, candidates, ...], in every process."""
    from jax.experimental import multihost_utils

    def joined(array: np.ndarray) -> np.ndarray:
        parts = np.asarray(multihost_utils.process_allgather(array))  # [processes, requests, share, ...]
        parts = np.moveaxis(parts, 0, 1)
        return parts.reshape(len(array), -1, *array.shape[2:])[:, :candidates]

    return tuple(map(joined, shares))


class Totals:
    """How far each stage is over all prompts, passed on as it changes."""

    def __init__(self, progress: Progress | None, images: int, calls: int, image_length: int):
        self._progress = progress
        self._totals = {
            "tokens": images * image_length,
            "passes": calls * image_length,  # at most
            "pictures": images,
            "scores": images,
        }
        self._done: dict[str, int] = {}
        for stage in self._totals:
            self.reach(stage, 0)

    @property
    def is_watched(self) -> bool:
        return self._progress is not None

    def done(self, stage: str) -> int:
        return self._done[stage]

    def reach(self, stage: str, count: int) -> None:
        self._done[stage] = count
        if self._progress is not None:
            self._progress(stage, count, self._totals[stage])

    def add(self, stage: str, more: int) -> None:
        self.reach(stage, self._done[stage] + more)
