"""Make the seq2seq model's first weights: random ones, but for tokens that look alike, which begin alike.

    python tools/train/make_start.py runs/emoji/codebook runs/emoji/start

A token's row in the decoder's embedding and its column in the head begin as its code in the VQGAN's codebook, turned
into the model's width, with some noise. Tokens that look alike then learn from each other, and a wrong guess is at
first a near one. Everything else is as random as ever.
"""

from pathlib import Path

import numpy as np
from entry import parser, user_errors
from flax import nnx

from dalle_mini.models import VQGAN, DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.runtime import console, files
from dalle_mini.training.config import config_file, recipes

ALIKE = 0.8  # of the variance of a token's numbers; the rest is its own


def make(codebook: Path, out: Path, config: DalleBartConfig | None = None) -> None:
    if config is None:
        config = config_file.build(DalleBartConfig, config_file.read(recipes.find("emoji"))["training"]["model"])
    codes = np.asarray(VQGAN.from_pretrained(codebook).codebook.embedding[...])
    model = DalleBart(config, rngs=nnx.Rngs(0))
    rows, columns = model.decoder.embed_tokens.embedding, model.lm_head.kernel
    rows[...] = rows[...].at[: len(codes)].set(alike(codes, np.asarray(rows[...])[: len(codes)]))
    columns[...] = columns[...].at[:, : len(codes)].set(alike(codes, np.asarray(columns[...]).T[: len(codes)]).T)
    with files.blamed(out), files.written_beside(out) as beside:
        model.save_pretrained(beside)


def alike(codes: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Vectors of `random`'s shape [tokens, width] and spread, nearer to each other where the codes are."""
    centred = codes - codes.mean(axis=0)
    # The codes' first axis, how bright they are, has most of their variance: by the square root it has less.
    spread = np.sqrt(centred.std(axis=0) + 1e-9)
    centred = centred / spread
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((random.shape[1], codes.shape[1])))
    turned = centred @ turn.T
    turned *= random.std() / turned.std()
    return (np.sqrt(ALIKE) * turned + np.sqrt(1 - ALIKE) * random).astype(np.float32)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("codebook", type=Path, help="the VQGAN's folder")
    options.add_argument("out", type=Path, help="the folder of the model to start from")
    with user_errors():
        args = options.parse_args()
        make(args.codebook, args.out)
        console.answer(args.out)
