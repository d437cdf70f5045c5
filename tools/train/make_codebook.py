"""Make the tokens of emoji scenes: an encoder and a codebook, without training a network.

    python tools/train/make_codebook.py runs/emoji/codebook

The world of the scenes is closed: all patches of 16 x 16 pixels can be enumerated, and nothing has to be found by
gradients. The grounds are found in the pictures (models/layered.py) and get a code each. The patches of things on them
are projected onto principal components, and the other codes are their k-means clusters there. Distances between codes
are distances between pixels, and each patch gets the code that copies it best. The decoder begins as the clusters'
means. train_vqgan.py then trains it to use the codes around a patch too; the seq2seq model need not wait for that.
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
from dalle_mini.models.config import GROUND, VQGANConfig
from dalle_mini.models.layered import BRIGHT, EQUAL, SURE, LayerEncoder, patches
from dalle_mini.runtime import console, files

PICTURES = 4000
PATCHES = 200_000  # different ones, at most
ROUNDS = 15  # of k-means
BLOCK = 4096  # patches compared at a time
BATCH = 250  # pictures
RARE = 3e-5  # of all patches of ground: a ground that is rarer is the inside of a thing that covers all of a picture
SPREAD = 1.0  # root mean square of the entries of the patches' vectors
# Squared distance of such vectors. Patches that differ by one grey level in a pixel are nearer.
TWINS = 1e-3


def make(out: Path, world: World, pictures: int, patches: int, rounds: int, model: VQGANConfig = MODEL) -> None:
    started = time.monotonic()
    vqgan = VQGAN(model, rngs=nnx.Rngs(0))
    grounds, values, counts = all_patches(vqgan.encoder, Pictures("train", 1, world), pictures, patches)
    if len(values) < 2 * model.n_embed:
        raise UserError(
            f"{len(values)} different patches are too few for {model.n_embed} codes: more --pictures or --patches"
        )
    learn(vqgan, grounds, values, counts, rounds)
    with files.blamed(out), files.written_beside(out) as beside:
        vqgan.save_pretrained(beside)
    console.answer(f"{out}: {time.monotonic() - started:.0f} s")


def learn(vqgan: VQGAN, grounds: np.ndarray, values: np.ndarray, counts: np.ndarray, rounds: int) -> None:
    """Set a VQGAN's encoder, its codes, and the first decoder: the clusters' means.

    Args:
        grounds: a code each, [grounds, 6], as `layered.fitted` has them.
        values: patches of things, [patches, side * side * 4], as `LayerEncoder.layer` has them.
        counts: how often they were seen, [patches].
    """
    config = vqgan.config
    mean, axes = principal_axes(values, config.embed_dim - GROUND)
    vectors = (values - mean) @ axes
    scale = SPREAD / np.sqrt(np.mean(vectors**2))
    # Thrice as far apart as they must be: float16 brings some nearer to each other.
    codes, error = k_means(vectors, counts, config.n_embed - len(grounds), rounds, 3 * TWINS / scale**2)
    noise = (np.mean(np.sum((values - mean - vectors @ axes.T) ** 2, axis=1)) + error) / (3 * values.shape[1] / 4)
    if lesser_twins((codes * scale).astype(np.float16), np.ones(len(codes)), TWINS).any():
        raise UserError(f"some of the {len(codes)} codes are alike: more --rounds or --patches tell them apart")
    console.answer(
        f"{len(grounds)} grounds, {len(values)} patches; different ones are copied at {-10 * np.log10(noise):.2f} dB"
    )
    set_conv(vqgan.encoder.embed, axes * scale, -mean @ axes * scale)
    set_conv(vqgan.decoder.direct, axes.T / scale, mean)
    for conv in (vqgan.quant_conv, vqgan.post_quant_conv):
        set_conv(conv, np.eye(config.embed_dim, dtype=np.float32))
    vqgan.codebook.embedding[...] = jnp.concatenate(
        [ground_vectors(grounds, config.embed_dim), np.pad(codes * scale, [(0, 0), (0, GROUND)])]
    )
    # Rounded as a bundle stores them: the tokens that are made with these weights are then the bundle's.
    nnx.update(vqgan, jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype), nnx.state(vqgan, nnx.Param)))


def all_patches(
    encoder: LayerEncoder, world: Pictures, pictures: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grounds of training pictures, and the different patches of things on them, with how often each was seen."""
    source, grounds, tables = world.source(), [], []
    find = nnx.jit(patches_of)
    for start in range(0, pictures, BATCH):
        images, _ = source.batch(range(start, min(start + BATCH, pictures)))
        ground, is_ground, things = (np.asarray(one) for one in find(encoder, images))
        grounds.append(ground[is_ground])
        cells = np.ascontiguousarray(things[~is_ground])
        tables.append(np.unique(cells.view(f"V{cells.shape[1]}").ravel(), return_counts=True))
    cells, counts = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    cells, places = np.unique(cells, return_inverse=True)
    counts = np.bincount(places, counts)
    # The most frequent are all kept; of the others a sample.
    rng = np.random.default_rng(0)
    chosen = np.argsort(-counts + rng.random(len(counts)))[:most]
    values = cells[chosen].view(np.uint8).reshape(len(chosen), -1).astype(np.float32) / 255
    return commonest(np.concatenate(grounds)), values, counts[chosen].astype(np.float32)


def patches_of(encoder: LayerEncoder, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Grounds of images uint8 [batch, H, W, 3], which patches are one, and all patches, uint8 [..., n]."""
    values = images.astype(jnp.float32) / 255
    ground, is_ground = encoder.ground(values)
    cells = patches(encoder.layer(values, ground, is_ground), encoder.side)
    whole = jnp.rint(255 * jnp.clip(cells, 0, 1)).astype(jnp.uint8)
    return ground, is_ground, whole.reshape(*whole.shape[:3], -1)


def commonest(grounds: np.ndarray) -> np.ndarray:
    """The grounds [n, 6] that are not rare, without those that no eye can tell from a commoner one."""
    different, counts = np.unique(np.rint(grounds * 1024), axis=0, return_counts=True)
    different, counts = (one[counts >= RARE * len(grounds)] for one in (different, counts))
    found: list[np.ndarray] = []
    for ground in different[np.argsort(-counts, kind="stable")] / 1024:
        if all(np.max(np.abs(ground - other)) >= EQUAL for other in found):
            found.append(ground)
    return np.array(found, np.float32)


def ground_vectors(grounds: np.ndarray, length: int) -> np.ndarray:
    """The latent vectors of grounds [n, 6], as `LayerEncoder` makes them: [n, length]."""
    vectors = np.zeros((len(grounds), length), np.float32)
    vectors[:, -GROUND] = SURE
    vectors[:, 1 - GROUND :] = BRIGHT * grounds
    return vectors


def principal_axes(values: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean [n] and the first axes [n, dimensions] of patches [patches, n]."""
    mean = values.mean(axis=0)
    _, axes = np.linalg.eigh((values - mean).T @ (values - mean))
    return mean, axes[:, ::-1][:, :dimensions]


def k_means(
    vectors: np.ndarray,
    counts: np.ndarray,
    clusters: int,
    rounds: int,
    twins: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Lloyd's k-means of weighted points: centres [clusters, n], and the mean squared distance to the nearest one.

    It begins at points, the most frequent ones among them. Centres without points, and those nearer than `twins`
    (squared) to one with more of them, move to the points that are served worst.
    """
    rng = np.random.default_rng(0)
    frequent = np.argsort(-counts)[: clusters // 8]
    others = np.setdiff1d(np.arange(len(vectors)), frequent)
    first = np.concatenate([frequent, rng.choice(others, clusters - len(frequent), replace=False)])
    centres = vectors[first]
    # The insides of things are plain more often than not: as they are, they would be all that counts.
    weights = np.minimum(counts, 50)
    points = jnp.asarray(np.pad(vectors, [(0, -len(vectors) % BLOCK), (0, 0)])).reshape(-1, BLOCK, vectors.shape[1])
    # Rounds are added while there are twins: what was moved in one may have become one.
    for turn in range(2 * rounds):
        places, distances = (np.asarray(one).ravel()[: len(vectors)] for one in nearest(points, jnp.asarray(centres)))
        totals = np.bincount(places, weights, clusters)
        sums = np.stack([np.bincount(places, weights * column, clusters) for column in vectors.T], axis=1)
        centres = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1e-9)[:, None], centres).astype(np.float32)
        idle = (totals == 0) | lesser_twins(centres, totals, twins)
        if turn + 1 >= rounds and not idle.any():
            break
        worst = np.argsort(-weights * distances)[: np.sum(idle)]
        centres[idle] = vectors[worst]
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
