"""Which images share a call of the decoder: requests to groups, a group to calls, a call to the decoder's arguments.

Prompts of few candidates are drawn together, many candidates of one prompt in several calls. The cores of a CPU divide
the images of a call. An image is the same either way: its key depends on seed, prompt and number alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dalle_mini.generation.canvas import Canvas
from dalle_mini.generation.memory import chunked
from dalle_mini.generation.sampling import stack
from dalle_mini.generation.windows import SMALL, window_of
from dalle_mini.models.linear import LEAST_ROWS
from dalle_mini.models.token_model import TokenModelConfig
from dalle_mini.runtime.xla import Jit
from dalle_mini.settings import SHARED, GenerationSettings

# The fewest rows of a share by the type of the weights, where a model is so large that reading them binds. On two cores
# two shares of DALL·E mini took these parts of one program's time, with 9 and with 32 guided images: 0.61 and 0.58 in
# float32, 1.15 and 0.92 in bfloat16, 1.16 and 0.86 in int8; with 2 guided images 1.1 to 1.3 in all types.
ROWS_OF_LARGE = {"float32": 8, "bfloat16": 32, "float16": 32, "int8": 32}


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt as the networks read it.

    Attributes:
        prompt: as it was given.
        ranked_by: the text that CLIP compares the images with.
        settings: resolved.
        ids, mask: int32 [2, text_length]: the caption, and what not to draw.
        canvas: the tokens that every candidate keeps, if any.
        first: the first candidate's number.
        text_seconds: the time that normalising and tokenizing took.
    """

    prompt: str
    ranked_by: str
    settings: GenerationSettings
    ids: np.ndarray
    mask: np.ndarray
    canvas: Canvas | None = None
    first: int = 0
    text_seconds: float = 0.0

    @property
    def kind(self) -> tuple:
        """Requests of one kind may share a call."""
        settings = self.settings
        shared = tuple(getattr(settings, name) for name in SHARED if name != "keep")
        return *shared, settings.guided, settings.top_p is None, self.canvas is None, self.first


@dataclasses.dataclass(frozen=True)
class Group:
    """Requests of one kind that are drawn together.

    Attributes:
        requests: consecutive ones.
        number: the place of the first among all requests.
        share: candidates of each request that this process draws, the same in every process. Those beyond the last
            candidate are dropped in the end.
        calls: (number of the first candidate, candidates) of each call of the decoder.
        least: rows of each of the shares that a call is divided into, as of `least_rows`.
    """

    requests: list[Request]
    number: int
    share: int
    calls: list[tuple[int, int]]
    least: int = 1

    def window(self, config: TokenModelConfig, devices: Sequence[jax.Device]) -> int:
        """The tokens that a pass of the decoder draws of each image, in all calls of the group."""
        settings, share = self.requests[0].settings, self.shares(self.calls[0][1], devices)[0]
        rows = -(-share.images * (1 + settings.guided) // len(set(devices)))
        return window_of(settings, config, devices[0].platform, rows)

    def shares(self, size: int, devices: Sequence[jax.Device]) -> list[Share]:
        """Divide a call of `size` candidates among programs that run at the same time, one each time a device is named.

        All shares are of one size, so that one program is compiled. If the images cannot be divided evenly, the last
        share begins earlier and draws some images that the one before it draws too. Different devices divide each
        program, and the call has one share.
        """
        count = len(self.requests)
        rows = count * size * (1 + self.requests[0].settings.guided)
        programs = max(1, min(len(devices) // len(set(devices)), rows // self.least))
        of_requests = [Share(part, slice(0, size)) for part in _parts(count, programs)]
        of_candidates = [Share(slice(0, count), part) for part in _parts(size, programs)]
        return min(of_requests, of_candidates, key=lambda divided: divided[0].images)


class Share(NamedTuple):
    """The images of a call that one program draws: some candidates of some of its requests."""

    requests: slice
    candidates: slice

    @property
    def images(self) -> int:
        return (self.requests.stop - self.requests.start) * (self.candidates.stop - self.candidates.start)


def least_rows(config: TokenModelConfig, weights: str) -> int:
    """The fewest rows of a share that is drawn by itself, with weights of that type, such as "int8"."""
    return 1 if config.cache_width <= SMALL else ROWS_OF_LARGE[weights]


def _parts(count: int, most: int) -> list[slice]:
    size = -(-count // most)
    starts = (min(start, count - size) for start in range(0, count, size))
    return [slice(start, start + size) for start in starts]


def schedule(
    requests: Sequence[Request],
    batch_size: int,
    *,
    least: int = 1,
    alone: bool = False,
    processes: int = 1,
    process: int = 0,
) -> Iterator[Group]:
    """The groups in which requests are drawn by this process, in order.

    Args:
        batch_size: images that one call draws at most.
        least: rows of a share of a call, as of `least_rows`.
        alone: give each request a group of its own, so that it can be watched.
        processes, process: how many share the candidates, and which of them this is.
    """
    number = 0
    for together in grouped(requests, 1 if alone else batch_size):
        share = -(-together[0].settings.candidates // processes)
        first = together[0].first + process * share
        calls = [(first + start, size) for start, size in chunked(share, batch_size)]
        yield Group(together, number, share, calls, least)
        number += len(together)


def grouped(requests: Sequence[Request], batch_size: int) -> Iterator[list[Request]]:
    """Consecutive requests of one kind, as many as fit one call; one that does not fit is a group of its own."""
    for _, found in itertools.groupby(requests, key=lambda request: request.kind):
        alike = list(found)
        together = max(1, batch_size // alike[0].settings.candidates)
        for start in range(0, len(alike), together):
            yield alike[start : start + together]


def decoding_arguments(
    group: Sequence[Request],
    first: int | Sequence[int],
    count: int,
    window: int,
    codebook_size: int,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """The arguments of `stream_tokens` for candidates `first` .. `first + count - 1` of each request.

    `first` may be a list, one number a request.
    There are some more candidates than asked for, where several devices need them to divide the work evenly.
    """
    different = len(set(devices))
    rows = _candidates(different, len(group), count, window * (1 + group[0].settings.guided))
    numbers = np.reshape(first, (-1, 1)) + np.arange(rows)
    keys = image_keys([(one.settings.seed, one.prompt) for one in group], numbers)
    canvases = [one.canvas for one in group if one.canvas is not None]  # of all or of none
    # A row of the keys is a program, which takes some 8 ms to be found at the first time.
    forced = [canvas.forced(keys[number]) for number, canvas in enumerate(canvases)]
    ids, mask = (np.stack([getattr(one, name) for one in group], axis=1) for name in ("ids", "mask"))  # [2, P, S]
    return {
        "input_ids": ids[0],
        "attention_mask": mask[0],
        "keys": keys,
        "sampling": stack([one.settings.sampling for one in group]),
        "uncond_input_ids": ids[1],
        "uncond_attention_mask": mask[1],
        "codebook_size": codebook_size,
        "sampler": group[0].settings.sampler,
        "window": window,
        "forced": np.stack(forced) if forced else None,
        "devices": devices if different > 1 else None,
    }


def resolved(settings: GenerationSettings, config: TokenModelConfig, codebook_size: int) -> GenerationSettings:
    """The settings with the model's own values where nothing was asked for."""
    own = dataclasses.asdict(config.sampling)
    chosen = {name: value for name, value in own.items() if getattr(settings, name) is None}
    wanted = settings.top_k or config.sampling.top_k or codebook_size  # 0 in a config means no limit
    return dataclasses.replace(settings, **chosen | {"top_k": min(wanted, codebook_size)})


def _candidates(devices: int, prompts: int, candidates: int, rows: int) -> int:
    """The candidates to draw where `candidates` are wanted: enough for a product of rows, and even shares.

    `rows` are those of an image in a pass.
    """
    if prompts % devices:
        candidates = -(-candidates // devices) * devices
        prompts_each, candidates_each = prompts, candidates // devices
    else:
        prompts_each, candidates_each = prompts // devices, candidates
    if rows * prompts_each * candidates_each < LEAST_ROWS:
        candidates *= LEAST_ROWS
    return candidates


def image_keys(prompts: Sequence[tuple[int, str]], numbers: np.ndarray) -> jax.Array:
    """JAX keys [prompts, n] of (seed, prompt) and the numbers of n candidates: int [n], or [prompts, n].

    A key is the seed's, into which the words of the prompt's SHA-256 and then the candidate's number are folded.
    """
    words = [np.frombuffer(hashlib.sha256(prompt.encode("utf-8")).digest(), "<u4") for _, prompt in prompts]
    numbers = np.broadcast_to(np.asarray(numbers, np.uint32), (len(prompts), np.shape(numbers)[-1]))
    return _keys(np.asarray([seed for seed, _ in prompts], np.uint32), np.stack(words), numbers)


@partial(Jit, kept=())
@jax.vmap
def _keys(seed: jax.Array, words: jax.Array, numbers: jax.Array) -> jax.Array:
    key = jax.random.key(seed, impl="threefry2x32")
    key, _ = jax.lax.scan(lambda key, word: (jax.random.fold_in(key, word), None), key, words)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
