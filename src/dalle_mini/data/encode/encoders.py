"""The VQGAN's encoder, and CLIP where it is asked, on every local device: batches of one shape, devices in turn.

On a CPU several batches are encoded at the same time, one on each core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.generation.memory import calls_that_fit, encoding_bytes
from dalle_mini.imaging.clip_pixels import clip_pixels
from dalle_mini.models.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini.runtime.cores import workers
from dalle_mini.runtime.xla import Jit
from dalle_mini.weights.bundle import SHIPPED_NAME, find_part

if TYPE_CHECKING:
    from dalle_mini.generation.ranking import ClipRanker

THREADS, CHUNK = 4, 8  # that make CLIP's pictures, and how many at a time; Pillow lets other threads run


@dataclass(frozen=True)
class Weights:
    """Where the networks come from: folders, repositories of the Hub, or wandb artifacts. It is pickled.

    Attributes:
        vqgan: the VQGAN's own source, or a bundle's.
        clip: CLIP's; loaded where scores are asked for.
        options: of the Hub, as in `weights.bundle.find_parts`; a `revision` is the VQGAN's.
    """

    vqgan: str = SHIPPED_NAME
    clip: str = SHIPPED_NAME
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, *, with_clip: bool) -> tuple[ImageTokenizer, ClipRanker | None]:
        """Raises UserError where one cannot be read or fetched."""
        options = dict(self.options)
        vqgan = load_image_tokenizer(find_part("vqgan", self.vqgan, **options))
        if not with_clip:
            return vqgan, None
        from dalle_mini.generation.ranking import ClipRanker

        return vqgan, ClipRanker.from_pretrained(find_part("clip", self.clip, **options | {"revision": None}))


class Networks:
    """Pictures to tokens and scores.

    Args:
        vqgan: its encoder is used.
        ranker: CLIP, where scores are wanted.
        batch_size: pictures of every call: fewer are padded, so that one program is compiled and a picture's tokens
            depend on its batch alone.
        devices: those of this host by default. A CPU that is the only one encodes on each of its cores.
    """

    def __init__(
        self,
        vqgan: ImageTokenizer,
        ranker: ClipRanker | None,
        batch_size: int,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.tokenizer, self.batch_size, self._ranker = vqgan, batch_size, ranker
        self.devices, self._turn = workers(devices or jax.local_devices()), 0
        self._vqgan, state = nnx.split(vqgan)
        self._states = self._on_each(state)
        # The programs that one thread calls on a CPU run one after another. Other devices need no threads.
        self._cores: ThreadPoolExecutor | None = None
        if len(self.devices) > len(self._states):
            self._cores = ThreadPoolExecutor(calls_that_fit(self.devices, encoding_bytes(vqgan, batch_size)))
        if ranker is not None:
            self._clip, state = nnx.split(ranker.clip)
            self._clip_states = self._on_each(state)
            self._threads = ThreadPoolExecutor(THREADS)

    def start(self, images: np.ndarray, captions: Sequence[str]) -> Callable[[], tuple[np.ndarray, np.ndarray | None]]:
        """Begin with uint8 [n, S, S, 3], n at most the batch size, and n captions.

        Returns a function that waits for the tokens, int32 [n, image_length], and the scores, float32 [n] or None.
        Until it has returned, `images` must stay as they are.
        """
        count, device = len(images), self.devices[self._turn]
        self._turn = (self._turn + 1) % len(self.devices)
        if count < self.batch_size:
            images = np.pad(images, ((0, self.batch_size - count), (0, 0), (0, 0), (0, 0)))
        if self._cores is None:
            return self._begin(device, images, captions, count)
        return self._cores.submit(lambda: self._begin(device, images, captions, count)()).result

    def _begin(
        self, device: jax.Device, images: np.ndarray, captions: Sequence[str], count: int
    ) -> Callable[[], tuple[np.ndarray, np.ndarray | None]]:
        tokens = _encode(self._vqgan, self._states[device], jax.device_put(images, device))
        scores = None if self._ranker is None else self._score(self._ranker, device, images, captions)

        def finish() -> tuple[np.ndarray, np.ndarray | None]:
            return np.asarray(tokens)[:count], None if scores is None else np.asarray(scores)[:count]

        return finish

    def _score(self, ranker: ClipRanker, device: jax.Device, images: np.ndarray, captions: Sequence[str]) -> jax.Array:
        """CLIP's cosine of each picture, as the VQGAN sees it, and its own caption."""
        texts = [*captions, *[""] * (self.batch_size - len(captions))]
        length = ranker.clip.config.text.max_position_embeddings
        config = ranker.preprocessor_config
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        pixels = np.concatenate(list(self._threads.map(lambda chunk: clip_pixels(chunk, config), chunks)))
        inputs = jax.device_put((pixels, *ranker.tokenizer(texts, max_length=length)), device)
        return _cosines(self._clip, self._clip_states[device], *inputs)

    def _on_each(self, state: nnx.State) -> dict[jax.Device, nnx.State]:
        return {device: jax.device_put(state, device) for device in set(self.devices)}


@partial(Jit, static_argnums=0)
def _encode(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state).encode(images.astype(jnp.float32) / 255)


@partial(Jit, static_argnums=0)
def _cosines(
    graphdef: nnx.GraphDef, state: nnx.State, pixels: jax.Array, input_ids: jax.Array, attention_mask: jax.Array
) -> jax.Array:
    clip = nnx.merge(graphdef, state)
    return jnp.sum(clip.image_embeds(pixels) * clip.text_embeds(input_ids, attention_mask), axis=-1)
