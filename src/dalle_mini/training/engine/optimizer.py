"""Optimizers and schedules.

Layer-stacked leaves `[L, ...]` are updated under `jax.vmap`, one layer at a time: Adafactor's factoring, update
clipping and parameter scale then belong to each layer, exactly as for unstacked leaves, and Muon sees matrices. A plain
optax.adafactor over the stack mixes the layers and was seen to give one of them a 500 times too large update.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax import contrib
from optax.contrib import MuonDimensionNumbers

from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import OptimizerConfig
from dalle_mini.training.engine.sharding import stack_path
from dalle_mini.weights.pretrained import flatten, unflatten

# The parameters that `embeddings_only` trains: all that a new codebook changes.
EMBEDDINGS = re.compile(r"lm_head\.|decoder\.(embed_tokens|embed_positions|layernorm_embedding|final_ln)\.")


def make_optimizer(config: OptimizerConfig, steps: int, *, decay_vectors: bool = True) -> optax.GradientTransformation:
    """The update of a run of `steps` updates, for pure dicts of parameters, layer stacks included.

    - Adafactor (Shazeer and Stern 2018), as published: factored from 128 x 128 on, the update relative to each
      parameter's scale and its RMS limited to `clip`. `weight_decay` takes that share off at each update, whatever the
      learning rate.
    - AdamW (Loshchilov and Hutter 2019) behind global-norm clipping; `weight_decay` times the learning rate is taken
      off all parameters, norms and embeddings too, as published.
    - Muon (Jordan 2024, a Shampoo without accumulation) for the matrices of the layers, its updates scaled to AdamW's
      usual size (Liu et al. 2025) so that learning rates are AdamW's; AdamW for embeddings, head, norms and biases.
      Global-norm clipping and `weight_decay` as AdamW's, but norms and biases of the layers do not decay. A network of
      convolutions has no such layers: there it moves their kernels, as matrices [height * width * in, out].

    Without `decay_vectors` weight decay is for matrices alone: not for norms, biases, scales and what else has
    less than two dimensions.
    """
    rate = schedule(config, steps)
    mask = None if decay_vectors else _matrices
    if config.name == "adafactor":
        one = optax.adafactor(
            rate,
            clipping_threshold=config.clip or None,
            weight_decay_rate=config.weight_decay or None,
            weight_decay_mask=mask,
        )
        return per_layer(one)
    adamw = optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask)
    if config.name == "adamw":
        tx = per_layer(adamw)
    else:
        kernels = _muon(config, rate, MuonDimensionNumbers((0, 1, 2), 3))
        convolutions = optax.partition({True: kernels, False: adamw}, _kernels)
        tx = per_layer(_muon(config, rate), single=adamw, unstacked=convolutions)
    return optax.chain(optax.clip_by_global_norm(config.clip), tx) if config.clip else tx


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim == 4, params)


def in_groups(
    tx: optax.GradientTransformation, groups: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """`tx` for all parameters but those below the keys of `groups`, each of which has its own.

    Its state is a dict: "rest", and each group's. Clipping by a global norm is within a group. Without groups: `tx`.
    """
    if not groups:
        return tx
    parts = {"rest": tx, **groups}

    def init(params):
        own = _by_group(params, groups)
        return {name: part.init(own[name]) for name, part in parts.items()}

    def update(grads, state, params=None):
        own_grads, own_params = _by_group(grads, groups), _by_group(params, groups)
        moved: dict[str, Any] = {}
        new_state = {}
        for name, part in parts.items():
            updates, new_state[name] = part.update(own_grads[name], state[name], own_params[name])
            moved |= updates
        return {key: moved[key] for key in grads}, new_state

    return optax.GradientTransformation(init, update)


def _by_group(tree: Mapping, groups: Mapping) -> dict[str, Any]:
    rest = {key: value for key, value in tree.items() if key not in groups}
    return {"rest": rest, **{name: {name: tree[name]} for name in groups}}


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate: linear warm-up from 0, then `config.decay` to the last of `steps`.

    As published the warm-up has one step more than its number, which a decay cuts off: the first update has the rate 0.
    """
    peak, begin = config.learning_rate, config.warmup_steps
    warmup = optax.linear_schedule(0.0, peak, begin + 1)
    if config.decay == "constant":
        return warmup
    rest = max(steps - begin, 1)
    if config.decay == "linear":
        tail = optax.linear_schedule(peak, peak * config.final_rate, rest)
    elif config.decay == "cosine":
        tail = optax.cosine_decay_schedule(peak, rest, alpha=config.final_rate)
    else:
        tail = optax.exponential_decay(peak, config.decay_every, config.decay_factor)
    return optax.join_schedules([warmup, tail], [begin])


def _muon(
    config: OptimizerConfig, rate: optax.Schedule, axes: MuonDimensionNumbers | None = None
) -> optax.GradientTransformation:
    """For matrices, and other leaves by AdamW; with `axes` for leaves that have them alone."""
    return contrib.muon(
        rate,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        consistent_rms=0.2,  # AdamW's root mean square, as measured by Liu et al.
        muon_weight_dimension_numbers=axes,
    )


def per_layer(
    tx: optax.GradientTransformation,
    single: optax.GradientTransformation | None = None,
    unstacked: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """`tx` with the subtrees below a key `layers` vmapped over their leading axis.

    Its state is a dict: "single" for all other leaves, and the path of each stack for its layers. Those other leaves
    are updated by `single`, if it is given, or by `unstacked` where there is no stack.
    """

    def others(stacks):
        return (single if stacks else unstacked or single) or tx

    def init(params):
        alone, stacks = _split(params)
        state = {path: jax.vmap(tx.init)(stack) for path, stack in stacks.items()}
        return {"single": others(stacks).init(alone), **state}

    def update(grads, state, params=None):
        alone_grads, stack_grads = _split(grads)
        alone_params, stack_params = _split(params)
        updates, alone_state = others(stack_grads).update(alone_grads, state["single"], alone_params)
        new_state = {"single": alone_state}
        for path, stack in stack_grads.items():
            moved, new_state[path] = jax.vmap(tx.update)(stack, state[path], stack_params[path])
            updates |= {f"{path}.{name}": leaf for name, leaf in moved.items()}
        return unflatten(updates, grads), new_state

    return optax.GradientTransformation(init, update)


def _split(params: Mapping) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
    """(leaves outside any stack, {path of a stack: its leaves}), both by name."""
    alone: dict[str, jax.Array] = {}
    stacks: dict[str, dict[str, jax.Array]] = {}
    for name, leaf in flatten(params).items():
        names = name.split(".")
        end = stack_path(names)
        if end:
            stacks.setdefault(".".join(names[:end]), {})[".".join(names[end:])] = leaf
        else:
            alone[name] = leaf
    return alone, stacks


def trained_part(params: Mapping, config: OptimizerConfig, trained: re.Pattern | None = None) -> Mapping[str, Any]:
    """The parameters that the optimizer moves, as a pure dict without the others.

    Args:
        trained: matches the begin of their paths; None is all.

    Raises:
        UserError: there are none. Only DalleBart has embeddings to train alone.
    """
    if config.embeddings_only:
        trained = EMBEDDINGS
    if trained is None:
        return params
    part = _only(params, trained, "")
    if not part:
        raise UserError("optimizer.embeddings_only: this model has no decoder embeddings to train")
    return part


def with_trained_part(params: Mapping, part: Mapping) -> dict[str, Any]:
    """`params` with the leaves of `part` in place of its own."""
    return {
        key: value if key not in part else with_trained_part(value, part[key]) if _is_node(value) else part[key]
        for key, value in params.items()
    }


def _only(params: Mapping, wanted: re.Pattern, prefix: str) -> dict[str, Any]:
    kept = {}
    for key, value in params.items():
        if _is_node(value):
            if inner := _only(value, wanted, f"{prefix}{key}."):
                kept[key] = inner
        elif wanted.match(f"{prefix}{key}"):
            kept[key] = value
    return kept


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping)
