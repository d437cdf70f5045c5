"""The settings that every run has, whatever it trains: how it is sharded, optimised, saved, evaluated and tracked."""

import math
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError, shown
from dalle_mini.runtime.paths import path_setting, source_setting
from dalle_mini.settings import LARGEST, MAX_CANDIDATES, MAX_SEED, check_whole

MOST = 2**31 - 1  # steps, which are counted in 32 bits
MOST_IMAGES = 1 << 20  # in one step, evaluation or sheet
MOST_DEVICES = 1 << 20

OPTIMIZERS = ("adafactor", "adamw", "muon")
DECAYS = ("constant", "linear", "cosine", "exponential")
REMAT = ("none", "dots", "full")
ON_BAD_LOSS = ("stop", "skip")
LEAST_EPS = 1e-37  # a smaller number may be 0 in float32, and a row without a gradient would be 0 / 0


@dataclass(frozen=True)
class MeshConfig:
    """Devices as a grid (data, model). Their product is the number of devices; -1 stands for what is left.

    With `fsdp` parameters and optimizer state are split over `data` as well, and gathered layer by layer; without, each
    row of the grid holds them whole (split over `model` alone).
    """

    data: int = -1
    model: int = 1
    fsdp: bool = True

    def __post_init__(self):
        check_most("mesh", self, data=MOST_DEVICES, model=MOST_DEVICES)


@dataclass(frozen=True)
class OptimizerConfig:
    """The update and its learning rate: linear warm-up, then `decay` to the last step.

    Attributes:
        name: Adafactor (its rate is relative to each parameter's scale), AdamW or Muon.
        warmup_steps: the rate rises from 0, the rate of the first update, in so many steps.
        final_rate: where `linear` and `cosine` end, as a share of `learning_rate`.
        decay_factor, decay_every: `exponential` multiplies by the factor every so many steps, smoothly.
        weight_decay: an update takes off this share of the parameters (Adafactor, as published), or this share times
            the learning rate (AdamW, Muon).
        clip: Adafactor's limit on an update's root mean square; the others' limit on the gradients' global norm. 0 is
            none.
        b1, b2: decay of AdamW's running means, also where it serves Muon. Adafactor has its own.
        eps: AdamW adds it to the root of its second mean, in float32, also where it serves Muon, which adds it to the
            norms that it divides by as well. It is the published program's `adam_epsilon`.
        ema: decay of a running mean of the parameters, which is then evaluated and exported; None is off.
        embeddings_only: train the decoder's embeddings, their norm, the final norm and the head; leave the rest.
    """

    name: str = "adafactor"
    learning_rate: float = 0.005
    warmup_steps: int = 2000
    decay: str = "linear"
    final_rate: float = 0.0
    decay_factor: float = 0.5
    decay_every: int = 10_000
    weight_decay: float = 0.0
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    ema: float | None = None
    embeddings_only: bool = False

    def __post_init__(self):
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_choice("optimizer.decay", self.decay, DECAYS)
        for name in ("learning_rate", "decay_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name}: {getattr(self, name)} is not a number above 0")
        for name in ("warmup_steps", "final_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name}: {getattr(self, name)} is not a number of 0 or more")
        if not LEAST_EPS <= self.eps < math.inf:
            raise UserError(f"optimizer.eps: {self.eps} is not a number of at least {LEAST_EPS}")
        if self.decay_every < 1:
            raise UserError(f"optimizer.decay_every: {self.decay_every} is too small; it must be at least 1")
        for name in ("b1", "b2", "ema"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise UserError(f"optimizer.{name}: {share} is not a decay, which is 0 or more and less than 1")
        check_most("optimizer", self, warmup_steps=MOST, decay_every=MOST, eps=LARGEST)
        check_most("optimizer", self, **dict.fromkeys(("learning_rate", "decay_factor"), LARGEST))
        check_most("optimizer", self, **dict.fromkeys(("final_rate", "weight_decay", "clip"), LARGEST))


@dataclass(frozen=True)
class LoopConfig:
    """The length of a run, and the intervals of everything in it. Steps are optimizer updates.

    Attributes:
        batch_size: images an update, over all devices and processes.
        accumulation: an update takes its batch in so many microbatches, one after the other.
        checkpoint_minutes, keep, keep_hours: a checkpoint every so many minutes. The last `keep` are kept, one for
            every `keep_hours` hours besides, and the one of the lowest evaluation loss.
        on_bad_loss: end the run (`stop`) or go on (`skip`) after a bad update, which is left out either way. An update
            is bad if it or its loss is not finite, or the loss is more than `spike` times the running mean of the last
            ones. A `spike` of 0 is no limit.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    log_every: int = 20
    eval_every: int = 500
    sample_every: int = 0  # draw the prompts of `samples`; 0 is with every evaluation
    checkpoint_minutes: float = 3.0
    keep: int = 2
    keep_hours: float = 0.0  # 0 keeps none beside the last ones
    checkpoints: str | None = path_setting()  # where: a folder or gs://...; None is within the run's folder
    grace_seconds: float = 120.0  # to save in, for a run that is asked to stop, before it is ended
    on_bad_loss: str = "stop"
    spike: float = 0.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "log_every", "eval_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"loop.{name}: {getattr(self, name)} is too small; it must be at least 1")
        for name in ("sample_every", "checkpoint_minutes", "keep_hours", "grace_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"loop.{name}: {getattr(self, name)} is not a number of 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"loop.seed: {shown(self.seed)} is not a number from 0 to 2**63 - 1")
        if self.spike != 0 and not 1 < self.spike < math.inf:
            raise UserError(f"loop.spike: {self.spike} is neither 0, which is no limit, nor a factor above 1")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"loop.batch_size {self.batch_size} does not divide by loop.accumulation {self.accumulation}"
            )
        check_choice("loop.on_bad_loss", self.on_bad_loss, ON_BAD_LOSS)
        check_most("loop", self, **dict.fromkeys(("steps", "log_every", "eval_every", "sample_every", "keep"), MOST))
        check_most("loop", self, batch_size=MOST_IMAGES, accumulation=MOST_IMAGES, spike=LARGEST)
        check_most("loop", self, checkpoint_minutes=LARGEST, keep_hours=LARGEST, grace_seconds=LARGEST)

    def checkpoints_in(self, out: Path) -> str | Path:
        """Where the checkpoints are of the run in the folder `out`."""
        return self.checkpoints or out / "checkpoints"


@dataclass(frozen=True)
class SampleConfig:
    """Images drawn while training: the same prompts with the same keys each time, so that steps can be compared."""

    prompts: tuple[str, ...] = ()
    candidates: int = 4
    seed: int = 0
    vqgan: str | None = source_setting()  # decodes the tokens; None is the data's own, where it is known
    clip: str | None = source_setting()  # ranks them; None leaves them in the order of their keys

    def __post_init__(self):
        check_whole("samples.candidates", self.candidates, 1, MAX_CANDIDATES)
        check_whole("samples.seed", self.seed, 0, MAX_SEED)


@dataclass(frozen=True)
class TrackingConfig:
    """Further places for a run's numbers beside `log.jsonl` and `report.html`."""

    wandb: str | None = None  # a project's name; None is off. WANDB_MODE=offline needs no account
    wandb_checkpoints: bool = False  # checkpoints as artifacts


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError where `value` is none of `known`."""
    if value not in known:
        raise UserError(f"{name}: {shown(value)} is none of {', '.join(known)}")


def check_most(section: str, config: object, **most: float) -> None:
    """Raises UserError where a number of `config`, or one in a list of it, is above its bound or not a number."""
    for name, bound in most.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number <= bound:
                raise UserError(f"{section}.{name}: {shown(number)} is too large; it may be at most {bound:.10g}")
