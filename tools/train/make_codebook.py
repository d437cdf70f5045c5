"""Make the tokens of emoji scenes: an encoder and a codebook, without training a network.

    python tools/train/make_codebook.py runs/emoji/codebook

The world of the scenes is closed: all patches of 16 x 16 pixels can be enumerated, and nothing has to be found by
gradients. The encoder is the patches' mean colour and principal components, and the codebook is their k-means clusters
there. Distances between codes are distances between pixels, and each patch gets the code that copies it best. The
decoder begins as the clusters' means. train_vqgan.py then trains it to use the codes around a patch too; the seq2seq
model need not wait for that.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from entry import Pictures, World, parser, user_errors
from flax import nnx
from train_vqgan import MODEL

from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.runtime import console, files

PICTURES = 4000
PATCHES = 200_000  # different ones, at most
ROUNDS = 15  # of k-means
BLOCK = 4096  # patches compared at a time
SPREAD = 1.0  # root mean square of the entries of the patches' vectors, to the nearest power of two
# Squared distance of such vectors. Patches that differ by one grey level in a pixel are nearer, and there are many of
# them around each plain background; half of all codes are further than 7 from the next one.
TWINS = 1e-3


def make(out: Path, world: World, pictures: int, patches: int, rounds: int, model: VQGANConfig = MODEL) -> None:
    started = time.monotonic()
    values, counts = all_patches(Pictures("train", 1, world), pictures, patches, model.downscale)
    if len(values) < 2 * model.n_embed:
        raise UserError(
            f"{len(values)} different patches are too few for {model.n_embed} codes: more --pictures or --patches"
        )
    vqgan = learned(values, counts, rounds, model)
    with files.blamed(out), files.written_beside(out) as beside:
        vqgan.save_pretrained(beside)
    console.answer(f"{out}: {time.monotonic() - started:.0f} s")


def learned(values: np.ndarray, counts: np.ndarray, rounds: int, model: VQGANConfig) -> VQGAN:
    """A VQGAN of patches [patches, side * side * 3] in [0, 1], which were seen so often [patches]."""
    mean, axes = patch_axes(values, model.embed_dim)
    vectors = (values - mean) @ axes
    # A power of two, so that float16 holds the axes of the mean colour exactly: all of their entries would err alike.
    scale = 2.0 ** np.round(np.log2(SPREAD / np.sqrt(np.mean(vectors**2))))
    # Thrice as far apart as they must be: float16 brings some nearer to each other.
    codes, error = k_means(vectors, counts, model.n_embed, rounds, 3 * TWINS / scale**2, are_ground(values))
    noise = float(np.mean(np.sum((values - mean - vectors @ axes.T) ** 2, axis=1)) + error) / values.shape[1]
    if lesser_twins((codes * scale).astype(np.float16), np.ones(len(codes)), TWINS).any():
        raise UserError(f"some of the {len(codes)} codes are alike: more --rounds or --patches tell them apart")
    console.answer(f"{len(values)} patches; different ones are copied at {-10 * np.log10(noise):.2f} dB")
    vqgan = VQGAN(model, rngs=nnx.Rngs(0))
    set_linear_encoder(vqgan, mean, axes * scale)
    set_linear_decoder(vqgan, mean, axes / scale)
    vqgan.codebook.embedding[...] = jnp.asarray(codes * scale)
    # Rounded as a bundle stores them: the tokens that are made with these weights are then the bundle's.
    nnx.update(vqgan, jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype), nnx.state(vqgan, nnx.Param)))
    return vqgan


def all_patches(world: Pictures, pictures: int, most: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Different patches of training pictures, float32 [n, side * side * 3] in [0, 1], and how often each was seen."""
    source = world.source()
    tables = []
    for start in range(0, pictures, 500):
        images, _ = source.batch(range(start, min(start + 500, pictures)))
        count, size = len(images), images.shape[1] // side
        cells = images.reshape(count, size, side, size, side, 3).swapaxes(2, 3).reshape(-1, side * side * 3)
        tables.append(np.unique(np.ascontiguousarray(cells).view(f"V{cells.shape[1]}").ravel(), return_counts=True))
    cells, counts = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    cells, places = np.unique(cells, return_inverse=True)
    counts = np.bincount(places, counts)
    # The most frequent, which are the plain ones, are all kept; of the others a sample.
    rng = np.random.default_rng(0)
    chosen = np.argsort(-counts + rng.random(len(counts)))[:most]
    values = cells[chosen].view(np.uint8).reshape(len(chosen), -1)
    return values.astype(np.float32) / 255, counts[chosen].astype(np.float32)


def patch_axes(values: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean [n] and axes [n, dimensions] of patches [patches, n].

    The axes are the mean colour, a colour that grows from the top to the bottom, and principal axes of the rest. With
    principal axes alone, a patch of plain ground or of a gradient comes back some grey levels off, differently in each
    pixel, and the ground shows a grid. So the mean is one colour too.
    """
    side = round(np.sqrt(values.shape[1] / 3))
    rows = np.stack([np.ones(side), np.linspace(-1, 1, side)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) * np.sqrt(side)
    ground = np.einsum("kr,x,cd->rxckd", rows, np.ones(side), np.eye(3)).reshape(-1, 6).astype(values.dtype)
    color = ground[:, :3]
    mean = (color @ (color.T @ values.mean(axis=0))).astype(np.float16).astype(values.dtype)  # as it will be kept
    centred = values - mean
    rest = centred - (centred @ ground) @ ground.T
    _, axes = np.linalg.eigh(rest.T @ rest)
    return mean, np.concatenate([ground, axes[:, ::-1][:, : dimensions - 6]], axis=1)


def are_ground(values: np.ndarray) -> np.ndarray:
    """Which patches [patches, n] have rows of one colour each, as plain ground and gradients have."""
    side = round(np.sqrt(values.shape[1] / 3))
    rows = values.reshape(len(values), side, side, 3)
    return np.all(rows == rows[:, :, :1], axis=(1, 2, 3))


def k_means(
    vectors: np.ndarray,
    counts: np.ndarray,
    clusters: int,
    rounds: int,
    twins: float = 0.0,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Lloyd's k-means of weighted points: centres [clusters, n], and the mean squared distance to the nearest one.

    It begins at points, the most frequent ones among them. Centres without points, and those nearer than `twins`
    (squared) to one with more of them, move to the points that are served worst. A centre that begins at one of the
    `kept` points [points] stays there, and others make way for it.
    """
    rng = np.random.default_rng(0)
    frequent = np.argsort(-counts)[: clusters // 8]
    others = np.setdiff1d(np.arange(len(vectors)), frequent)
    first = np.concatenate([frequent, rng.choice(others, clusters - len(frequent), replace=False)])
    centres = vectors[first]
    stays = np.zeros(clusters, bool) if kept is None else kept[first]
    # Plain backgrounds are most of every picture: as they are, they would be all that counts.
    weights = np.minimum(counts, 50)
    points = jnp.asarray(np.pad(vectors, [(0, -len(vectors) % BLOCK), (0, 0)])).reshape(-1, BLOCK, vectors.shape[1])
    # Rounds are added while there are twins: what was moved in one may have become one.
    for turn in range(2 * rounds):
        places, distances = (np.asarray(one).ravel()[: len(vectors)] for one in nearest(points, jnp.asarray(centres)))
        totals = np.bincount(places, weights, clusters)
        sums = np.stack([np.bincount(places, weights * column, clusters) for column in vectors.T], axis=1)
        moves = (totals > 0) & ~stays
        centres = np.where(moves[:, None], sums / np.maximum(totals, 1e-9)[:, None], centres).astype(np.float32)
        idle = (totals == 0) | lesser_twins(centres, totals + stays * totals.sum(), twins)
        if turn + 1 >= rounds and not idle.any():
            break
        worst = np.argsort(-weights * distances)[: np.sum(idle)]
        centres[idle], stays[idle] = vectors[worst], False
        console.answer(f"k-means {turn + 1}: {np.mean(distances):.4f}, {np.mean(idle):.1%} idle")
    return centres, float(np.mean(distances))


def lesser_twins(centres: np.ndarray, totals: np.ndarray, twins: float) -> np.ndarray:
    """Which centres [clusters] are nearer than `twins` (squared) to one that stays and has more points, or as many."""
    exact = centres.astype(np.float64)  # neighbours are nearer to each other than float32 can tell by products
    squares = np.sum(exact**2, axis=1)
    gone = np.zeros(len(centres), bool)
    near = squares[:, None] + squares - 2 * exact @ exact.T < twins
    np.fill_diagonal(near, False)
    for one in np.argsort(-totals, kind="stable"):
        if not gone[one]:
            gone |= near[one] & (totals <= totals[one])
    return gone


@jax.jit
def nearest(points: jax.Array, centres: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For points [blocks, BLOCK, n] the index of the nearest centre and the squared distance to it."""
    squares = jnp.sum(centres**2, axis=1)

    def of_block(block):
        distances = squares - 2 * block @ centres.T
        return jnp.argmin(distances, axis=1), jnp.min(distances, axis=1) + jnp.sum(block**2, axis=1)

    return jax.lax.map(of_block, points)


def set_linear_encoder(vqgan: VQGAN, mean: np.ndarray, axes: np.ndarray) -> None:
    """Make the patch encoder compute (patch - mean) axes, although it has activations: swish(x) - swish(-x) is x."""
    encoder, dimensions = vqgan.encoder, axes.shape[1]
    half = encoder.WIDTH // 2
    there = np.zeros((len(axes), half), np.float32)
    there[:, :dimensions] = axes
    both = np.concatenate([there, -there], axis=1)
    set_conv(encoder.embed, both, -mean @ both)
    unit = np.eye(half, dtype=np.float32)
    set_conv(encoder.hidden, np.block([[unit, -unit], [-unit, unit]]))
    set_conv(encoder.conv_out, np.concatenate([unit, -unit])[:, : encoder.conv_out.bias[...].size])
    set_conv(vqgan.quant_conv, np.eye(*vqgan.quant_conv.kernel[...].shape[2:], dtype=np.float32))


def set_linear_decoder(vqgan: VQGAN, mean: np.ndarray, axes: np.ndarray) -> None:
    """Make the patch decoder begin as mean + vector axes^T, the cluster's mean."""
    set_conv(vqgan.post_quant_conv, np.eye(*vqgan.post_quant_conv.kernel[...].shape[2:], dtype=np.float32))
    set_conv(vqgan.decoder.direct, axes.T, mean)


def set_conv(conv: nnx.Conv, matrix: np.ndarray, bias: np.ndarray | None = None) -> None:
    conv.kernel[...] = jnp.asarray(matrix.reshape(conv.kernel[...].shape))
    conv.bias[...] = jnp.zeros_like(conv.bias[...]) if bias is None else jnp.asarray(bias)


if __name__ == "__main__":
    options = parser(__doc__, world=True)
    options.add_argument("out", type=Path, help="the folder of the VQGAN, whose decoder is yet to be trained")
    options.add_argument("--pictures", type=int, default=PICTURES, help=f"to take patches from (default: {PICTURES})")
    options.add_argument("--patches", type=int, default=PATCHES, help=f"different ones, at most (default: {PATCHES})")
    options.add_argument("--rounds", type=int, default=ROUNDS, help=f"of k-means (default: {ROUNDS})")
    with user_errors():
        args = options.parse_args()
        for name in ("pictures", "patches", "rounds"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} {getattr(args, name)}: at least 1")
        make(args.out, World.load(args.world), args.pictures, args.patches, args.rounds)
