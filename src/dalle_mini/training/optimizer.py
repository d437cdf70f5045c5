"""Optimizers and schedules.

Layer-stacked leaves `[L, ...]` are updated under `jax.vmap`, one layer at a time: Adafactor's factoring, update
clipping and parameter scale then belong to each layer, exactly as for unstacked leaves. A plain optax.adafactor over
the stack mixes the layers and was seen to give one of them a 500 times too large update.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from dalle_mini.errors import UserError

STACK = "layers"  # the attribute under which a network keeps its stacked blocks


def schedule(learning_rate: float, warmup_steps: int, steps: int, decay: str = "cosine") -> optax.Schedule:
    """Linear warm-up from 0, then `constant`, `linear` (to 0) or `cosine` (to 2 % of the peak) decay."""
    rest = max(steps - warmup_steps, 1)
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps + 1)
    if decay == "constant":
        return warmup  # it ends in a plateau, one step later than the decays take over, as published
    tails = {
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(learning_rate, rest, alpha=0.02),
    }
    if decay not in tails:
        raise UserError(f"decay: {decay!r} is none of constant, {', '.join(tails)}")
    return optax.join_schedules([warmup, tails[decay]], [warmup_steps])


def adafactor(learning_rate: optax.ScalarOrSchedule, clipping_threshold: float = 1.0) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018) with the published recipe's settings, for each layer of a stack."""
    return per_layer(optax.adafactor(learning_rate, clipping_threshold=clipping_threshold))


def adamw(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0, max_grad_norm: float = 1.0, b2: float = 0.99
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) behind global-norm clipping. Element-wise, so stacks need no care."""
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.adamw(learning_rate, b2=b2, weight_decay=weight_decay)
    )


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with the subtrees below a key `layers` vmapped over their leading axis.

    Its state is a dict: "single" for all other leaves, and the path of each stack for its layers.
    """

    def init(params):
        single, stacks = _split(params)
        return {"single": tx.init(single), **{path: jax.vmap(tx.init)(stack) for path, stack in stacks.items()}}

    def update(grads, state, params=None):
        single_grads, stack_grads = _split(grads)
        single_params, stack_params = _split(params)
        single, single_state = tx.update(single_grads, state["single"], single_params)
        updates, new_state = {}, {"single": single_state}
        for path, stack in stack_grads.items():
            updates[path], new_state[path] = jax.vmap(tx.update)(stack, state[path], stack_params[path])
        return _join(grads, single, updates), new_state

    return optax.GradientTransformation(init, update)


def _is_stack(path: tuple) -> bool:
    return STACK in (_name(entry) for entry in path)


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))


def _split(tree: Any) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
    """(leaves outside any stack, {path of a stack: its leaves}), both by name."""
    single, stacks = {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [_name(entry) for entry in path]
        if _is_stack(path):
            at = names.index(STACK) + 1
            stacks.setdefault(".".join(names[:at]), {})[".".join(names[at:])] = leaf
        else:
            single[".".join(names)] = leaf
    return single, stacks


def _join(like: Any, single: dict, stacks: dict) -> Any:
    def pick(path, _):
        names = [_name(entry) for entry in path]
        if _is_stack(path):
            at = names.index(STACK) + 1
            return stacks[".".join(names[:at])][".".join(names[at:])]
        return single[".".join(names)]

    return jax.tree_util.tree_map_with_path(pick, like)
