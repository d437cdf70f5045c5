"""A run of CLIP: its settings from a YAML file, its pairs packed, its tokenizer and its trainer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini.data.images.dataset import ImageData, ImageSource, open_labelled
from dalle_mini.errors import UserError
from dalle_mini.generation.ranking import openai_preprocessing, read_preprocessing
from dalle_mini.imaging.clip_pixels import clip_normalisation, clip_sizes
from dalle_mini.runtime.paths import source_setting
from dalle_mini.text import CaptionTokenizer
from dalle_mini.text.train_tokenizer import train_clip_tokenizer
from dalle_mini.training.clip.retrievals import RetrievalConfig
from dalle_mini.training.clip.trainer import CLIPTrainer, CLIPTraining
from dalle_mini.training.clip.zero_shot import EvaluationConfig
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.engine.multihost import first_process_does
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.run import image_runs
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints
from dalle_mini.training.run.init_from import TOKENIZER, beside_checkpoints
from dalle_mini.weights.bundle import find_part

READ = 20_000  # at most so many captions make a new tokenizer


@dataclass(frozen=True)
class CaptionedData(ImageData):
    """The data of a run.

    Attributes:
        tokenizer: a folder or repository with CLIP's tokenizer; None takes that of `training.init_from`, or makes a
            new one of the captions.
    """

    tokenizer: str | None = source_setting()


@dataclass(frozen=True)
class CLIPRun:
    """All settings of a run, as its YAML file has them."""

    data: CaptionedData = field(default_factory=CaptionedData)
    training: CLIPTraining = field(default_factory=CLIPTraining)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    samples: RetrievalConfig = field(default_factory=RetrievalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def prepare(run: CLIPRun, out: Path) -> CLIPTrainer:
    """Pack a run's pairs into `out/pictures` unless they are there, and make its trainer.

    Raises:
        UserError: settings do not go together, or images, captions or a network are missing or damaged.
    """
    training, start = run.training, run.training.init_from
    training.check()  # what is wrong shows before the wait for the packing
    run.evaluation.names()
    make_mesh(run.mesh)
    companions = None if start is None else _companions(start)
    preprocessor = _preprocessor(companions, training.model.vision.image_size)
    size = clip_sizes(preprocessor)[0]
    train, held_out = image_runs.open_data(run.data, size, out, captions=True, seed=run.loop.seed)
    tokenizer = _tokenizer(run, companions, train, out)
    labelled = None
    if run.evaluation.pictures and run.evaluation.names():
        sources, folder = run.evaluation.pictures, out / "pictures"
        first_process_does(lambda: open_labelled(run.data, sources, size, folder))
        labelled = open_labelled(run.data, sources, size, folder)
    return CLIPTrainer(
        training,
        train,
        held_out,
        tokenizer,
        preprocessor,
        batch_size=run.loop.batch_size,
        seed=run.loop.seed,
        captions_of=train.captions,
        data={"train": train.origin(), "held_out": held_out.origin(), "tokenizer": tokenizer.digest},
        evaluation=run.evaluation,
        labelled=labelled,
    )


def _companions(start: str) -> Path:
    """The folder with tokenizer and `preprocessor_config.json` of the CLIP to start from."""
    if not holds_checkpoints(start):
        return find_part("clip", start, weights=False)
    beside = beside_checkpoints(start)
    if beside is None:
        raise UserError(
            f"training.init_from={start}: there is no final/ nor tokenizer/ of that run, with its tokenizer"
        )
    return beside


def _preprocessor(companions: Path | None, side: int) -> dict[str, Any]:
    """How CLIP wants its images. Raises UserError where that makes images of another side than CLIP takes."""
    found = openai_preprocessing(side) if companions is None else read_preprocessing(companions, side)
    clip_normalisation(found)
    if clip_sizes(found)[1] != side:
        raise UserError(
            f"training.init_from: its preprocessor_config.json makes images of {clip_sizes(found)[1]} pixels, "
            f"its config.json wants {side}"
        )
    return found


def _tokenizer(run: CLIPRun, companions: Path | None, train: ImageSource, out: Path) -> CaptionTokenizer:
    """The tokenizer of the settings or of the CLIP to start from, or the run's own, made of its captions once."""
    named = run.data.tokenizer or companions
    if named is not None:
        return CaptionTokenizer.from_pretrained(named)
    folder, size = out / TOKENIZER, run.training.model.text.vocab_size

    def make() -> None:
        if not (folder / "tokenizer.json").exists():
            chosen = np.random.default_rng(0).choice(len(train), min(READ, len(train)), replace=False)
            train_clip_tokenizer([caption for i in chosen for caption in train.captions(int(i))], size, folder)

    first_process_does(make)
    return CaptionTokenizer.from_pretrained(folder)
