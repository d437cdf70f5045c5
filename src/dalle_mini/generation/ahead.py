"""Compiling the decoder's programs while its weights are still being read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from dalle_mini.generation.decode import compile_tokens
from dalle_mini.generation.memory import batch_that_fits
from dalle_mini.generation.scheduling import Request, decoding_arguments, least_rows, resolved, schedule
from dalle_mini.generation.windows import widest
from dalle_mini.models.image_tokenizer import token_grid
from dalle_mini.models.token_model import token_model_config
from dalle_mini.runtime.cores import workers
from dalle_mini.settings import GenerationSettings


@dataclasses.dataclass(frozen=True)
class Ahead:
    """The first prompts, so that their programs can be compiled while the weights are read.

    Attributes: the arguments of `DalleMini.generate_each`.
    """

    prompts: Sequence[str]
    settings: GenerationSettings
    batch_size: int | None = None

    def compile(self, folders: Mapping[str, Path], dtype, *, int8: bool) -> None:
        """Compile what `Engine.run` decodes the first of these prompts with; only the shapes of their texts count."""
        config, tokenizer = token_model_config(folders["dalle"]), token_grid(folders["vqgan"])
        settings, devices = resolved(self.settings, config, tokenizer.codebook_size), workers(jax.local_devices())
        blank = np.zeros((2, config.text_length), np.int32)
        requests = [Request(prompt, prompt, settings, blank, blank) for prompt in self.prompts]
        batch_size = self.batch_size
        if batch_size is None:
            window = widest(settings, config, devices[0].platform)
            batch_size = batch_that_fits(config, dtype, tokenizer, devices, window)
        least = least_rows(config, "int8" if int8 else dtype.name)
        group = next(schedule(requests, batch_size, least=least))
        window = group.window(config, devices)
        first, size = group.calls[0]
        some, numbers = group.shares(size, devices)[0]
        arguments = decoding_arguments(
            group.requests[some], first, numbers.stop, window, tokenizer.codebook_size, devices
        )
        compile_tokens(config, dtype, int8=int8, **arguments)
