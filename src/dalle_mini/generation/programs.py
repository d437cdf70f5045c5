"""The arguments of the decoder's compiled programs, and how several devices share them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dalle_mini.generation.sampling import is_guided, resolve
from dalle_mini.models.token_model import TokenModel
from dalle_mini.settings import SAMPLERS, SamplingParams, check_whole


class DecodeState(NamedTuple):
    """The loop's state. P prompts of C candidates; G is 2 with guidance, the conditional rows first, else 1.

    In sequential decoding all images are at one position, and `position` and `passes` have the shape []. In parallel
    decoding each image has its own, and the shape is [P, C].
    """

    position: jax.Array  # int32, tokens that are final
    passes: jax.Array  # int32, passes of the network so far
    tokens: jax.Array  # int32 [P, C, image_length], drafts from the position on
    cache: Any  # the network's, G P C rows; on several devices one device's rows after another's


export.register_namedtuple_serialization(DecodeState, serialized_name="dalle_mini.DecodeState")


class Loop(NamedTuple):
    """The form of the decoding loop. Every form draws the same tokens; the default is for CPUs and TPUs.

    On a GPU the host asks after each iteration whether another one follows, and the GPU waits for its answer.

    Attributes:
      passes: of one iteration. Those after the end are computed in vain.
      unrolled: the program has a copy of the pass for each. Otherwise they are an inner loop of fixed length, which
        compiles as fast as one pass, and for which a GPU does not ask.
      graph: the whole loop is one CUDA graph, so a GPU never asks. Other platforms ignore it.
    """

    passes: int = 1
    unrolled: bool = False
    graph: bool = False


PASS_BY_PASS = Loop()


@dataclasses.dataclass(frozen=True)
class Programs:
    """The static arguments of the two programs.

    Attributes:
      graphdef: the optimized model's.
      guided: there are unconditional rows.
      most, unlimited: the largest top_k, and whether a prompt has none.
      codebook_size: ids from here on are never sampled.
      sampler: one of `SAMPLERS`.
      window: the positions of a pass; 1 is sequential decoding.
      loop: the form of the loop over the passes.
      mesh: the devices that share the work, of `mesh_of`; None where there is one.
    """

    graphdef: nnx.GraphDef
    guided: bool
    most: int
    unlimited: bool
    codebook_size: int
    sampler: str
    window: int
    loop: Loop = PASS_BY_PASS
    mesh: Mesh | None = None

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # once, and not at each pause: a graph has many parts
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    @property
    def state(self) -> Any:
        """How the loop's state is split among the devices."""
        counts = ALL if self.window == 1 else IMAGES
        specs: Any = counts, counts, IMAGES, PartitionSpec(("prompts", "candidates"))  # one in each array's place
        return DecodeState(*specs)

    def on_each_device(self, function, ins: tuple, outs):
        """`function` on every device's share of its arguments; `ins` and `outs` name the mesh's axes."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)


# How each argument is split among the devices of a mesh.
ALL = PartitionSpec()
PROMPTS = PartitionSpec("prompts")
IMAGES = PartitionSpec("prompts", "candidates")
TEXT = PartitionSpec(None, None, "prompts")
CONTEXT = PartitionSpec(None, "prompts")


@functools.lru_cache(maxsize=64)
def the_same(programs: Programs) -> Programs:
    """The first of those that are equal, so that they are compared once a call and not once a pause."""
    return programs


class Call(NamedTuple):
    """The arguments of `prefill` and `decode_steps` besides the state."""

    programs: Programs
    params: nnx.State
    text: np.ndarray  # int [G, 2, P, S], ids and mask
    keys: jax.Array  # [P, C]
    sampling: SamplingParams  # of arrays [P]
    forced: np.ndarray | None  # int32 [P, C, image_length]


def call_of(
    model: TokenModel,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    keys: jax.Array,
    *,
    sampling: SamplingParams | None = None,
    uncond_input_ids: jax.Array | None = None,
    uncond_attention_mask: jax.Array | None = None,
    codebook_size: int | None = None,
    forced: jax.typing.ArrayLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    sampler: str = SAMPLERS[0],
    window: int = 1,
    loop: Loop = PASS_BY_PASS,
    most: int | None = None,
    **rule,
) -> Call:
    """The arguments of `stream_tokens`, checked, as the programs take them.

    `most` is how many of the likeliest tokens are looked at; None is the largest top_k. The tokens do not depend on it.
    """
    check_whole("window", window, 1)
    check_whole("loop.passes", loop.passes, 1)
    asked = dataclasses.replace(sampling or SamplingParams(), **rule)
    keys = keys[:, None] if keys.ndim == 1 else keys
    vocabulary = model.vocabulary_size
    codebook_size = vocabulary - 1 if codebook_size is None else min(vocabulary, codebook_size)
    sampling = resolve(asked, len(keys), codebook_size, model.config.sampling.top_k)
    guided = is_guided(sampling)
    text = [np.stack([input_ids, attention_mask])]  # [2, P, S] each
    if guided:
        if uncond_input_ids is None or uncond_attention_mask is None:
            raise ValueError(f"guidance {asked.guidance} needs uncond_input_ids and uncond_attention_mask")
        text.append(np.stack([uncond_input_ids, uncond_attention_mask]))
    kept = None
    if forced is not None:
        kept = np.broadcast_to(np.asarray(forced, np.int32), (*keys.shape, model.image_length))
    graphdef, params = nnx.split(model)
    programs = Programs(
        graphdef=graphdef,
        guided=guided,
        most=int(sampling.top_k.max()) if most is None else most,
        unlimited=bool((sampling.top_k == 0).any()),
        codebook_size=codebook_size,
        sampler=sampler,
        window=min(window, model.image_length),
        loop=loop,
        mesh=None if devices is None else mesh_of(devices, *keys.shape),
    )
    return Call(the_same(programs), params, np.stack(text).astype(np.int32), keys, sampling, kept)


def replicated(model: TokenModel, devices: Sequence[jax.Device]) -> TokenModel:
    """The model on each device, so that `stream_tokens` need not take it there."""
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, on_all(params, mesh_of(devices, len(devices), 1)))


def mesh_of(devices: Sequence[jax.Device], prompts: int, candidates: int) -> Mesh:
    """The devices as a mesh with axes "prompts" and "candidates", one of which has them all.

    Raises:
      ValueError: they cannot share so many prompts of so many candidates evenly.
    """
    count = len(devices)
    if prompts % count == 0:
        shape = (count, 1)
    elif candidates % count == 0:
        shape = (1, count)
    else:
        raise ValueError(f"{count} devices cannot share {prompts} captions of {candidates} candidates evenly")
    return Mesh(np.asarray(devices).reshape(shape), ("prompts", "candidates"))


def on_all(params, mesh: Mesh):
    """The parameters, whole, on each device of the mesh."""
    return jax.device_put(params, NamedSharding(mesh, ALL))
