"""The files of taming-transformers: a checkpoint of pytorch-lightning and the YAML file of the run that made it.

    last.ckpt  model.yaml                                        as published and passed on
    checkpoints/last.ckpt  configs/2021-04-03-project.yaml       as a run leaves them

Whoever fine-tuned such a model to other pixel values than [-1, 1] writes a `config.json` beside it, which then counts.
"""

import glob
from fnmatch import fnmatchcase
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.runtime import parsing

# The classes of `taming.models.vqgan` that turn pictures into tokens -> our config's quantizer.
QUANTIZERS = {"VQModel": "nearest", "VQNoDiscModel": "nearest", "GumbelVQ": "gumbel"}

# Values without a default in the published classes: a file that lacks one cannot be read.
PARAMS = ("embed_dim", "n_embed", "ddconfig")
DDCONFIG = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "in_channels", "out_ch", "z_channels")


def find_checkpoint(source: str | Path) -> Path | None:
    """The `.ckpt` that `source` is, or that lies in the folder `source`; None if there is none.

    Raises:
        UserError: there are several, and none is `last.ckpt`.
    """
    source = Path(source)
    if source.suffix == ".ckpt" and source.is_file():
        return source
    found = sorted(source.glob("*.ckpt")) or sorted(source.glob("checkpoints/*.ckpt"))
    last = [path for path in found if path.name == "last.ckpt"] or found
    if len(last) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise UserError(f"{source} has several checkpoints ({names}): give the path of one")
    return last[0] if last else None


def find_yaml(checkpoint: str | Path) -> Path:
    """The YAML file that belongs to a `.ckpt`: the one of the same name, or the only one that looks like a run's.

    Raises:
        UserError: there is none, or which one it is cannot be told.
    """
    checkpoint = Path(checkpoint)
    own, folder = checkpoint.with_suffix(".yaml").name, checkpoint.parent
    places = (folder, folder.parent / "configs") if folder.name == "checkpoints" else (folder,)
    found = next(filter(None, (sorted(place.glob("*.yaml")) for place in places)), [])
    for pattern in (glob.escape(own), "model.yaml", "config.yaml", "*project.yaml", "*"):
        fitting = [path for path in found if fnmatchcase(path.name, pattern)]
        if len(fitting) == 1:
            return fitting[0]
    if found:
        names = ", ".join(path.name for path in found[:5])
        raise UserError(f"{checkpoint} has several YAML files beside it ({names}): name its own {own}")
    raise UserError(f"{checkpoint} has no YAML file beside it: a model of taming-transformers needs {own}")


def vqgan_yaml_config(path: str | Path) -> dict:
    """The fields of `VQGANConfig.from_dict`, from a YAML file of taming-transformers.

    Raises:
        UserError: the file cannot be read, or describes something else than a VQGAN.
    """
    path = Path(path)
    content = parsing.read_yaml(path)
    model = _fields(path, "the file", content, ("model",))["model"]
    model = _fields(path, "model", model, ("target", "params"))
    target = model["target"] if isinstance(model["target"], str) else "of another kind than text"
    kind = target.rpartition(".")[2]
    if kind not in QUANTIZERS:
        known = ", ".join(QUANTIZERS)
        raise UserError(f"{path}: model.target {target:.60} is not supported (supported: {known})")
    params = _fields(path, "model.params", model["params"], PARAMS)
    ddconfig = _fields(path, "model.params.ddconfig", params["ddconfig"], DDCONFIG)
    if params.get("remap"):
        raise UserError(f"{path}: model.params.remap, a codebook of which only a part is used, is not supported")
    return {
        **ddconfig,
        "model_type": "vqgan",
        "embed_dim": params["embed_dim"],
        "n_embed": params["n_embed"],
        "quantizer": QUANTIZERS[kind],
        "pixel_range": [-1, 1],
    }


def _fields(path: Path, name: str, value: object, wanted: tuple[str, ...]) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} has no named fields; a VQGAN's YAML file has model.params.ddconfig")
    missing = [field for field in wanted if field not in value]
    if missing:
        raise UserError(f"{path}: {name} lacks {', '.join(missing)}")
    return value
