"""The drawer that owns a `DalleMini`."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import About, Drawn, Event, Failed, Part, Partial, Picture, Progress, Start
from dalle_mini.serving.fair import largest_power
from dalle_mini.settings import GenerationSettings

if TYPE_CHECKING:
    from dalle_mini.generation.canvas import Canvas
    from dalle_mini.generation.scheduling import Request
    from dalle_mini.pipeline import DalleMini

ON_CPU = 32  # images of a call: of 16 each takes 1.17 times as long, of 64 they gain 4 %, and whoever comes next waits
WARM = "a red apple"
WARM_SIZES = (1, 8, 16)  # candidates: the fewest, the page's, and those of a request that says nothing
MOST_PROGRAMS = 64  # kinds of calls whose programs stay in memory; on disk they all stay
TOLD = 8  # finished images that are told together: CLIP scores so many in a call
ALONE, IN_COMPANY = 8, 4  # partial images of each image, and the most images of a call that have some


class PipelineDrawer:
    """Draws with a `DalleMini`, which `load` returns: in the thread that calls `open` and `draw`.

    Args:
        name: of the model, for clients.
        batch_size: images that one call draws at most; None is what fits in memory, 16 on a CPU.
    """

    def __init__(self, load: Callable[[], DalleMini], name: str = "shipped", batch_size: int | None = None):
        self._load, self._name, self._batch_size = load, name, batch_size
        self._text = threading.Lock()  # of the tokenizers, which `check` uses as well
        self._dropped: set[str] = set()
        self._watched: dict[str, int] = {}
        self._programs: set[tuple] = set()

    def open(self) -> About:
        from dalle_mini.text.known_words import KnownWords

        self.pipe = self._load()
        self._words = KnownWords.load(self.pipe.folders["dalle"])
        about = self._about()
        settings, _ = self.check(WARM, GenerationSettings(candidates=1, keep=1))
        for size in WARM_SIZES:
            for _ in self.draw([Part("", WARM, settings, None, 0, largest_power(min(size, about.batch_size)))]):
                if size > 1:  # its program is compiled, and one image has shown the rest
                    self.drop("")
        return about

    def check(self, prompt: str, settings: GenerationSettings) -> tuple[GenerationSettings, int]:
        request = self._request(prompt, settings)
        return request.settings, int(request.mask[0].sum())

    def unknown_words(self, prompt: str) -> list[tuple[str, tuple[str, ...]]] | None:
        return None if self._words is None else [(one.word, one.near) for one in self._words.unknown(prompt)]

    def drop(self, job: str) -> None:
        self._dropped.add(job)

    def watch(self, job: str, below: int) -> None:
        if below:
            self._watched[job] = below
        else:
            self._watched.pop(job, None)

    def draw(self, parts: Sequence[Part]) -> Iterator[Event]:
        ready: list[tuple[Part, Request]] = []
        for part in parts:
            try:
                settings = dataclasses.replace(part.settings, candidates=part.count, keep=part.count)
                canvas = None if part.start is None else self._canvas(part.start)
                request = self._request(part.prompt, settings, canvas)
            except UserError as error:
                yield Failed(part.job, str(error))
            else:
                ready.append((part, dataclasses.replace(request, first=part.first)))
        if ready:
            yield from self._draw(ready)
        self._dropped.clear()

    def _draw(self, ready: list[tuple[Part, Request]]) -> Iterator[Event]:
        from dalle_mini.generation.joint import draw_jointly, kind_of_program

        engine, count = self.pipe.engine, ready[0][0].count
        grid, length = engine.tokenizer.grid, engine.model.image_length
        self._note_program((len(ready), kind_of_program([request for _, request in ready], engine)))
        tokens = None
        for decoded in draw_jointly(
            engine, [request for _, request in ready], count, lambda: np.array([self._is_dropped(p) for p, _ in ready])
        ):
            tokens, rows = np.asarray(decoded.tokens), decoded.drawn // grid
            yield Progress(decoded.drawn, length)
            if decoded.drawn < length:
                yield from self._partials([part for part, _ in ready], tokens, rows)
        if tokens is None:
            return
        places = [(number, candidate) for number in range(len(ready)) for candidate in range(count)]
        for start in range(0, len(places), TOLD):
            yield from self._finished(ready, tokens, places[start : start + TOLD])

    def _finished(
        self, ready: Sequence[tuple[Part, Request]], tokens: np.ndarray, places: Sequence[tuple[int, int]]
    ) -> Iterator[Event]:
        """Some images of a call, which are [part, candidate] of its tokens, with their pixels and scores."""
        engine = self.pipe.engine
        by_part: dict[int, list[int]] = {}
        for number, candidate in places:
            if not self._is_dropped(ready[number][0]):
                by_part.setdefault(number, []).append(candidate)
        if not by_part:
            return
        drawn = [tokens[number, candidates] for number, candidates in by_part.items()]
        pixels = np.split(engine.pixels(np.concatenate(drawn)), np.cumsum([len(some) for some in drawn])[:-1])
        scores = engine.ranker.scores_of(pixels, [ready[number][1].ranked_by for number in by_part])
        for (number, candidates), *found in zip(by_part.items(), drawn, pixels, scores, strict=True):
            part, request = ready[number]
            if self._is_dropped(part):
                continue
            if not np.isfinite(found[-1]).all():
                yield Failed(part.job, "CLIP's scores are not numbers: its weights are damaged")
                continue
            pictures = [
                Picture(part.first + candidate, float(score), row, image)
                for candidate, row, image, score in zip(candidates, *found, strict=True)
            ]
            yield Drawn(part.job, pictures, None if request.canvas is None else tuple(request.canvas.tokens))

    def _partials(self, parts: Sequence[Part], tokens: np.ndarray, rows: int) -> Iterator[Partial]:
        """Partial images of those who watch: fewer of each where many are drawn together."""
        pixels, total = self.pipe.engine.pixels, self.pipe.engine.tokenizer.grid
        times = ALONE if len(parts) == 1 else IN_COMPANY
        if rows % max(1, total // times) and not (rows == 1 and len(parts) == 1):
            return
        for place, part in enumerate(parts):
            most = min(part.count, self._watched.get(part.job, 0) - part.first, ALONE)
            if most > 0 and not self._is_dropped(part):
                for number, image in enumerate(pixels.top(tokens[place, :most], rows)):
                    yield Partial(part.job, part.first + number, rows, total, image)

    def _note_program(self, kind: tuple) -> None:
        """Forget the compiled programs when there are many, as clients may ask for every combination of settings."""
        import jax

        if kind not in self._programs and len(self._programs) >= MOST_PROGRAMS:
            jax.clear_caches()
            self._programs.clear()
        self._programs.add(kind)

    def _is_dropped(self, part: Part) -> bool:
        return part.job in self._dropped

    def _request(self, prompt: str, settings: GenerationSettings, canvas: Canvas | None = None) -> Request:
        with self._text:
            return self.pipe.requests([prompt], settings, canvas)[0]

    def _canvas(self, start: Start) -> Canvas:
        from dalle_mini.generation.canvas import DRAWN, Canvas, below

        if start.tokens is not None:
            tokens = np.asarray(start.tokens, np.int32)
        else:
            assert start.pixels is not None
            tokens = np.asarray(self.pipe.canvas(start.pixels, vary=1.0).tokens)
        if start.keep_top is not None:
            tokens = below(tokens, start.keep_top)
        tokens[list(start.cells)] = DRAWN
        return Canvas(tokens.tolist(), start.vary)

    def _about(self) -> About:
        from dalle_mini.generation.memory import batch_that_fits
        from dalle_mini.generation.windows import widest

        engine, told = self.pipe.engine, self.pipe.provenance()
        identities: Mapping[str, Mapping[str, Any]] = told["models"]
        checksums = {part: one["sha256"] for part, one in identities.items()}
        settings, _ = self.check(WARM, GenerationSettings())
        assert settings.guidance is not None and settings.temperature is not None and settings.top_k is not None
        size = self._batch_size
        if size is None:
            platform = engine.devices[0].platform
            window = widest(settings, engine.model.config, platform)
            size = batch_that_fits(engine.model.config, engine.model.dtype, engine.tokenizer, engine.devices, window)
            size = min(size, ON_CPU) if platform == "cpu" else size
        return About(
            model=self._name,
            weights=hashlib.sha256(" ".join(checksums.values()).encode()).hexdigest()[:12],
            card=_card(self.pipe.folders["dalle"]),
            checksums=checksums,
            grid=engine.tokenizer.grid,
            resolution=engine.tokenizer.resolution,
            image_length=engine.model.image_length,
            codebook_size=engine.tokenizer.codebook_size,
            guidance=settings.guidance,
            temperature=settings.temperature,
            top_k=settings.top_k,
            dtype=told["dtype"],
            device=told["device"],
            batch_size=size,
        )


def _card(folder: Path) -> str:
    """The card of a bundle, without its front matter; blank where there is none."""
    for place in (folder.parent, folder):
        try:
            text = (place / "README.md").read_text("utf-8")[:100_000]
        except (OSError, ValueError):
            continue
        return text.partition("\n---\n")[2].strip() if text.startswith("---\n") else text
    return ""
