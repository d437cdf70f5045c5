"""Image tokens to pixels, in several calls at a time: one on each device, or on each core of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from dalle_mini.generation.cpu.winograd import with_fewer_products
from dalle_mini.generation.memory import calls_that_fit, chunked, decoded_at_once, decoding_bytes
from dalle_mini.imaging.pixels import to_uint8
from dalle_mini.models.image_tokenizer import ImageTokenizer
from dalle_mini.models.vqgan import VQGAN
from dalle_mini.runtime.cores import side_by_side
from dalle_mini.runtime.xla import Jit

GRAY = 128  # where nothing is drawn yet


class PixelDecoder:
    """An image tokenizer's decoder as `Engine` runs it.

    On a CPU an image is decoded by itself, so that it has the same pixels whatever the others are, and by a VQGAN with
    fewer multiplications (`cpu/winograd.py`).

    Args:
        tokenizer: the network.
        devices: that decode at the same time, such as `runtime.cores.workers` gives them.
    """

    def __init__(self, tokenizer: ImageTokenizer, devices: Sequence[jax.Device]):
        self.tokenizer, self.devices = tokenizer, list(devices)
        on_cpu = self.devices[0].platform == "cpu"
        quick = with_fewer_products(tokenizer) if on_cpu and isinstance(tokenizer, VQGAN) else tokenizer
        graphdef, state = nnx.split(quick)
        alone = len(set(self.devices)) == 1
        self._states = {device: state if alone else jax.device_put(state, device) for device in self.devices}

        def decode(state, tokens, width):
            return nnx.merge(graphdef, state).decode(tokens, width)

        self._decode = Jit(decode, kept=(graphdef,), static_argnums=2)

    def compile(self, count: int) -> None:
        """Be ready for so many images."""
        size = chunked(count, decoded_at_once(self.devices[0]))[0][1]
        rows = np.zeros((size, self.tokenizer.grid**2), np.int32)
        for device, state in self._states.items():
            self._decode.lower(state, jax.device_put(rows, device), None).compile()

    def __call__(self, tokens: np.ndarray, progress: Callable[[int], None] = lambda count: None) -> np.ndarray:
        """Tokens [n, image_length] to uint8 [n, H, W, 3]; `progress` is told of images as they are done."""
        calls, images = chunked(len(tokens), decoded_at_once(self.devices[0])), []
        size = calls[0][1]  # the last is padded: one shape to compile

        def decoded(number: int) -> np.ndarray:
            (start, count), device = calls[number], self.devices[number % len(self.devices)]
            rows = jax.device_put(np.pad(tokens[start : start + count], ((0, size - count), (0, 0))), device)
            return to_uint8(self._decode(self._states[device], rows, None))[:count]

        threads = calls_that_fit(self.devices, decoding_bytes(self.tokenizer, self.devices[0]))
        for made in side_by_side(decoded, range(len(calls)), threads):
            images.append(made)
            progress(len(made))
        return np.concatenate(images)

    def top(self, tokens: np.ndarray, rows: int) -> np.ndarray:
        """The images, uint8 [n, H, W, 3], with their first rows of tokens, [n, image_length]; the rest is gray.

        The rows that are not drawn yet mirror those that are, so that the norms see one kind of image. Half of the
        rows or all of them are decoded: a program for each number of rows would take longer to compile than it saves.
        """
        side, grid = self.tokenizer.resolution, self.tokenizer.grid
        images = np.full((len(tokens), side, side, 3), GRAY, np.uint8)
        if not rows:
            return images
        decoded = grid // 2 if rows <= grid // 2 else grid
        mirrored = np.pad(np.arange(rows), (0, decoded - rows), "symmetric")
        height = rows * (side // grid)
        for image, row in zip(images, tokens, strict=True):
            seen = jax.device_put(row.reshape(grid, grid)[mirrored].reshape(1, -1), self.devices[0])
            pixels = self._decode(self._states[self.devices[0]], seen, None if decoded == grid else grid)
            image[:height] = to_uint8(pixels)[0, :height]
        return images
