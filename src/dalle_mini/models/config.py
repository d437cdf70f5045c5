"""The three networks' hyper-parameters, with the field names of the published `config.json` files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, get_type_hints

from dalle_mini.errors import UserError


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What JSON may hold for a field of each type, and its name in an error message.
TYPES = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_int, "a whole number"),
    int | None: (lambda value: value is None or _is_int(value), "a whole number or null"),
    float: (lambda value: isinstance(value, float) or _is_int(value), "a number"),
    str: (lambda value: isinstance(value, str), "a string"),
    tuple[int, ...]: (
        lambda value: isinstance(value, list | tuple) and all(map(_is_int, value)),
        "a list of whole numbers",
    ),
}


@dataclass(frozen=True)
class Config:
    """What the configs share: reading a published `config.json`, whose many foreign keys are passed over."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the fields that we know.

        Raises:
            UserError: the value of one has the wrong type, or the values do not go together.
        """
        types = get_type_hints(cls)
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        for name, value in known.items():
            check, wanted = TYPES[types[name]]
            if not check(value):
                raise UserError(f"config.json: {name} must be {wanted}, not {value!r:.60}")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class DalleBartConfig(Config):
    """DalleBart: a BART encoder for text and a BART decoder over image tokens (defaults: DALL·E mini, `mini-1`).

    The decoder's embedding has `image_vocab_size + 1` rows: the last is the start token. `None` for a special token
    id means `image_vocab_size`, as in the published code.
    """

    encoder_vocab_size: int = 50264
    image_vocab_size: int = 16384
    max_text_length: int = 64
    image_length: int = 256
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 2730
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 2730
    activation_function: str = "gelu"
    ln_positions: str = "normformer"
    ln_type: str = "layernorm"
    use_glu: bool = True
    use_bias: bool = False
    use_scan: bool = True
    normalize_text: bool = False
    init_std: float = 0.02
    # Sampling's defaults, the published pipeline's. A small model wants less guidance: 10 amplifies its errors too.
    guidance: float = 10.0
    top_k: int = 50
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.image_vocab_size)
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise UserError(f"config: d_model {self.d_model} is not a multiple of {side}_attention_heads {heads}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DalleBartConfig:
        """Read a published config. The architecture variants beyond normformer + GLU are refused by name."""
        for name, supported in SUPPORTED_VARIANT.items():
            if name in values and values[name] not in supported:
                wanted = " or ".join(repr(value) for value in supported)
                raise UserError(f"config.json: {name}={values[name]!r} is not supported (supported: {wanted})")
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": "dallebart"}


SUPPORTED_VARIANT = {
    "ln_positions": ("normformer",),
    "ln_type": ("layernorm",),
    "use_glu": (True,),
    "use_bias": (False,),
    "activation_function": ("gelu",),
    "force_ln_scale": (False,),
    "use_head_scale": (False,),
    "use_cosine_attention": (False,),
    "use_deepnet_scaling": (False,),
    "use_swin_position_embeddings": (False,),
    "use_absolute_position_embeddings": (True,),
    "use_final_ln_encoder": (True,),
    "use_final_ln_decoder": (True,),
    "scale_embedding": (False,),
    "sinkhorn_iters": (1,),
    "tie_word_embeddings": (False,),
}


@dataclass(frozen=True)
class VQGANConfig(Config):
    """VQGAN (Esser et al. 2021, "Taming Transformers"); defaults: `vqgan_imagenet_f16_16384`.

    `ch_mult` has one entry a resolution level, from full resolution down; the picture is halved between levels, so
    that f16 has five. `attn_resolutions` are the feature-map sides at which attention follows each block.
    """

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
    # Not in published configs. With ch 32, 32 groups are one channel each: that norm forgets every flat colour, and a
    # small network stops at 20 dB.
    norm_groups: int = 32
    # Not in published configs: encode each patch by itself (models/vqgan.py, PatchEncoder).
    patch_encoder: bool = False

    def __post_init__(self):
        for name in ("ch_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.resolution % self.downscale:
            raise UserError(f"config: resolution {self.resolution} does not halve {len(self.ch_mult) - 1} times")

    @property
    def downscale(self) -> int:
        """Pixels a token's side covers: the f of f16."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Tokens on a side of the token grid."""
        return self.resolution // self.downscale

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": "vqgan"}


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """CLIP's text transformer; defaults: `openai/clip-vit-base-patch32`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """CLIP's vision transformer; defaults: `openai/clip-vit-base-patch32`."""

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

    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPConfig:
        towers = {}
        for name, tower in (("text", CLIPTextConfig), ("vision", CLIPVisionConfig)):
            fields = values.get(f"{name}_config") or {}
            if not isinstance(fields, dict):
                raise UserError(f"config.json: {name}_config must be an object, not {fields!r:.60}")
            towers[name] = tower.from_dict(fields)
        both = super().from_dict({name: value for name, value in values.items() if name not in towers})
        return dataclasses.replace(both, **towers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": "clip",
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
        }
