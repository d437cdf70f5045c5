"""How many images one call may draw, and one may decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import psutil

from dalle_mini.generation.optimize import step_dtype
from dalle_mini.generation.windows import SMALL
from dalle_mini.models.image_tokenizer import TokenGrid
from dalle_mini.models.token_model import TokenModelConfig

MOST = 32  # a device: beyond it arithmetic binds, and more only takes more memory
SHARE = 0.8  # of the memory that is free now; the rest is for others and for what the compiler keeps
CGROUP = Path("/sys/fs/cgroup")
GROWTH = 1.75  # the old cache is there while the new one is filled: 3/4 of it at the last step


def batch_that_fits(
    config: TokenModelConfig, dtype, tokenizer: TokenGrid, devices: Sequence[jax.Device], window: int = 1
) -> int:
    """The images that all devices together draw in one call: at least 1 each, at most `MOST` each.

    A CPU that `devices` names once for each core counts as often if the model is small. `window` is the most tokens
    that a pass draws of an image.
    """
    room = SHARE * free_bytes(devices[0]) - decoding_bytes(tokenizer, devices[0])
    together = len(devices if config.cache_width <= SMALL else set(devices))
    if devices[0].platform == "cpu":
        room /= together  # which share the host's memory
    return together * max(1, min(MOST, int(room // image_bytes(config, dtype, window))))


def image_bytes(config: TokenModelConfig, dtype, window: int = 1) -> int:
    """Bytes for drawing one image and its unconditional row: keys and values, logits and what sampling sorts."""
    cache = 2 * config.cache_width * config.image_length * step_dtype(dtype).itemsize
    logits = 2 * 8 * 4 * config.image_vocab_size * window
    return int(GROWTH * cache) + logits


def calls_that_fit(devices: Sequence[jax.Device], size: int) -> int:
    """The calls of `size` bytes each that may run at the same time: one a device, or a core as `workers` names them."""
    if len(set(devices)) == len(devices):
        return len(devices)
    return max(1, min(len(devices), int(SHARE * free_bytes(devices[0]) // size)))


def decoding_bytes(tokenizer: TokenGrid, device: jax.Device) -> int:
    """Estimated bytes for making pixels: eight of the largest feature maps at once, in float32."""
    return decoded_at_once(device) * 8 * 4 * tokenizer.widest


def encoding_bytes(tokenizer: TokenGrid, images: int) -> int:
    """Estimated bytes for making tokens of so many images in one call: four of the largest feature maps, in float32."""
    return images * 4 * 4 * tokenizer.widest


def decoded_at_once(device: jax.Device) -> int:
    """The images that one call of the tokenizer decodes; one on a CPU, so that its bits do not depend on others."""
    return 1 if device.platform == "cpu" else 4


def chunked(candidates: int, batch_size: int) -> list[tuple[int, int]]:
    """(first, number) of each call's images: as even as may be, so that few programs are compiled."""
    calls = -(-candidates // batch_size)
    size = -(-candidates // calls)
    return [(start, min(size, candidates - start)) for start in range(0, candidates, size)]


def free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return int(min(psutil.virtual_memory().available, _free_in_container(CGROUP)))


def _free_in_container(folder: Path) -> float:
    """The bytes that a container's limit leaves, by cgroups of version 2 or 1; infinity without a limit."""
    kinds = (
        (folder, "memory.max", "memory.current", "inactive_file"),
        (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for place, limit, used, reclaimable in kinds:
        try:
            stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            # Files that were read, such as the weights, count as used until somebody wants the room.
            return int((place / limit).read_text()) - int((place / used).read_text()) + int(stat[reclaimable])
        except (OSError, ValueError, KeyError):  # not this version, or "max"
            continue
    return float("inf")
