"""Arithmetic of a training step, by formula: 2 m n k for each product of an [m, k] and a [k, n] matrix.

Only matrix products count: norms, softmax, embeddings and the optimizer are a few percent, and no peak rate is meant
for them. The whole square of causal attention counts, since the whole square is computed. (XLA's `cost_analysis` sees
the body of a scan over layers once, so it cannot be asked.)

S caption tokens, T image tokens, D d_model, F a feed-forward's width, V image tokens and the start token.
"""

from __future__ import annotations

from dataclasses import dataclass

from dalle_mini.models.config import DalleBartConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of one picture's forward pass, by part.

    Attributes:
        encoder, decoder: the layers.
        head: decoder output to logits.
        attention: the products within attention (queries by keys, weights by values), part of encoder and decoder.
        closing: the last product of each feed-forward, part of encoder and decoder.
    """

    encoder: float
    decoder: float
    head: float
    attention: float
    closing: float

    @property
    def forward(self) -> float:
        return self.encoder + self.decoder + self.head

    @property
    def training(self) -> float:
        """Forward and backward, which is two products for each one of the forward pass. What MFU counts."""
        return 3 * self.forward

    def executed(self, remat: str) -> float:
        """What a step computes, with what it computes again: MFU does not count that, the chip's time does.

        `full` computes the layers again but for each one's last product, whose value no gradient needs; `dots` keeps
        every product with weights and computes those within attention again.
        """
        again = {"none": 0.0, "dots": self.attention, "full": self.encoder + self.decoder - self.closing}
        return self.training + again[remat]


def forward_flops(config: DalleBartConfig) -> Flops:
    """FLOPs of one picture's forward pass through DalleBart; the gradient takes twice as many again."""
    s, t, d = config.text_length, config.image_length, config.d_model
    encoder_attention = 4 * s * s * d
    decoder_attention = 4 * t * t * d + 4 * t * s * d  # itself, and the caption
    encoder_projections = 8 * s * d * d  # queries, keys, values, output
    decoder_projections = 8 * t * d * d + 4 * t * d * d + 4 * s * d * d  # the caption gives keys and values
    encoder_closing = 2 * s * config.encoder_ffn_dim * d
    decoder_closing = 2 * t * config.decoder_ffn_dim * d
    products = 3 if config.use_glu else 2  # a gated unit has two products ahead of the last
    layers, decoder_layers = config.encoder_layers, config.decoder_layers
    return Flops(
        encoder=layers * (encoder_projections + encoder_attention + products * encoder_closing),
        decoder=decoder_layers * (decoder_projections + decoder_attention + products * decoder_closing),
        head=2 * t * d * (config.image_vocab_size + 1),
        attention=layers * encoder_attention + decoder_layers * decoder_attention,
        closing=layers * encoder_closing + decoder_layers * decoder_closing,
    )


def training_flops(config: DalleBartConfig) -> float:
    """FLOPs of one picture, forward and backward. Times pictures a second, over the peak rate, it is the MFU."""
    return forward_flops(config).training
