"""What the published files call their tensors, and what we call them.

One function per network turns the tensors of a file into ours: names are attribute paths joined by ".", the layers of
DalleBart are stacked on a leading axis. Files in our own naming pass through. A tensor that no rule knows keeps its
name, and the check against the model in `pretrained` reports it.

Sources of the names: the `DalleBart` of dalle-mini 0.1, `VQModel` of vqgan-jax, `FlaxCLIPModel` of transformers 4.25.
"""

import re
from collections.abc import Mapping

import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.weights.folder import listed

# The published modules of one DalleBart layer are numbered in call order; here is what each number stands for.
# (ln_positions, use_glu) -> stack -> published module -> our module.
_NORMFORMER_GLU = {
    "GLU_0.LayerNorm_0": "ffn.norm",
    "GLU_0.Dense_0": "ffn.gate",  # the branch with the activation
    "GLU_0.Dense_1": "ffn.linear",
    "GLU_0.LayerNorm_1": "ffn.mid_norm",
    "GLU_0.Dense_2": "ffn.out",
}
_NORMFORMER_SELF_ATTENTION = {
    "LayerNorm_0": "self_attn_norm",
    "FlaxBartAttention_0": "self_attn",
    "LayerNorm_1": "self_attn_post_norm",
}
_NORMFORMER_CROSS_ATTENTION = {
    "LayerNorm_2": "cross_attn_norm",
    "FlaxBartAttention_1": "cross_attn",
    "LayerNorm_3": "cross_attn_post_norm",
}
DALLE_BART_LAYERS = {
    ("normformer", True): {
        "encoder": _NORMFORMER_SELF_ATTENTION | _NORMFORMER_GLU,
        "decoder": _NORMFORMER_SELF_ATTENTION | _NORMFORMER_CROSS_ATTENTION | _NORMFORMER_GLU,
    },
}

# Scanned: FlaxBartEncoderLayers, every leaf [layers, ...]. Unrolled: FlaxBartEncoderLayer_0, FlaxBartEncoderLayer_1...
# For a week of April 2022 the scanned block of the decoder, too, was called FlaxBartEncoderLayers.
_LAYER = re.compile(r"(encoder|decoder)\.layers\.FlaxBart(?:En|De)coderLayer(?:s|_(\d+))\.(.+)")


def dalle_bart(tensors: Mapping[str, np.ndarray], config) -> dict[str, np.ndarray]:
    """DalleBart: rename the numbered modules of each layer, and stack the layers of the unrolled layout.

    Args:
        tensors: a file's tensors, scanned, unrolled or ours, with or without the `model` and `params` prefixes.
        config: the DalleBartConfig of the folder.
    Raises:
        UserError: the config asks for a variant that is not supported, or layers are missing or differ in shape.
    """
    names = _plain(tensors)
    if not any(_LAYER.fullmatch(name) for name in names):
        return {name: tensors[source] for name, source in names.items()}
    variant = config.ln_positions, config.use_glu
    if variant not in DALLE_BART_LAYERS:
        raise UserError(f"weights with ln_positions={variant[0]!r} and use_glu={variant[1]} are not supported")
    ours, unrolled = {}, {}
    for name, source in names.items():
        match = _LAYER.fullmatch(name)
        stack, index, leaf = match.groups() if match else (None, None, None)
        target = match and _rename(DALLE_BART_LAYERS[variant][stack], leaf)
        if not target:
            ours[name] = tensors[source]
        elif index is None:
            ours[f"{stack}.layers.{target}"] = tensors[source]
        else:
            unrolled.setdefault(f"{stack}.layers.{target}", {})[int(index)] = source
    depths = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for name, layers in unrolled.items():
        ours[name] = _stack(tensors, layers, depths[name.split(".")[0]])
    return ours


def vqgan(tensors: Mapping[str, np.ndarray], config) -> dict[str, np.ndarray]:
    """VQGAN: `down_0/block_1` -> `down.0.block.1`, `quantize/embedding` -> `codebook`."""

    def rename(name: str) -> str:
        name = re.sub(r"^quantize\.embedding\.", "codebook.", name)
        # `mid` keeps its block_1, attn_1 and block_2: those are three attributes, not a list.
        return re.sub(r"\b(down|up)_(\d+)\.(?:(block|attn)_(\d+)\b)?", _list_items, name)

    return {rename(name): tensors[source] for name, source in _plain(tensors).items()}


def clip(tensors: Mapping[str, np.ndarray], config) -> dict[str, np.ndarray]:
    """CLIP: as published, but for the spelling of one norm."""
    return {
        name.replace("vision_model.pre_layrnorm.", "vision_model.pre_layernorm."): tensors[source]
        for name, source in _plain(tensors).items()
    }


def _plain(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name joined by "." and without the `params` and `model` prefixes: the file's own name}."""
    plain = {}
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


def _stack(tensors: Mapping[str, np.ndarray], layers: dict[int, str], depth: int) -> np.ndarray:
    """[...] of each layer -> [depth, ...]; `layers` maps the index of a layer to the file's name of its tensor."""
    some = next(iter(layers.values()))
    names = [layers.get(i) or re.sub(r"Layer_\d+", f"Layer_{i}", some) for i in range(depth)]
    missing = [name for i, name in enumerate(names) if i not in layers]
    if missing:
        raise UserError(f"tensors are missing: {listed(missing)}")
    extra = [layers[i] for i in sorted(layers) if i >= depth]
    if extra:
        raise UserError(f"there are more layers than the {depth} of config.json: {listed(extra)}")
    arrays = [tensors[name] for name in names]
    odd = [f"{name} {list(a.shape)}" for name, a in zip(names, arrays, strict=True) if a.shape != arrays[0].shape]
    if odd:
        raise UserError(f"layers differ in shape: {names[0]} {list(arrays[0].shape)}, but {listed(odd)}")
    return np.stack(arrays)
