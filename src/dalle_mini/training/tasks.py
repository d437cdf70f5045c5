"""The three tasks in one table: what each trains, and by which code. Only this file dispatches.

A room of a task (`seq2seq/`, `vqgan/`, `clip/`) has a `run.py` with the dataclass of a run's settings and the functions
of its row. A run is a value of that dataclass.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dalle_mini.addresses import hides
from dalle_mini.errors import UserError
from dalle_mini.models import CLIP, VQGAN, DalleBart
from dalle_mini.training.clip import run as clip
from dalle_mini.training.clip.retrievals import Retrievals
from dalle_mini.training.clip.trainer import CLIPTrainer, CLIPTraining
from dalle_mini.training.config import config_file, recipes
from dalle_mini.training.config.sections import check_choice
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.run import loop
from dalle_mini.training.run.folder import alone_in_run, started_with
from dalle_mini.training.run.image_runs import build_run
from dalle_mini.training.run.init_from import FINAL
from dalle_mini.training.run.ownership import Claim
from dalle_mini.training.seq2seq import run as seq2seq
from dalle_mini.training.seq2seq.trainer import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.training.tracking.samples import Sampler
from dalle_mini.training.vqgan import run as vqgan
from dalle_mini.training.vqgan.reconstructions import Reconstructions
from dalle_mini.training.vqgan.trainer import VQGANTrainer, VQGANTraining
from dalle_mini.weights.pretrained import Pretrained

DEFAULT = Seq2SeqTrainer.name  # the task of a YAML file that has no `network`
CHECKPOINTS = "loop.checkpoints"
SOURCES = "sources"  # the section of a run's record that holds its `data`; its "data" tells the images themselves
TRAINED = ("data", "training", "mesh", "loop")  # sections that the loop or the trainer records

Run = seq2seq.Seq2SeqRun | vqgan.VQGANRun | clip.CLIPRun


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        config: the dataclass of a run's settings, as its YAML file has them.
        training: the dataclass of its section `training`.
        network: the class of the weights that a run ends with.
        build_run: (values of a YAML file, `key=value` overrides) -> the run. It raises UserError where a key or value
            cannot be.
        prepare: (run, the run's folder) -> the trainer, with its data found or made. It raises UserError where
            something is missing or damaged.
        sampler: (run, trainer) -> what draws images on the way.
        has_text: whether a tokenizer lies beside the weights.
        work: run -> the arithmetic of an image, where a formula knows it.
        without_data: run -> a trainer whose update can be compiled but not run; None where there are no plans.
    """

    config: type
    training: type
    network: type[Pretrained]
    build_run: Callable[[Mapping[str, Any], Sequence[str]], Any]
    prepare: Callable[[Any, Path], Any]
    sampler: Callable[[Any, Any], Sampler]
    has_text: bool
    work: Callable[[Any], Work] = lambda run: Work()
    without_data: Callable[[Any], Any] | None = None


TASKS = {
    Seq2SeqTrainer.name: Task(
        config=seq2seq.Seq2SeqRun,
        training=Seq2SeqTraining,
        network=DalleBart,
        build_run=seq2seq.build_run,
        prepare=seq2seq.prepare,
        sampler=seq2seq.sampler,
        has_text=True,
        work=seq2seq.work,
        without_data=seq2seq.without_data,
    ),
    VQGANTrainer.name: Task(
        config=vqgan.VQGANRun,
        training=VQGANTraining,
        network=VQGAN,
        build_run=partial(build_run, vqgan.VQGANRun, "vqgan"),
        prepare=vqgan.prepare,
        sampler=lambda run, trainer: Reconstructions(run.samples, trainer),
        has_text=False,
    ),
    CLIPTrainer.name: Task(
        config=clip.CLIPRun,
        training=CLIPTraining,
        network=CLIP,
        build_run=partial(build_run, clip.CLIPRun, "clip"),
        prepare=clip.prepare,
        sampler=lambda run, trainer: Retrievals(run.samples, trainer),
        has_text=True,
    ),
}


def task_of(run: Run) -> Task:
    """The row of a run's settings."""
    return next(task for task in TASKS.values() if task.config is type(run))


def load_run(path: str | Path, assignments: Sequence[str] = ()) -> Run:
    """A run's settings from a YAML file or a recipe, whose `network` names the task, and `key=value` overrides.

    Raises:
        UserError: the file cannot be read, is of another network, or holds a key or value that cannot be.
    """
    values = config_file.read(recipes.find(path))
    network = values.pop("network", DEFAULT)
    try:
        check_choice("network", network, tuple(TASKS))
        config_file.build(TASKS[network].config, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return TASKS[network].build_run(values, assignments)


def recorded_run(out: Path, assignments: Sequence[str] = ()) -> Run:
    """The settings that the run in `out` was started with, or last changed to, with overrides.

    Raises:
        UserError: there is no run, or its record cannot be read.
    """
    elsewhere = [value for name, _, value in (one.partition("=") for one in assignments) if name == CHECKPOINTS]
    found = started_with(out, elsewhere[-1] if elsewhere else None)
    if found is None:
        raise UserError(
            f"{out} holds no run to continue: name a CONFIG to start one, or say where its checkpoints are "
            f"({CHECKPOINTS}=...)"
        )
    config = TASKS.get(found.get("trainer", DEFAULT), TASKS[DEFAULT]).config
    names = {field.name for field in dataclasses.fields(config)}
    values = {name: found[name] for name in names & found.keys()} | {"data": found.get(SOURCES, {})}
    try:
        config_file.build(config, values)
    except UserError as error:
        raise UserError(f"{out}: its record is of another kind of run ({error}); name a CONFIG") from None
    run: Run = config_file.build(config, values, assignments)
    if hides(dataclasses.asdict(run.data)):
        raise UserError(f"{out}: its record does not keep what lets one in to its data: name their addresses again")
    return run


def train(run: Run, out: Path, *, resume: str = "auto", allow_changes: bool = False) -> Path:
    """Train into the folder `out`, or continue what is there. Returns the folder of the weights.

    Raises:
        UserError: something in the settings or the data is wrong. Otherwise as `loop.run`.
    """
    task, checkpoints = task_of(run), run.loop.checkpoints_in(out)
    with alone_in_run(out, checkpoints, resume):
        Claim(out, checkpoints)  # raises before data are made
        trainer = task.prepare(run, out)
        sections = [field.name for field in dataclasses.fields(run) if field.name not in TRAINED]
        loop.run(
            trainer,
            run.loop,
            out,
            run.mesh,
            resume=resume,
            allow_changes=allow_changes,
            tracking=run.tracking,
            work=task.work(run),
            sampler=task.sampler(run, trainer),
            settings={name: dataclasses.asdict(getattr(run, name)) for name in sections}
            | {SOURCES: dataclasses.asdict(run.data)},
        )
    return out / FINAL
