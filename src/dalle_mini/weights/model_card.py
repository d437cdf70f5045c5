"""A model card for the Hub: YAML front matter, what is in the folder, and how to load it."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dalle_mini.weights.bundle import PARTS
from dalle_mini.weights.folder import CONFIG, load_config, load_tensors

LOADERS = {"dallebart": "DalleBart", "vqgan": "VQGAN", "clip": "CLIP"}  # by the model_type of config.json
TASKS = {"dallebart": "text-to-image", "vqgan": "image-feature-extraction", "clip": "zero-shot-image-classification"}
SOURCE = "https://github.com/borisdayma/dalle-mini"


def model_card(folder: Path, repo_id: str, license: str = "apache-2.0") -> str:
    """The text of `README.md` for a model's folder, or for a bundle's.

    Args:
        folder: as `save_pretrained` has written it.
        repo_id: where it will be loaded from.
        license: of the weights, as the Hub spells it.

    Raises:
        UserError: the folder cannot be read.
    """
    is_bundle = not (folder / CONFIG).is_file()
    configs = {part: load_config(folder / part) for part in (PARTS if is_bundle else ("",))}
    kinds = [config["model_type"] for config in configs.values()]
    loader = "DalleMini" if is_bundle else LOADERS[kinds[0]]
    rows = [_row(folder / part, config) for part, config in configs.items()]
    return "\n".join(
        [
            "---",
            f"license: {license}",
            "library_name: dalle-mini",
            f"pipeline_tag: {'text-to-image' if is_bundle else TASKS[kinds[0]]}",
            "tags:",
            *(f"- {tag}" for tag in dict.fromkeys(("dalle-mini", *kinds, "jax", "flax"))),
            "---",
            "",
            f"# {repo_id.rpartition('/')[2]}",
            "",
            _introduction(is_bundle, loader),
            "",
            "| network | architecture | parameters | stored as | bytes |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "```python",
            *_example(loader, repo_id),
            "```",
            "",
        ]
    )


def _introduction(is_bundle: bool, loader: str) -> str:
    family = f"[DALL·E mini]({SOURCE}) draws images from captions"
    if is_bundle:
        return (
            f"{family}: a BART encoder reads the caption, a BART decoder writes image tokens, a VQGAN turns them "
            "into an image, and CLIP ranks many candidates. This is all of it."
        )
    roles = {
        "DalleBart": "the network that reads a caption and writes the tokens of an image",
        "VQGAN": "the network that turns image tokens into an image, and back",
        "CLIP": "the network that tells how well an image fits a caption",
    }
    return f"{family}. This is {roles[loader]}."


def _row(folder: Path, config: dict) -> str:
    kind = config["model_type"]
    tensors = load_tensors(folder)
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[str(tensor.dtype)] += math.prod(tensor.shape)
    stored = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    dtypes = ", ".join(dtype for dtype, _ in sizes.most_common())
    return f"| {LOADERS[kind]} | {ARCHITECTURES[kind](config)} | {sizes.total():,} | {dtypes} | {stored:,} |"


def _dalle_bart(config: dict) -> str:
    return (
        f"{config['encoder_layers']} encoder and {config['decoder_layers']} decoder layers of width "
        f"{config['d_model']}, {config['ln_positions']}, {'GLU' if config['use_glu'] else 'plain'} feed-forward; "
        f"{config['max_text_length']} text tokens of {config['encoder_vocab_size']}, {config['image_length']} image "
        f"tokens of {config['image_vocab_size']}"
    )


def _vqgan(config: dict) -> str:
    downscale = 2 ** (len(config["ch_mult"]) - 1)
    return (
        f"f{downscale}, images of {config['resolution']}x{config['resolution']}, codebook of {config['n_embed']} "
        f"with {config['embed_dim']} values each"
    )


def _clip(config: dict) -> str:
    vision = config["vision_config"]
    return (
        f"images of {vision['image_size']}x{vision['image_size']} in patches of {vision['patch_size']}, "
        f"{vision['num_hidden_layers']} vision and {config['text_config']['num_hidden_layers']} text layers, "
        f"embeddings of {config['projection_dim']}"
    )


ARCHITECTURES: dict[str, Callable[[dict], str]] = {"dallebart": _dalle_bart, "vqgan": _vqgan, "clip": _clip}


def _example(loader: str, repo_id: str) -> list[str]:
    if loader == "DalleMini":
        return [
            "from dalle_mini import DalleMini",
            "",
            f'pipe = DalleMini.from_pretrained("{repo_id}")',
            'pipe.generate(["an avocado armchair"], candidates=16, keep=4)[0].images[0].save("armchair.png")',
        ]
    return [
        f"from dalle_mini.models import {loader}",
        "",
        f'model = {loader}.from_pretrained("{repo_id}")',
    ]
