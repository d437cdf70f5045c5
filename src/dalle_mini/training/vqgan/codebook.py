"""A VQGAN's codebook while it is trained: how its entries move, which of them are revived, and what keeps all in use.

An entry moves in one of two ways (van den Oord et al. 2017, "Neural Discrete Representation Learning", arXiv
1711.00937): it follows the mean of its vectors by an exponential moving average (appendix A.1), or a loss pulls it
there and the optimizer moves it (equation 3). Either way a running mean of each entry's uses says which entries are
dead.

A dead entry is revived at a vector of the batch, drawn in proportion to its squared error as in k-means++ (Arthur and
Vassilvitskii 2007), so that entries go where the error is. The first step revives a random codebook whole, which is its
initialisation. A trained codebook begins as if all of its entries were in use.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dalle_mini.models.vqgan import unit

UPDATES = ("ema", "loss")
MOST_AT_ONCE = 1.0  # at most so many uses a step are credited to a revived entry


class CodebookConfig(Protocol):
    """The part of `VQGANTraining` that is used here."""

    @property
    def codebook(self) -> str: ...
    @property
    def codebook_decay(self) -> float: ...
    @property
    def revive_every(self) -> int: ...
    @property
    def revive_below(self) -> float: ...


class Uses(NamedTuple):
    """Running means over steps of each entry's uses [n_embed], and of the sum of its vectors [n_embed, embed_dim]."""

    uses: jax.Array
    sums: jax.Array


def no_uses(codes: Any) -> dict[str, jax.Array]:
    """The state that a run begins with, as a dict; `codes` is [n_embed, embed_dim]."""
    return Uses(jnp.zeros(codes.shape[0]), jnp.zeros(codes.shape))._asdict()


def update(
    config: CodebookConfig,
    codes: jax.Array,
    state: dict[str, jax.Array],
    latents: jax.Array,
    tokens: jax.Array,
    step: jax.Array,
    key: jax.Array,
    *,
    cosine: bool = False,
    trained: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(codes, state) after a step.

    Args:
        codes: [n_embed, embed_dim], after the optimizer's update.
        state: the one of `no_uses`, or of the step before.
        latents, tokens: the batch's vectors [..., embed_dim] and their entries [...].
        step: revival is due where `config.revive_every` divides it.
        key: draws the vectors that entries are revived at.
        cosine: vectors have length 1, and so have entries that follow them.
        trained: the codebook was in use before, so that none of it is dead to begin with.
    """
    vectors = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)  # [N, embed_dim]
    tokens = tokens.reshape(-1)
    even = len(vectors) / len(codes)  # uses a step of each entry, if all were used alike
    uses, sums = state["uses"], state["sums"]
    if trained:
        is_new = jnp.sum(uses) == 0
        uses = jnp.where(is_new, even, uses)
        sums = jnp.where(is_new, even * (unit(codes) if cosine else codes), sums)
    decay = config.codebook_decay
    counted = jnp.zeros(len(codes)).at[tokens].add(1.0)
    summed = jnp.zeros(codes.shape).at[tokens].add(vectors)
    uses = decay * uses + (1 - decay) * counted
    sums = decay * sums + (1 - decay) * summed
    if config.codebook == "ema":
        means = sums / jnp.maximum(uses, 1e-5)[:, None]
        codes = jnp.where(uses[:, None] > 1e-5, unit(means) if cosine else means, codes)
    if config.revive_every:

        def revive(codes, uses, sums):
            placed = unit(codes) if cosine else codes
            error = jnp.sum((vectors - placed[tokens]) ** 2, axis=-1)
            pick = jax.random.categorical(key, jnp.log(error + 1e-12), shape=(len(codes),))
            dead = (uses < config.revive_below * even)[:, None]
            credit = min(MOST_AT_ONCE, even)
            codes = jnp.where(dead, vectors[pick], codes)
            return codes, jnp.where(dead[:, 0], credit, uses), jnp.where(dead, credit * codes, sums)

        due = step % config.revive_every == 0
        codes, uses, sums = jax.lax.cond(due, revive, lambda *same: same, codes, uses, sums)
    return codes, Uses(uses, sums)._asdict()


def perplexity(uses: jax.Array) -> jax.Array:
    """The number of entries in use, if all were used alike: exp of the entropy of their shares."""
    shares = uses / jnp.maximum(jnp.sum(uses), 1e-10)
    return jnp.exp(-jnp.sum(shares * jnp.log(shares + 1e-10)))


def entropy_loss(latents: jax.Array, codes: jax.Array, temperature: float) -> jax.Array:
    """Low where each vector is sure of its entry and all entries are wanted: E[H(p)] - H(E[p]), in nats.

    p is the softmax over entries of minus the squared distance over `temperature`. The difference is minus the mutual
    information of vector and entry, from -log(n_embed) to 0 (Chang et al. 2022, MaskGIT's code; Yu et al. 2023,
    "Language Model Beats Diffusion", equation 5). It holds two arrays of [vectors, n_embed] for its gradient.

    Args:
        latents: [..., embed_dim].
        codes: [n_embed, embed_dim].
    """
    z = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
    distance = jnp.sum(z**2, axis=-1, keepdims=True) + jnp.sum(codes**2, axis=-1) - 2 * z @ codes.T
    log_p = jax.nn.log_softmax(-distance / temperature, axis=-1)  # [N, n_embed]
    p = jnp.exp(log_p)
    each = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    mean = jnp.mean(p, axis=0)
    return each + jnp.sum(mean * jnp.log(mean + 1e-10))
