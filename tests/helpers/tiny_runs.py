"""The three trainers at their smallest, on eight pictures of 8x8 pixels.

As a script, `tiny_runs.py OUT TRAINER... [--die-at STEP]`, it runs them into OUT/TRAINER, without evaluation and
`WITHOUT_TIES`; with --die-at the process kills itself (SIGKILL) when the batch of that step is asked for.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import signal
from pathlib import Path

import jax
import numpy as np
import yaml
from etils import epath

from dalle_mini import cli
from dalle_mini.models.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, DalleBartConfig, VQGANConfig
from dalle_mini.text.train_tokenizer import train_caption_tokenizer, train_clip_tokenizer
from dalle_mini.training.clip import trainer as clip
from dalle_mini.training.clip.trainer import CLIPTrainer, CLIPTraining
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, OptimizerConfig
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.run.checkpoint import read_record
from dalle_mini.training.run.loop import run
from dalle_mini.training.seq2seq.trainer import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.training.vqgan import trainer as vqgan
from dalle_mini.training.vqgan.trainer import VQGANTrainer, VQGANTraining

NAMES = ("seq2seq", "vqgan", "clip")
# The learning rate does not depend on the number of steps, so runs of any length share a compiled update.
STEADY = {"warmup_steps": 2, "decay": "constant"}
CAPTIONS = ["red", "green", "blue", "stripes", "a ring", "a dot", "night", "noise"]

SEQ2SEQ = Seq2SeqTraining(
    model=DalleBartConfig(
        encoder_vocab_size=300,
        image_vocab_size=16,
        max_text_length=8,
        image_length=16,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
    ),
    optimizer=OptimizerConfig(learning_rate=0.02, **STEADY),
    dtype="float32",
)
VQGAN = VQGANTraining(
    model=VQGANConfig(
        ch=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=8,
        embed_dim=4,
        n_embed=16,
        norm_groups=4,
    ),
    optimizer=dataclasses.replace(vqgan.OPTIMIZER, learning_rate=3e-3, **STEADY),
    revive_every=3,
)
# Two entries that were revived at one vector are equally near to it: rounding decides which of them it moves.
WITHOUT_TIES = {"vqgan": dataclasses.replace(VQGAN, revive_every=0)}
CLIP = CLIPTraining(
    model=CLIPConfig(
        text=CLIPTextConfig(
            vocab_size=600,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        ),
        vision=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        projection_dim=16,
    ),
    optimizer=dataclasses.replace(clip.OPTIMIZER, learning_rate=3e-3, **STEADY),
)
CONFIGS = dict(zip(NAMES, (SEQ2SEQ, VQGAN, CLIP), strict=True))
# Those of runs that keep a running mean
WITH_MEAN = {
    name: dataclasses.replace(one, optimizer=dataclasses.replace(one.optimizer, ema=0.9))
    for name, one in CONFIGS.items()
}
PREPROCESSOR = {
    "size": {"shortest_edge": 8},
    "crop_size": {"height": 8, "width": 8},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}


class Pictures:
    """Eight pictures that are easy to tell apart, over and over: a map-style source."""

    def __init__(self, length: int = 8):
        self.length = length
        images = np.zeros((8, 8, 8, 3), np.uint8)
        for channel in range(3):
            images[channel, ..., channel] = 220
        images[3, ::2] = 255
        images[4, 1:7, 1:7] = 200
        images[4, 3:5, 3:5] = 0
        images[5, 3:5, 3:5] = 255
        images[6] = (10, 10, 40)
        images[7] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
        self.images = images

    def __len__(self):
        return self.length

    def batch(self, indices):
        rows = np.asarray(list(indices)) % 8
        return self.images[rows], [CAPTIONS[row] for row in rows]


class Tokens:
    """In the place of `TokenBatches`: rows of captions of which each has its own tokens."""

    vqgan, codebook_size, image_length = "tiny", 16, 16

    def __init__(self, tokenizer, batch_size: int = 4, seed: int = 0, rows: int = 24):
        codes = np.random.default_rng(1).integers(0, 16, (8, 16)).astype(np.int32)
        which = np.arange(rows) % 8
        ids, mask = tokenizer([CAPTIONS[i] for i in which], max_length=SEQ2SEQ.model.text_length)
        self.table = {"input_ids": ids, "attention_mask": mask, "labels": codes[which]}
        self.batch_size, self.seed = batch_size, seed

    def at(self, step):
        rng = np.random.default_rng((self.seed, step))
        rows = rng.integers(0, len(self.table["labels"]), self.batch_size)
        return {name: array[rows] for name, array in self.table.items()}

    def evaluation(self, batch_size):
        count = len(self.table["labels"])
        for start in range(0, count, batch_size):
            rows = np.arange(start, start + batch_size)
            batch = {name: array[np.minimum(rows, count - 1)] for name, array in self.table.items()}
            yield {**batch, "label_mask": (rows < count).astype(np.float32)}

    def origin(self):
        return {"rows": len(self.table["labels"])}


def make(name: str, folder: Path, loop: LoopConfig, config=None, train=None, **options):
    """The trainer of that name. `folder` holds its tokenizer, made if need be; `options` are for CLIP's."""
    sizes = {"batch_size": loop.batch_size, "seed": loop.seed}
    if name == "seq2seq":
        tokenizer = train_caption_tokenizer([f" {caption}" for caption in CAPTIONS], 300, folder / "tokenizer")
        held_out = Tokens(tokenizer, rows=8)
        return Seq2SeqTrainer(config or SEQ2SEQ, train or Tokens(tokenizer, **sizes), held_out, tokenizer)
    train = train or Pictures()
    if name == "vqgan":
        return VQGANTrainer(config or VQGAN, train, Pictures(), **sizes)
    tokenizer = train_clip_tokenizer(CAPTIONS, 600, folder / "tokenizer")
    return CLIPTrainer(config or CLIP, train, Pictures(), tokenizer, PREPROCESSOR, **sizes, **options)


def short_loop(**changes) -> LoopConfig:
    """Eight steps, every one logged, every one saved."""
    return LoopConfig(**{"steps": 8, "batch_size": 4, "log_every": 1, "checkpoint_minutes": 0, **changes})


@functools.cache  # or each test would trace it again
def program_of(trainer, loop: LoopConfig):
    return step_program(trainer, loop, MeshConfig(), make_mesh(MeshConfig()))


def begin(trainer, loop: LoopConfig, seed: int = 0):
    """(program, state): what a run of the trainer starts with, on all devices."""
    program = program_of(trainer, loop)
    return program, program.init(jax.random.key(seed))


def train(trainer, loop: LoopConfig):
    """(program, state, metrics of each step) of a run without a loop around it."""
    program, state = begin(trainer, loop)
    metrics = []
    for step in range(loop.steps):
        state, found = program.step(state, program.place(trainer.batch(step)), jax.random.key(step))
        metrics.append(found)
    return program, state, {name: np.array([found[name] for found in metrics]) for name in metrics[0]}


class Bare:
    """A trainer without its evaluation, which costs a compilation; `die()` happens where batch `die_at` is made."""

    def __init__(self, trainer, die_at: int | None = None, die=None):
        self.trainer, self.die_at, self.die = trainer, die_at, die

    def __getattr__(self, name):
        return getattr(self.trainer, name)

    def batch(self, step: int):
        return self.die() if step == self.die_at else self.trainer.batch(step)

    def evaluate(self, program, state, batch_size):
        return {}


class Stopped(Exception):
    pass


def whole_and_stopped(trainer, loop: LoopConfig, folder: Path, die_at: int = 3) -> list[dict]:
    """A checksum of each array at the end of a run, and of one that stopped at batch `die_at` and went on."""

    def stop():
        raise Stopped

    run(Bare(trainer), loop, folder / "whole")
    with contextlib.suppress(Stopped):
        run(Bare(trainer, die_at, stop), loop, folder / "stopped")
        raise AssertionError("it did not stop")
    run(Bare(trainer), loop, folder / "stopped")
    ends = (epath.Path(folder) / name / "checkpoints" / str(loop.steps) for name in ("whole", "stopped"))
    return [read_record(end)["leaves"] for end in ends]


def write_config(path: Path, values: dict, sections: dict) -> Path:
    """A run's YAML file, of `values` with fields of their sections changed."""
    changed = {name: {**values.get(name, {}), **section} for name, section in sections.items()}
    path.write_text(yaml.safe_dump(values | changed))
    return path


def refusal(config: Path, out: Path, capsys) -> str:
    """The one line, besides notes, in which `dalle-mini train` refuses a config."""
    assert cli.main(["train", str(config), "--output", str(out)]) == 2
    told = capsys.readouterr().err.splitlines()
    (said,) = (line for line in told if not line.startswith("note: ") and "images are packed" not in line)
    assert said.startswith("error: ")
    return said


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("trainers", nargs="+", choices=NAMES)
    parser.add_argument("--die-at", type=int)
    arguments = parser.parse_args()
    for chosen in arguments.trainers:
        folder = arguments.out / chosen
        trainer = make(chosen, folder, short_loop(), WITHOUT_TIES.get(chosen))
        run(Bare(trainer, arguments.die_at, kill_self), short_loop(), folder)
