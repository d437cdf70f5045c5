"""Arithmetic of a training step, by formula: 2 m k n for each product of an [m, k] and a [k, n] matrix.

Only matrix products count: norms, softmax, embeddings and the optimizer are a few percent, and no peak rate is meant
for them. The whole square of causal attention counts, since the whole square is computed. (XLA's `cost_analysis` sees
the body of a scan over layers once, so it cannot be asked.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dalle_mini.models.config import DalleBartConfig


@dataclass(frozen=True)
class Product:
    """A product [rows, inner] x [inner, columns] of the forward pass, `times` a picture.

    Attributes:
        part: "encoder", "decoder" or "head".
        weights: whether the right side is weights, which all pictures share, and not activations.
        closes: whether it ends a feed-forward, and with it a layer: no gradient needs its value.
    """

    part: str
    rows: int
    inner: int
    columns: int
    times: int
    weights: bool = True
    closes: bool = False

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.times


def products(config: DalleBartConfig, positions: int | None = None) -> list[Product]:
    """Every matrix product of one picture's forward pass through DalleBart.

    Args:
        positions: how many of the picture's tokens it sees (`training.positions`); None: all.
    """
    text, image, d = config.text_length, positions or config.image_length, config.d_model
    encoder = [
        *_attention("encoder", text, text, d, config.encoder_attention_heads, config.encoder_layers),
        *_feed_forward("encoder", text, d, config.encoder_ffn_dim, config.use_glu, config.encoder_layers),
    ]
    decoder = [
        *_attention("decoder", image, image, d, config.decoder_attention_heads, config.decoder_layers),
        *_attention("decoder", image, text, d, config.decoder_attention_heads, config.decoder_layers),
        *_feed_forward("decoder", image, d, config.decoder_ffn_dim, config.use_glu, config.decoder_layers),
    ]
    return [*encoder, *decoder, Product("head", image, d, config.image_vocab_size + 1, 1)]


def _attention(part: str, positions: int, length: int, d: int, heads: int, layers: int) -> Iterator[Product]:
    """`positions` places attend to `length` places."""
    width = d // heads
    yield Product(part, positions, d, d, 2 * layers)  # queries, output
    yield Product(part, length, d, d, 2 * layers)  # keys, values
    yield Product(part, positions, width, length, heads * layers, weights=False)  # scores
    yield Product(part, positions, length, width, heads * layers, weights=False)


def _feed_forward(part: str, positions: int, d: int, width: int, gated: bool, layers: int) -> Iterator[Product]:
    yield Product(part, positions, d, width, (2 if gated else 1) * layers)
    yield Product(part, positions, width, d, layers, closes=True)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one picture.

    Attributes:
        encoder, decoder, head: the forward pass.
        attention: the products within attention (queries by keys, weights by values), part of the above.
        closing: each feed-forward's last product, part of the above.
    """

    encoder: int
    decoder: int
    head: int
    attention: int
    closing: int

    @property
    def forward(self) -> int:
        return self.encoder + self.decoder + self.head

    @property
    def training(self) -> int:
        """Forward and backward, which is two products for each one of the forward pass. MFU counts these."""
        return 3 * self.forward

    def executed(self, remat: str) -> int:
        """All that a step computes, with what it computes again: MFU does not count that, the chip's time does.

        `full` computes the layers again but for each one's last product, whose value no gradient needs; `dots` keeps
        every product with weights and computes those within attention again.
        """
        again = {"none": 0, "dots": self.attention, "full": self.encoder + self.decoder - self.closing}
        return self.training + again[remat]


def forward_flops(config: DalleBartConfig, positions: int | None = None) -> Flops:
    """FLOPs of one picture's forward pass through DalleBart; the gradient takes twice as many again."""
    every = products(config, positions)
    return Flops(
        encoder=sum(product.flops for product in every if product.part == "encoder"),
        decoder=sum(product.flops for product in every if product.part == "decoder"),
        head=sum(product.flops for product in every if product.part == "head"),
        attention=sum(product.flops for product in every if not product.weights),
        closing=sum(product.flops for product in every if product.closes),
    )


def training_flops(config: DalleBartConfig, positions: int | None = None) -> int:
    """FLOPs of one picture, forward and backward. Times pictures a second, over the peak rate, it is the MFU."""
    return forward_flops(config, positions).training


@dataclass(frozen=True)
class Work:
    """The cost of an image in training, for tokens/s and MFU.

    Attributes:
        tokens_per_picture: those of the caption and of the image.
        flops_per_picture: forward and backward, by formula, without what remat computes again.
        peak_flops: all devices together, in the type of the computation; None is looked up where it is known.
    """

    tokens_per_picture: int | None = None
    flops_per_picture: float | None = None
    peak_flops: float | None = None

    @classmethod
    def of(cls, model: DalleBartConfig, positions: int | None = None) -> Work:
        """The work of a seq2seq model that computes `positions` of its image tokens; None is all of them."""
        return cls(model.text_length + (positions or model.image_length), training_flops(model, positions))
