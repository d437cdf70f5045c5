"""Reads the model or the run that a new run starts from: `training.init_from`.

A model is a folder, a repository or a bundle, as everywhere. A run is its folder, its `checkpoints` (local or in a
bucket), or one checkpoint; its record also tells the model, the tokenizer and the VQGAN. If only `final` is left of a
run, that is the model.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.models.tokens_record import known_tokens, vqgan_fingerprints
from dalle_mini.runtime.paths import local
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints, recorded_config, restore_parameters
from dalle_mini.weights.bundle import SHIPPED_NAME, find_part, has_part
from dalle_mini.weights.folder import CONFIG, load_config

FINAL = "final"
TOKENIZER = "tokenizer"  # a run's own copy


def start_model(source: str) -> DalleBartConfig:
    """The config of the model to start from. Raises UserError where there is none, or of another kind."""
    run = _run(source)
    if run is None:
        return DalleBartConfig.from_dict(load_config(find_part("dalle", _model(source), weights=False)))
    if run.get("trainer") != "seq2seq":
        raise UserError(f"training.init_from={source}: a run of {run.get('trainer', 'something else')}, not of seq2seq")
    return DalleBartConfig.from_dict(run["training"]["model"])


def start_weights(source: str) -> str | Path:
    """Where `loaded_parameters` finds the parameters."""
    return find_part("dalle", _model(source)) if _run(source) is None else source


def loaded_parameters(network: type[Any], config: Any, source: str) -> dict[str, Any]:
    """The parameters of the model in `source`, as a pure dict.

    Raises:
        UserError: it has other parameters than `config` describes.
    """
    wanted = nnx.to_pure_dict(network.shapes(config)[1])
    if holds_checkpoints(source):
        return restore_parameters(source, wanted)
    loaded = nnx.to_pure_dict(nnx.state(network.from_pretrained(source)))
    if jax.tree.map(jnp.shape, loaded) != jax.tree.map(lambda leaf: leaf.shape, wanted):
        raise UserError(f"training.init_from={source}: its config.json is of another model")
    return loaded


def start_tokenizer(source: str) -> str | None:
    """Where the tokenizer of the parameters is, with its list of words; None where a run does not say."""
    run = _run(source)
    if run is None:
        return _model(source)
    beside = beside_checkpoints(source)
    if beside is not None:
        return str(beside)
    before = run["training"].get("init_from")
    return run.get("sources", {}).get("tokenizer") or (before and start_tokenizer(before))


def beside_checkpoints(source: str) -> Path | None:
    """The folder with the tokenizer of a run, which may be named by its `checkpoints` or one of them, too."""
    path = Path(local(source))
    for folder in (path, *path.parents[:2], *path.resolve().parents[:2]):  # either side of a link
        for name in (FINAL, TOKENIZER):
            if (folder / name / "tokenizer.json").is_file():
                return folder / name
    return None


def start_vqgan(source: str) -> str | None:
    """Where the VQGAN of the parameters is: in the bundle, or where a run's settings name it; None: not known."""
    run = _run(source)
    if run is None:
        return source if has_part("vqgan", source) else None
    named = run.get("samples", {}).get("vqgan") or run.get("sources", {}).get("vqgan")
    before = run["training"].get("init_from")
    return named or (before and start_vqgan(before))


def start_tokens(source: str) -> tuple[str, ...] | None:
    """The fingerprints (`models.fingerprint`) of the VQGAN whose tokens the model draws with; None where nothing tells.

    It has two where a bundle holds a copy that was rounded to another type. They come from the run's record, from the
    file beside weights that were trained here, or from the VQGAN in the same bundle.
    """
    run = _run(source)
    if run is not None:
        known = (run.get("data") or {}).get("vqgan")
        return None if known is None else (known,)
    model = _model(source)
    known = known_tokens(find_part("dalle", model, weights=False))
    is_here = model == SHIPPED_NAME or Path(model).is_dir()  # nothing is fetched for this
    beside = vqgan_fingerprints(find_part("vqgan", model)) if is_here and has_part("vqgan", model) else ()
    if known is None:
        return beside or None
    return beside if known in beside else (known,)


def _run(source: str) -> dict[str, Any] | None:
    """The settings of a run with checkpoints; None where the source is none."""
    if not holds_checkpoints(source):
        return None
    found = recorded_config(source)
    if found is None or "training" not in found:
        raise UserError(f"training.init_from={source}: no checkpoint there has a record that can be read")
    return found


def _model(source: str) -> str:
    """The source itself; or the weights that a run ended with, where it is a run's folder."""
    folder = Path(source)
    ended = (folder / FINAL / CONFIG).is_file() and not (folder / "dalle" / CONFIG).is_file()
    return str(folder / FINAL) if ended else source
