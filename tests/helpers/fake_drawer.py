"""A drawer without networks: each image is its tokens, which depend on prompt, seed and number alone."""

import dataclasses
import hashlib
import threading
import time

import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import About, Drawn, Failed, Partial, Picture, Progress

ABOUT = About(
    model="fake",
    weights="0123456789ab",
    card="# Fake",
    checksums={"dalle": "a", "vqgan": "b", "clip": "c"},
    grid=4,
    resolution=16,
    image_length=16,
    codebook_size=256,
    guidance=1.0,
    temperature=1.0,
    top_k=50,
    dtype="float32",
    device="none",
    batch_size=16,
)


def tokens_of(prompt: str, seed: int, number: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{number}/{prompt}".encode()).digest()
    return np.frombuffer(digest[:16], np.uint8).astype(np.int32)


def pixels_of(tokens: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(tokens.reshape(4, 4, 1).astype(np.uint8), 4, 0), 4, 1).repeat(3, 2)


class FakeDrawer:
    """Draws at once, or waits at each pause for `step`.

    Attributes:
        calls: the parts of each call so far.
        begun: (job, candidate) of each image whose drawing was begun.
    """

    def __init__(self, seconds: float = 0.0, *, stepped: bool = False):
        self.seconds, self.calls, self.dropped, self.watched = seconds, [], set(), {}
        self.steps = threading.Semaphore(0) if stepped else None
        self.pauses = 0

    def step(self, count: int = 1) -> None:
        self.steps.release(count)

    def open(self) -> About:
        return ABOUT

    def check(self, prompt, settings):
        if "unreadable" in prompt:
            raise UserError("the prompt has no words that the model can read")
        own = {name: getattr(ABOUT, name) for name in ("guidance", "temperature", "top_k")}
        given = {name: value for name, value in own.items() if getattr(settings, name) is None}
        return dataclasses.replace(settings, **given), len(prompt.split())

    def unknown_words(self, prompt):
        return [("chaise", ("chair",))] if "chaise" in prompt else []

    def drop(self, job):
        self.dropped.add(job)

    def watch(self, job, candidates):
        self.watched[job] = candidates

    def draw(self, parts):
        self.calls.append(list(parts))
        for rows in range(1, 5):
            if self.steps is not None:
                self.steps.acquire()
            time.sleep(self.seconds / 4)
            self.pauses += 1
            yield Progress(4 * rows, 16)
            if rows == 4:
                break
            for part in parts:
                for number in range(part.first, min(part.first + part.count, self.watched.get(part.job, 0))):
                    pixels = pixels_of(tokens_of(part.prompt, part.settings.seed, number))
                    pixels[4 * rows :] = 128
                    yield Partial(part.job, number, rows, 4, pixels)
        for part in parts:
            if part.job in self.dropped:
                continue
            if "fails" in part.prompt:
                yield Failed(part.job, "it cannot be drawn")
                continue
            if "explodes" in part.prompt:
                raise RuntimeError("/secret/path exploded")
            pictures = []
            for number in range(part.first, part.first + part.count):
                tokens = tokens_of(part.prompt, part.settings.seed, number)
                pictures.append(Picture(number, float(tokens[0]), tokens, pixels_of(tokens)))
            yield Drawn(part.job, pictures, None if part.start is None else part.start.tokens)
