"""A run's checkpoint as a network's folder in our format: while the run goes on, or where the best was not the last."""

import json
import shutil
from pathlib import Path
from typing import Any

from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import write_whole
from dalle_mini.training.config import config_file
from dalle_mini.training.run.checkpoint_folder import recorded_config
from dalle_mini.training.run.init_from import FINAL, beside_checkpoints, loaded_parameters
from dalle_mini.training.tasks import TASKS
from dalle_mini.weights.bundle import TOKENS_RECORD
from dalle_mini.weights.folder import CONFIG


def export_checkpoint(source: str, folder: Path) -> None:
    """Write the network of a checkpoint into `folder`, float32, with the tokenizer that lies beside the checkpoints.

    A run that keeps a running mean of its parameters (`training.optimizer.ema`) exports the mean.

    Args:
        source: one checkpoint; or a run or its `checkpoints`, of which the newest whole checkpoint is taken. It is a
            local folder or in a bucket.
        folder: where the network is written; it may be there.
    Raises:
        UserError: there is no whole checkpoint, or its record cannot be read.
    """
    found = recorded_config(source) or {}
    task = TASKS.get(found.get("trainer", ""))
    if task is None:
        raise UserError(f"{source}: no checkpoint there has a record that tells what network it is of")
    config: Any = config_file.build(task.training, found["training"]).network
    graphdef, _ = task.network.shapes(config)
    nnx.merge(graphdef, loaded_parameters(task.network, config, source)).save_pretrained(folder)
    beside = beside_checkpoints(source) if task.has_text else None
    if beside is not None:
        for file in beside.iterdir():
            is_network = file.name == CONFIG or file.name.startswith("model")
            if file.is_file() and not (beside.name == FINAL and is_network):
                shutil.copyfile(file, folder / file.name)
    tokens = (found.get("data") or {}).get("vqgan")  # in the record of a network that draws with tokens
    if tokens is not None:
        write_whole(folder / TOKENS_RECORD, json.dumps({"vqgan": tokens}) + "\n")
