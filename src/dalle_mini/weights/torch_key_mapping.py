"""torch's names and axis orders -> Flax's.

| layer     | torch                             | Flax                              |
|-----------|-----------------------------------|-----------------------------------|
| linear    | `weight` [out, in]                | `kernel` [in, out]                |
| conv      | `weight` [out, in, height, width] | `kernel` [height, width, in, out] |
| norm      | `weight` [channels]               | `scale` [channels]                |
| embedding | `weight` [rows, width]            | `embedding` [rows, width]         |

Biases and lone parameters are the same in both. One function per network says which of its matrices are embeddings,
and drops what is no parameter. The result has the names of the network's published Flax version, from which
`key_mapping` makes ours.

Sources of the names: `CLIPModel` and `BartForConditionalGeneration` of transformers, `VQModel` and `GumbelVQ` of
taming-transformers.
"""

from collections.abc import Iterable, Mapping

from dalle_mini.weights.formats.tensors import Tensor


def is_torch(names: Iterable[str]) -> bool:
    """Whether these are torch's names: Flax calls nothing a weight."""
    return any(name.endswith(".weight") for name in names)


def is_bart(names: Iterable[str]) -> bool:
    """Whether these are BART's names in torch. Only BART itself has them: every DalleBart was published in Flax's."""
    return any(name.endswith("encoder.layers.0.fc1.weight") for name in names)


def clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP, without the numbers 0, 1, 2... that older files keep as `position_ids`."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    return _in_flax(kept, embeddings=("token_embedding", "position_embedding"))


def vqgan(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VQGAN, without the discriminator and the perceptual network that its loss was made with."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    return _in_flax(kept, embeddings=("quantize.embedding", "quantize.embed"))


def bart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BART, with or without the prefix `model.` (the result has none) and the table of tokens under all of its names.

    `shared`, `encoder.embed_tokens` and `decoder.embed_tokens` are one table in torch, and files have some or all of
    them; Flax has `shared.embedding` alone.
    """
    kept = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            name = "shared.weight"
        if not name.endswith(".version"):  # a number that old files carry along
            kept[name] = tensor
    return _in_flax(kept, embeddings=("shared", "embed_positions"))


def _in_flax(tensors: Mapping[str, Tensor], embeddings: tuple[str, ...]) -> dict[str, Tensor]:
    """Rename and transpose every `weight`; `embeddings` are the endings of the names of embedding tables."""
    flax = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight":
            flax[name] = tensor
        elif module.endswith(embeddings):
            flax[f"{module}.embedding"] = tensor
        elif len(tensor.shape) == 4:
            flax[f"{module}.kernel"] = tensor.transpose(2, 3, 1, 0)
        elif len(tensor.shape) == 2:
            flax[f"{module}.kernel"] = tensor.transpose(1, 0)
        else:
            flax[f"{module}.scale"] = tensor
    return flax
