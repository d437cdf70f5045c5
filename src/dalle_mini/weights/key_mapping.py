"""The published files' names of tensors, mapped to ours.

One function per network turns the tensors of a file into ours: names are attribute paths joined by ".", the layers of
DalleBart are stacked on a leading axis. Files in our own naming pass through. A tensor that no rule knows keeps its
name, and the check against the model in `pretrained` reports it.

Sources of the names: the `DalleBart` of dalle-mini 0.1, `VQModel` of vqgan-jax, `FlaxCLIPModel` of transformers 4.25.
"""

import math
import re
from collections.abc import Mapping

from dalle_mini.errors import UserError
from dalle_mini.weights import torch_key_mapping
from dalle_mini.weights.folder import listed
from dalle_mini.weights.formats.tensors import Tensor, is_float

_NUMBER = re.compile(r"(?<=Layer_)\d+|(?<=layers[./])\d+")

# Scanned: FlaxBartEncoderLayers, every leaf [layers, ...]. Unrolled: FlaxBartEncoderLayer_0, FlaxBartEncoderLayer_1...
# For a week of April 2022 the scanned block of the decoder, too, was called FlaxBartEncoderLayers.
_LAYER = re.compile(r"(encoder|decoder)\.layers\.FlaxBart(?:En|De)coderLayer(?:s|_(\d+))\.(.+)")
# BART's own names, of 2021's model and of DalleBart until March 2022.
_BART_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_BART_MODULES = {
    "self_attn": "self_attn",
    "self_attn_layer_norm": "self_attn_post_norm",
    "encoder_attn": "cross_attn",
    "encoder_attn_layer_norm": "cross_attn_post_norm",
    "fc1": "ffn.linear",
    "fc2": "ffn.out",
    "final_layer_norm": "ffn_post_norm",
}
_BART_OFFSET = 2  # its tables of positions, and those of 2021's model, begin with two rows that are never looked up

_Unrolled = dict[tuple[str, str], dict[int, tuple[str, Tensor]]]  # (stack, our name): layer: the file's name, tensor


def dalle_bart(tensors: Mapping[str, Tensor], config) -> dict[str, Tensor]:
    """DalleBart: rename the numbered modules of each layer, and stack the layers of the unrolled layout.

    Args:
        tensors: a file's tensors, scanned, unrolled, of 2021's BART, of early 2022 or ours, with or without the `model`
            and `params` prefixes.
        config: the DalleBartConfig of the folder.
    Raises:
        UserError: layers are missing or differ in shape, the config does not say that the model is of early 2022, or
            this is BART itself, whose decoder writes words.
    """
    names = _plain(tensors)
    is_shared, has_bart_layers = "shared.embedding" in names, "encoder.layers.0.fc1.kernel" in names
    if torch_key_mapping.is_bart(tensors) or (is_shared and "decoder_embed.embedding" not in names):
        raise UserError(
            "this is BART itself, whose decoder writes words: start a DalleBart from its encoder with "
            "DalleBart.from_bart"
        )
    if has_bart_layers and (config.ln_positions != "postln" or config.use_glu):
        raise UserError(
            "these are layers as DalleBart had them from December 2021 to March 2022, when a config could not say so: "
            'put "ln_positions": "postln" and "use_glu": false into its config.json'
        )
    if is_shared or has_bart_layers:
        return _bart({name: tensors[source] for name, source in names.items()}, config)
    ours: dict[str, Tensor] = {}
    unrolled: _Unrolled = {}
    for name, source in names.items():
        match = _LAYER.fullmatch(name)
        target = match and _rename(published_modules(config, match[1]), match[3])
        if match is None or target is None:
            ours[name] = tensors[source]
        elif match[2] is None:
            ours[f"{match[1]}.layers.{target}"] = tensors[source]
        else:
            unrolled.setdefault((match[1], target), {})[int(match[2])] = source, tensors[source]
    return ours | _layers(unrolled, config)


def published_modules(config, stack: str) -> dict[str, str]:
    """The modules of a layer of the "encoder" or the "decoder": published name -> ours.

    The published modules are numbered in the order in which they are called, each kind by itself and those of the
    feed-forward apart, so the names depend on where the config has norms. A norm without parameters has a number too.
    """
    norms, decoder = config.norms, stack == "decoder"
    before = norms.decoder_attn_before if decoder else norms.encoder_attn_before
    post_ln = config.ln_positions == "postln"
    attentions = ["self_attn", "cross_attn"] if decoder else ["self_attn"]
    outside = []
    for name in attentions:
        outside += [f"{name}_norm"] * before + [f"{name}_post_norm"] * norms.attn_after
    outside += ["ffn_post_norm"] * post_ln + ["extra_norm"]
    inside = ["ffn.norm"] * norms.ffn_before + ["ffn.mid_norm"] * norms.ffn_within
    inside += ["ffn_post_norm"] * (norms.ffn_after and not post_ln)

    norm = "RMSNorm" if config.ln_type == "rmsnorm" else "LayerNorm"
    block, dense = ("GLU_0", ["gate", "linear", "out"]) if config.use_glu else ("FFN_0", ["linear", "out"])
    return {
        "FlaxBartAttention_0.mid_layernorm": "self_attn.mid_norm",
        **{f"FlaxBartAttention_{i}": name for i, name in enumerate(attentions)},
        **{f"{norm}_{i}": name for i, name in enumerate(outside)},
        **{f"{block}.{norm}_{i}": name for i, name in enumerate(inside)},
        **{f"{block}.Dense_{i}": f"ffn.{name}" for i, name in enumerate(dense)},
    }


def bart_encoder(tensors: Mapping[str, Tensor], config) -> dict[str, Tensor]:
    """The encoder alone of BART itself, from a file in torch's or in Flax's names, with the prefix `encoder.`."""
    if torch_key_mapping.is_torch(tensors):
        tensors = torch_key_mapping.bart(tensors)
    names = {name: source for name, source in _plain(tensors).items() if name.startswith(("encoder.", "shared."))}
    return _bart({name: tensors[source] for name, source in names.items()}, config)


def _bart(tensors: dict[str, Tensor], config) -> dict[str, Tensor]:
    """BART's names, offset positions and, in 2021's model, biased logits and a table of image tokens apart.

    DalleBart until March 2022 has the names of layers alone; until February its decoder had a position too many.
    """
    offset = _BART_OFFSET if any(name.startswith("shared.") for name in tensors) else 0
    ours: dict[str, Tensor] = {}
    layers: _Unrolled = {}
    for name, tensor in tensors.items():
        if match := _BART_LAYER.fullmatch(name):
            stack, index, leaf = match.groups()
            layers.setdefault((stack, _rename(_BART_MODULES, leaf) or leaf), {})[int(index)] = name, tensor
        elif name.endswith("embed_positions.embedding") and tensor.shape:
            length = config.max_text_length if name.startswith("encoder") else config.image_length
            ours[name] = tensor.slice_rows(offset, offset + length)
        elif name == "final_logits_bias" and tensor.shape and math.prod(tensor.shape[:-1]) == 1:
            ours["lm_head.bias"] = tensor.reshape(tensor.shape[-1])
        else:
            name = name.replace("shared.", "encoder.embed_tokens.").replace("decoder_embed.", "decoder.embed_tokens.")
            ours[name] = tensor
    return ours | _layers(layers, config)


def vqgan(tensors: Mapping[str, Tensor], config) -> dict[str, Tensor]:
    """VQGAN: `down_0/block_1` -> `down.0.block.1`, `quantize/embedding` -> `codebook`."""

    def rename(name: str) -> str:
        name = re.sub(r"^quantize\.embed(ding)?\.", "codebook.", name)
        name = re.sub(r"^quantize\.proj\.", "code_logits.", name)
        # `mid` keeps its block_1, attn_1 and block_2: those are three attributes, not a list.
        return re.sub(r"\b(down|up)_(\d+)\.(?:(block|attn)_(\d+)\b)?", _list_items, name)

    def flat(name: str, tensor: Tensor) -> Tensor:
        # Flax of 2021 kept what a GroupNorm has for each channel as [1, 1, 1, channels].
        old = name.endswith((".scale", ".bias")) and tensor.shape[:-1] == (1, 1, 1)
        return tensor.reshape(tensor.shape[-1]) if old else tensor

    if torch_key_mapping.is_torch(tensors):
        tensors = torch_key_mapping.vqgan(tensors)
    return {rename(name): flat(name, tensors[source]) for name, source in _plain(tensors).items()}


def clip(tensors: Mapping[str, Tensor], config) -> dict[str, Tensor]:
    """CLIP: as published, but for the spelling of one norm."""
    if torch_key_mapping.is_torch(tensors):
        tensors = torch_key_mapping.clip(tensors)
    return {
        name.replace("vision_model.pre_layrnorm.", "vision_model.pre_layernorm."): tensors[source]
        for name, source in _plain(tensors).items()
    }


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name joined by "." and without the `params` and `model` prefixes: the file's own name}."""
    plain: dict[str, str] = {}
    for source in tensors:
        name = source.replace("/", ".").removeprefix("params.").removeprefix("model.")
        if name in plain:
            raise UserError(f"the tensors {plain[name]} and {source} are the same one")
        plain[name] = source
    return plain


def _rename(modules: dict[str, str], leaf: str) -> str | None:
    for published, ours in modules.items():
        if leaf.startswith(published + "."):
            return ours + leaf.removeprefix(published)
    return None


def _list_items(match: re.Match) -> str:
    level, i, module, j = match.groups()
    return f"{level}.{i}." + (f"{module}.{j}" if module else "")


def _layers(unrolled: _Unrolled, config) -> dict[str, Tensor]:
    """The tensors as the model has its layers: stacked, or in a list."""
    ours: dict[str, Tensor] = {}
    for (stack, target), layers in unrolled.items():
        depth = config.decoder_layers if stack == "decoder" else config.encoder_layers
        if config.layers_are_alike(depth):
            ours[f"{stack}.layers.{target}"] = _stack(layers, depth)
        else:
            ours |= {f"{stack}.layers.{index}.{target}": tensor for index, (_, tensor) in layers.items()}
    return ours


def _stack(layers: dict[int, tuple[str, Tensor]], depth: int) -> Tensor:
    """[...] of each layer -> [depth, ...]; `layers` has the file's name and the tensor of each layer."""
    some, _ = next(iter(layers.values()))
    missing = [i for i in range(depth) if i not in layers]
    if missing:
        raise UserError(f"tensors are missing: {listed(re.sub(_NUMBER, str(i), some, count=1) for i in missing)}")
    extra = [layers[i][0] for i in sorted(layers) if i >= depth]
    if extra:
        raise UserError(f"there are more layers than the {depth} of config.json: {listed(extra)}")
    names, tensors = zip(*(layers[i] for i in range(depth)), strict=True)
    shape = tensors[0].shape
    odd = [f"{name} {list(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True) if tensor.shape != shape]
    if odd:
        raise UserError(f"layers differ in shape: {names[0]} {list(shape)}, but {listed(odd)}")
    # The stack has one type, the first layer's.
    mistyped = [f"{name} is {t.dtype}" for name, t in zip(names, tensors, strict=True) if not is_float(t.dtype)]
    if mistyped:
        raise UserError(f"layers are of a type that is not floating-point: {listed(mistyped)}")
    return Tensor.stack(tensors)
