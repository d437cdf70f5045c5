"""How many pictures one call may draw, and one may decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import psutil

from dalle_mini.generation.prepare import step_dtype
from dalle_mini.models.config import DalleBartConfig, VQGANConfig

MOST = 32  # a device: beyond it arithmetic binds, and more only takes more memory
SHARE = 0.8  # of the memory that is free now; the rest is for others and for what the compiler keeps
CGROUP = Path("/sys/fs/cgroup")
GROWTH = 1.75  # the old cache is there while the new one is filled: 3/4 of it at the last step


def batch_that_fits(config: DalleBartConfig, dtype, vqgan_config: VQGANConfig, devices: Sequence[jax.Device]) -> int:
    """Pictures that all devices together draw in one call: at least 1 each, at most `MOST` each."""
    room = SHARE * free_bytes(devices[0]) - decoding_bytes(vqgan_config, devices[0])
    if devices[0].platform == "cpu":
        room /= len(devices)  # which share the host's memory
    return len(devices) * max(1, min(MOST, int(room // picture_bytes(config, dtype))))


def picture_bytes(config: DalleBartConfig, dtype) -> int:
    """Of one picture while it is drawn, with its unconditional row: keys and values, logits and what sampling sorts."""
    item = step_dtype(dtype).itemsize
    cache = 2 * 2 * config.decoder_layers * config.image_length * config.d_model * item
    logits = 2 * 8 * 4 * config.image_vocab_size
    return int(GROWTH * cache) + logits


def decoding_bytes(config: VQGANConfig, device: jax.Device) -> int:
    """Of the VQGAN's largest feature maps: a handful at full resolution, in float32 as it may be."""
    return decoded_at_once(device) * 8 * 4 * config.resolution**2 * config.ch


def decoded_at_once(device: jax.Device) -> int:
    """Pictures that one call of the VQGAN decodes: on a CPU to the same bits whatever the others are."""
    return 1 if device.platform == "cpu" else 4


def chunked(candidates: int, batch_size: int) -> list[tuple[int, int]]:
    """(first, number) of each call's pictures: as even as may be, so that few programs are compiled."""
    calls = -(-candidates // batch_size)
    size = -(-candidates // calls)
    return [(start, min(size, candidates - start)) for start in range(0, candidates, size)]


def free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min(psutil.virtual_memory().available, _free_in_container(CGROUP))


def _free_in_container(folder: Path) -> float:
    """What a container's limit leaves, of cgroups of version 2 or 1; infinity without a limit."""
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
