"""Images drawn while training: the same prompts with the same keys each time, from the parameters as they are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dalle_mini.errors import UserError
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.models.image_tokenizer import load_image_tokenizer, token_grid
from dalle_mini.models.token_model import TokenModel, TokenModelConfig, token_model_shapes
from dalle_mini.runtime.files import reason
from dalle_mini.settings import GenerationSettings, check_prompts
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.config.sections import SampleConfig
from dalle_mini.training.engine.multihost import end_together
from dalle_mini.training.tracking.samples import Sample
from dalle_mini.weights.bundle import check_fit, find_part

if TYPE_CHECKING:
    from dalle_mini.pipeline import DalleMini

THIS_RUN = "this run's model"

logger = logging.getLogger("dalle_mini")


class PromptSampler:
    """Draws a run's prompts.

    Args:
        config: prompts, how many candidates, seed, VQGAN and CLIP.
        model: the config of the network that is trained.
        tokenizer, normalizer: those of that network.
        vqgan: the VQGAN of the data, used where `config` names none: a folder or a source of `weights.hub`.
        trained_on: the fingerprint of the VQGAN whose tokens are trained on (`models.fingerprint`), where it is known.
    Raises:
        UserError: in every process at once, where there is no VQGAN, or a model is missing, damaged, or does not fit
            the one that is trained.
    """

    def __init__(
        self,
        config: SampleConfig,
        model: TokenModelConfig,
        tokenizer: CaptionTokenizer,
        normalizer: CaptionNormalizer | None,
        *,
        vqgan: str | None = None,
        trained_on: str | None = None,
    ):
        self.config, self.model = config, model
        self.prompts = check_prompts(config.prompts) if config.prompts else []
        self._pipe: DalleMini | None = None
        self._parts = (tokenizer, normalizer)
        if not self.prompts:
            return
        self.settings = GenerationSettings(config.candidates, keep=config.candidates, seed=config.seed)
        source = config.vqgan or vqgan
        if source is None:
            raise UserError("samples.vqgan: name the VQGAN that draws samples.prompts, or leave those out")
        folder = find_part("vqgan", source)
        check_fit(model, token_grid(folder), {"vqgan": folder, "dalle": Path(THIS_RUN)})
        clip = None if config.clip is None else find_part("clip", config.clip)
        # Only process 0 draws, so only it reads the models. On a CPU float32 is quicker than bfloat16 for few rows.
        self.dtype = jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
        problem = None
        if jax.process_index() == 0:
            try:
                self._vqgan = load_image_tokenizer(folder)
                if trained_on is not None and fingerprint(self._vqgan) != trained_on:
                    raise UserError(f"{folder}: not the VQGAN whose tokens this run is trained on ({trained_on})")
                # Nothing but scores is asked of it here.
                self._ranker = cast(ClipRanker, Unranked()) if clip is None else ClipRanker.from_pretrained(clip)
            except UserError as error:
                problem = error
        end_together(problem)

    def draw(self, params: Any) -> list[Sample]:
        """The prompts' images by a pure dict of the model's parameters, sharded or not. Padding at ends is cut off.

        All processes must call it, since they gather the parameters together. Process 0 draws on its first device and
        returns the samples; the others return none. A failure is logged and does not end the run.
        """
        if not self.prompts:
            return []
        graphdef, shapes = token_model_shapes(self.model, self.dtype)
        whole = jax.tree.map(
            lambda leaf, wanted: _on_host(leaf, wanted.shape, self.dtype), params, nnx.to_pure_dict(shapes)
        )
        if jax.process_index() != 0:
            return []
        try:
            return self._draw(nnx.merge(graphdef, jax.tree.map(jnp.asarray, whole)))
        except Exception as error:  # for example out of memory: samples are not worth a run
            logger.warning("no images this time: %s", reason(error))
            return []
        finally:
            if self._pipe is not None:
                self._pipe.use(None)  # the memory is training's again

    def _draw(self, model: TokenModel) -> list[Sample]:
        from dalle_mini.pipeline import DalleMini

        if self._pipe is None:
            folders = {"vqgan": Path(), "dalle": Path()}
            devices = jax.local_devices()[:1]
            self._pipe = DalleMini(model, self._vqgan, self._ranker, *self._parts, folders, devices=devices)
        else:
            self._pipe.use(model)
        results = self._pipe.generate_each(self.prompts, self.settings, alone=True)
        ranked = self.config.clip is not None
        return [
            Sample(one.prompt, one.images, one.scores if ranked else None, one.indices, one.settings) for one in results
        ]


class Unranked:
    """Takes CLIP's place: all images score alike."""

    def scores_of(self, images: Sequence[np.ndarray], *_: Any) -> list[np.ndarray]:
        return [np.zeros(len(some), np.float32) for some in images]


@functools.cache
def _gather(dtype: np.dtype, sharding: NamedSharding):
    """Casts first, so that half the bytes travel."""
    return jax.jit(lambda leaf: leaf.astype(dtype), out_shardings=sharding)


def _on_host(leaf: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """One leaf whole, in process 0; one at a time, so that no device holds all of them."""
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
        leaf = _gather(dtype, NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        if jax.process_index() != 0:
            return None
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf, dtype)[tuple(map(slice, shape))]
