"""The three networks' hyper-parameters, with the field names of the published `config.json` files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from dalle_mini.errors import UserError
from dalle_mini.models.config_base import Config
from dalle_mini.runtime.limits import exceeded, limits
from dalle_mini.settings import SamplingParams

GROUND = 7  # numbers of a layered VQGAN's latent vector that tell a patch of ground


class NormPositions(NamedTuple):
    """Where a layer of DalleBart has norms: before a sublayer, within it, and after it.

    "After" is on the sublayer's output, ahead of the residual sum; only in `postln` it is behind the sum.
    """

    encoder_attn_before: bool = False
    decoder_attn_before: bool = False  # of both attentions
    attn_within: bool = False  # of self-attention: between the heads and the output projection
    attn_after: bool = False
    ffn_before: bool = False
    ffn_within: bool = False  # ahead of the last projection
    ffn_after: bool = False


LN_POSITIONS = {
    # NormFormer (Shleifer et al. 2021), the published models'
    "normformer": NormPositions(True, True, attn_after=True, ffn_before=True, ffn_within=True),
    # Sandwich-LN of CogView (Ding et al. 2021)
    "cogview": NormPositions(True, True, attn_after=True, ffn_before=True, ffn_after=True),
    "preln": NormPositions(True, True, ffn_before=True),
    # Swin Transformer V2 (Liu et al. 2021); besides, one norm after every sixth layer
    "swinv2": NormPositions(attn_after=True, ffn_after=True),
    "postln": NormPositions(attn_after=True, ffn_after=True),
    # Sub-LN of Magneto (Wang et al. 2022), as published: without the decoder's norms before attention
    "subln": NormPositions(True, False, attn_within=True, ffn_before=True, ffn_within=True),
}
LN_TYPES = ("layernorm", "rmsnorm")
QUANTIZERS = ("nearest", "cosine", "gumbel")


@dataclass(frozen=True)
class DalleBartConfig(Config):
    """DalleBart: a BART encoder for text and a BART decoder over image tokens.

    The defaults are the published code's, which a `config.json` may leave out.

    The decoder's embedding has `image_vocab_size + 1` rows: the last is the start token. `None` for a special token
    id means `image_vocab_size`, as in the published code.
    """

    model_type: ClassVar[str] = "dallebart"
    positive: ClassVar[tuple[str, ...]] = (
        *("encoder_vocab_size", "image_vocab_size", "max_text_length", "caption_length", "image_length", "d_model"),
        *("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
        *("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
        *("tau_init", "sinkhorn_iters", "temperature"),
    )
    limited: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("encoder_layers", "decoder_layers", "sinkhorn_iters"), "model_layers"),
        **dict.fromkeys(("max_text_length", "caption_length", "image_length"), "model_length"),
        **dict.fromkeys(("d_model", "encoder_attention_heads", "decoder_attention_heads"), "model_width"),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), "model_width"),
    }

    encoder_vocab_size: int = 50264
    image_vocab_size: int = 16384
    max_text_length: int = 64  # positions of the encoder
    caption_length: int | None = None  # tokens that a caption is padded and cut to; None is max_text_length
    image_length: int = 256
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    activation_function: str = "gelu"
    ln_positions: str = "normformer"  # a key of LN_POSITIONS; "deepnet" is another name for "postln"
    ln_type: str = "layernorm"
    use_glu: bool = True
    use_bias: bool = False
    use_scan: bool | None = None  # of the published file; None is true but for swinv2, whose layers are not all alike
    use_absolute_position_embeddings: bool = True
    use_swin_position_embeddings: bool = False  # a learned bias for each query position, key position and head
    use_head_scale: bool = False  # NormFormer's factor for each head's output
    use_cosine_attention: bool = False  # Swin V2: of normalised queries and keys, divided by tau_init
    tau_init: float = 0.05
    use_deepnet_scaling: bool = False  # DeepNet (Wang et al. 2022): stronger residuals, weaker initial sublayers
    use_subln_init: bool = False  # Magneto's initial scale of the sublayers
    use_final_ln_encoder: bool = True
    use_final_ln_decoder: bool = True
    force_ln_scale: bool = False  # a scale in every norm, also where the layer behind it could absorb it
    scale_embedding: bool = False  # token embeddings times sqrt(d_model)
    sinkhorn_iters: int = 1  # of the encoder's attention (Sinkformers, Sander et al. 2021); 1 is softmax
    final_logits_bias: bool = False  # of 2021's model
    normalize_text: bool = False
    init_std: float = 0.02
    dropout: float = 0.0  # in training: of the embeddings and of every sublayer's output
    attention_dropout: float = 0.0  # of attention weights
    activation_dropout: float = 0.0  # within the feed-forward layer
    # Sampling's defaults, the published pipeline's. A small model wants less guidance, which amplifies its errors too.
    guidance: float = 10.0
    temperature: float = 1.0
    top_k: int = 50
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.image_vocab_size)
        if self.ln_positions == "deepnet":
            object.__setattr__(self, "ln_positions", "postln")
        if self.use_scan is None:
            object.__setattr__(self, "use_scan", self.ln_positions != "swinv2")
        for name, known in (("ln_positions", LN_POSITIONS), ("ln_type", LN_TYPES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"config: {name}={getattr(self, name)!r:.60} is not supported (supported: {', '.join(known)})"
                )
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise UserError(f"config: d_model {self.d_model} is not a multiple of {side}_attention_heads {heads}")
        if self.top_k < 0:
            raise UserError(f"config: top_k {self.top_k} is less than 0, which is no limit")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config: {name} {getattr(self, name)} is not a share of 0 or more and less than 1")

    def check_start_token(self) -> None:
        """Check that the decoder's table of tokens has a row for the start token.

        It is not checked for every config that is made, because overrides come one by one.

        Raises:
            UserError: there is no such row.
        """
        if not 0 <= self.start_token <= self.image_vocab_size:
            raise UserError(
                f"config: decoder_start_token_id {self.start_token} is beyond image_vocab_size "
                f"{self.image_vocab_size} (null stands for that, the row behind the image tokens)"
            )

    @property
    def start_token(self) -> int:
        """`decoder_start_token_id`, in whose place `__post_init__` puts a number for None."""
        assert self.decoder_start_token_id is not None
        return self.decoder_start_token_id

    @property
    def sampling(self) -> SamplingParams:
        """The sampling rule where the user asks for nothing else."""
        return SamplingParams(guidance=self.guidance, temperature=self.temperature, top_k=self.top_k)

    @property
    def cache_width(self) -> int:
        """Numbers that decoding keeps of one position of one row: the keys and values of all layers."""
        return 2 * self.decoder_layers * self.d_model

    @property
    def text_length(self) -> int:
        """Tokens of every caption: what they are padded and cut to."""
        return min(self.max_text_length, self.caption_length or self.max_text_length)

    @property
    def norms(self) -> NormPositions:
        return LN_POSITIONS[self.ln_positions]

    def has_extra_norm(self, layer: int, layers: int) -> bool:
        """Whether `layer` of `layers` is one of Swin V2's every sixth; behind the last is the final norm anyway."""
        return self.ln_positions == "swinv2" and (layer + 1) % 6 == 0 and layer + 1 < layers

    def is_unscaled(self, layer: int, layers: int) -> bool:
        """Whether the norm that ends `layer` of `layers` lacks a scale: in post-LN the last one's, unless scanned."""
        return self.ln_positions == "postln" and not self.use_scan and layer + 1 == layers and not self.force_ln_scale

    def layers_are_alike(self, layers: int) -> bool:
        """Whether the layers of a stack have the same parameters, so that they can be kept as one."""
        return not any(self.has_extra_norm(i, layers) or self.is_unscaled(i, layers) for i in range(layers))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DalleBartConfig:
        """Read a published config: DalleBart's, or that of 2021's model, a BART with an image vocabulary."""
        if values.get("model_type") == "bart":
            return cls._from_bart_of_2021(values)
        for name in ("use_alibi", "tie_word_embeddings"):  # neither ran in the published code
            if values.get(name):
                raise UserError(f"config.json: {name}={values[name]!r:.60} is not supported (supported: false)")
        config = super().from_dict(values)
        config.check_start_token()
        return config

    @classmethod
    def _from_bart_of_2021(cls, values: dict[str, Any]) -> DalleBartConfig:
        """`flax-community/dalle-mini`: plain post-LN BART whose decoder has a vocabulary and a length of its own."""
        sizes = {name: value for name, value in values.items() if name in BART_SIZES}
        renamed = {"encoder_vocab_size": "vocab_size", "max_text_length": "max_position_embeddings"}
        sizes |= {ours: values[theirs] for ours, theirs in renamed.items() if theirs in values}
        # Where it says neither: the constants of 2021's training script, 16384 codes and 256 tokens, one more for BOS.
        outputs = {"image_vocab_size": "vocab_size_output", "image_length": "max_position_embeddings_decoder"}
        for ours, theirs in outputs.items():
            if isinstance(values.get(theirs), int):
                sizes[ours] = values[theirs] - 1
        sizes = BART_LARGE | sizes
        start = sizes.get("decoder_start_token_id")
        if not isinstance(start, int) or start > sizes.get("image_vocab_size", 16384):
            sizes["decoder_start_token_id"] = None  # a BART's own, of a decoder that has been replaced
        return super().from_dict(sizes | BART_OF_2021)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": self.model_type}


# The names that the configs of BART and of DalleBart share.
BART_SIZES = (
    *("d_model", "activation_function", "scale_embedding", "init_std", "decoder_start_token_id"),
    *("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
)
# BartConfig's defaults, which its files leave out.
BART_LARGE = {
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "encoder_vocab_size": 50265,
    "max_text_length": 1024,
}
BART_OF_2021 = {
    "ln_positions": "postln",
    "use_glu": False,
    "use_bias": True,
    "use_scan": True,
    "use_final_ln_encoder": False,
    "use_final_ln_decoder": False,
    "final_logits_bias": True,
    "caption_length": 128,  # of its 1024 positions
    "guidance": 1.0,  # it was trained without blank captions
}


@dataclass(frozen=True)
class VQGANConfig(Config):
    """VQGAN (Esser et al. 2021, "Taming Transformers"); defaults: `vqgan_imagenet_f16_16384`.

    `ch_mult` has one entry a resolution level, from full resolution down; the picture is halved between levels, so
    that f16 has five. `attn_resolutions` are the feature-map sides at which attention follows each block.
    """

    model_type: ClassVar[str] = "vqgan"
    positive: ClassVar[tuple[str, ...]] = (
        *("ch", "ch_mult", "num_res_blocks", "resolution", "in_channels", "out_ch", "z_channels", "embed_dim"),
        *("n_embed", "norm_groups"),
    )
    limited: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("ch", "ch_mult", "in_channels", "out_ch", "z_channels", "embed_dim"), "model_width"),
        **dict.fromkeys(("norm_groups", "pixel_range"), "model_width"),
        **dict.fromkeys(("resolution", "attn_resolutions"), "model_length"),
        "num_res_blocks": "model_layers",
    }

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024  # the published class's own default, so a config.json that leaves it out means this
    double_z: bool = False
    resamp_with_conv: bool = True
    give_pre_end: bool = False
    # Published configs have none of the following. With ch 32, 32 groups are one channel each: that norm forgets every
    # flat colour, and a small network stops at 20 dB.
    norm_groups: int = 32
    patch_encoder: bool = False  # encode each patch by itself (models/vqgan.py, PatchEncoder)
    patch_decoder: bool = False  # do all of the decoding on the grid of tokens (models/vqgan.py, PatchDecoder)
    layered: bool = False  # tokens tell what lies on a ground, whatever the ground is (models/layered.py)
    # From a vector to a token: "nearest" is the codebook entry next to it, "cosine" the one in the most similar
    # direction, all of length 1 (ViT-VQGAN, Yu et al. 2021), "gumbel" the largest of n_embed logits (GumbelVQ).
    quantizer: str = "nearest"
    # The pixel values that the network itself works with. taming-transformers trains on [-1, 1], DALL·E mini fine-tuned
    # on [0, 1]; callers have [0, 1] either way.
    pixel_range: tuple[int, ...] = (0, 1)

    def __post_init__(self):
        for name in ("ch_mult", "attn_resolutions", "pixel_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        blocks, channels = len(self.ch_mult) * self.num_res_blocks, self.ch * max(self.ch_mult)
        for what, count, limit in (
            ("blocks, num_res_blocks on each level of ch_mult,", blocks, "model_layers"),
            ("channels, ch times ch_mult,", channels, "model_width"),
        ):
            if count > getattr(limits(), limit):
                raise UserError(f"config: {count} {what} are more than {getattr(limits(), limit)} ({exceeded(limit)})")
        odd = [self.ch * factor for factor in self.ch_mult if self.ch * factor % self.norm_groups]
        if odd:
            raise UserError(
                f"config: {odd[0]} channels (ch {self.ch}) do not divide into norm_groups {self.norm_groups}"
            )
        if self.quantizer not in QUANTIZERS:
            known = ", ".join(QUANTIZERS)
            raise UserError(f"config: quantizer={self.quantizer!r:.60} is not supported (supported: {known})")
        if self.layered and not (self.z_channels == self.embed_dim > GROUND and self.quantizer == "nearest"):
            raise UserError(
                f"config: layered needs z_channels and embed_dim alike, above {GROUND}, and quantizer nearest"
            )
        if len(self.pixel_range) != 2 or self.pixel_range[0] >= self.pixel_range[1]:
            raise UserError(f"config: pixel_range must be [lowest, highest], not {list(self.pixel_range)!r:.60}")
        if self.resolution % self.downscale:
            raise UserError(f"config: resolution {self.resolution} does not halve {len(self.ch_mult) - 1} times")

    @property
    def codebook_size(self) -> int:
        return self.n_embed

    @property
    def widest(self) -> int:
        """Numbers in the largest feature map of one image's decoding."""
        return self.resolution**2 * self.ch

    @property
    def token_rule(self) -> str:
        """The part of the rule from images to tokens that no parameter tells; "gumbel" has parameters of its own."""
        return "layered" if self.layered else "cosine" if self.quantizer == "cosine" else ""

    @property
    def downscale(self) -> int:
        """Pixels a token's side covers: the f of f16."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Tokens on a side of the token grid."""
        return self.resolution // self.downscale

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": self.model_type}


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """CLIP's text transformer; defaults: `openai/clip-vit-base-patch32`."""

    model_type: ClassVar[str] = "clip_text_model"
    positive: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("max_position_embeddings", "layer_norm_eps"),
    )
    limited: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), "model_width"),
        **{"num_hidden_layers": "model_layers", "max_position_embeddings": "model_length"},
    }

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Where a text ends. 2, which the first published configs have by mistake, stands for the highest id in the text:
    # the end token's, as long as no tokens were added to CLIP's own.
    eos_token_id: int | None = 2


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """CLIP's vision transformer; defaults: `openai/clip-vit-base-patch32`."""

    model_type: ClassVar[str] = "clip_vision_model"
    positive: ClassVar[tuple[str, ...]] = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("image_size", "patch_size", "num_channels", "layer_norm_eps"),
    )
    limited: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_channels"), "model_width"),
        **{"num_hidden_layers": "model_layers", "image_size": "model_length", "patch_size": "model_length"},
    }

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class CLIPConfig(Config):
    """CLIP (Radford et al. 2021): two transformers that meet in one space of `projection_dim`."""

    model_type: ClassVar[str] = "clip"
    positive: ClassVar[tuple[str, ...]] = ("projection_dim",)
    limited: ClassVar[dict[str, str]] = {"projection_dim": "model_width"}

    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    # Not in published configs: what is added to the logits of a CLIP that was trained with the sigmoid loss (SigLIP,
    # Zhai et al. 2023), to begin with. Without it there is no such parameter.
    logit_bias_init_value: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPConfig:
        """Read a published config. `text_config_dict`, an older name that some files still have, precedes `text_config`
        as it does in transformers; so for `vision`."""

        def fields(name: str) -> dict[str, Any]:
            key = f"{name}_config_dict" if values.get(f"{name}_config_dict") else f"{name}_config"
            found = values.get(key) or {}
            if not isinstance(found, dict):
                raise UserError(f"config.json: {key} must be an object, not {found!r:.60}")
            return found

        text, vision = CLIPTextConfig.from_dict(fields("text")), CLIPVisionConfig.from_dict(fields("vision"))
        both = super().from_dict({name: value for name, value in values.items() if name not in ("text", "vision")})
        return dataclasses.replace(both, text=text, vision=vision)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
            **({} if self.logit_bias_init_value is None else {"logit_bias_init_value": self.logit_bias_init_value}),
        }
