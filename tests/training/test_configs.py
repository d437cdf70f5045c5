"""The published recipes in tools/train/configs: each is read, and is of the size and the numbers that it says."""

import math
from pathlib import Path

import pytest

from dalle_mini.models import DalleBart
from dalle_mini.training import config_file
from dalle_mini.training.runs import KINDS, load_run
from dalle_mini.weights.pretrained import flatten

CONFIGS = Path(__file__).parents[2] / "tools" / "train" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
V3_8_CORES = 8


def test_which_there_are():
    assert {"micro", "mini", "mini-2021", "mega", "emoji", "finetune-mini", "finetune-emoji"} <= {*NAMES}
    assert {"vqgan-f16-256", "vqgan-emoji", "clip-emoji", "clip-finetune"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_read_and_tells_how_to_run_it(name):
    path = CONFIGS / f"{name}.yaml"
    values = config_file.read(path)
    network = values.pop("network")
    start = name.partition("-")[0]
    assert network == (start if start in ("vqgan", "clip") else "seq2seq")
    config_file.build(KINDS[network], values)
    head = path.read_text().partition("network:")[0]
    assert f"#   dalle-mini train tools/train/configs/{name}.yaml --output " in head
    for word in ("hardware:", "time", "loss"):
        assert word in head, f"{path} does not tell its {word}"


@pytest.mark.parametrize(("name", "parameters"), [("mini", 437_833_712), ("mega", 2_587_521_024)])
def test_published_sizes(name, parameters):
    model = load_run(CONFIGS / f"{name}.yaml").training.model
    assert sum(math.prod(leaf.shape) for leaf in flatten(DalleBart.shapes(model)[1]).values()) == parameters


def test_the_numbers_of_the_report():
    run = load_run(CONFIGS / "mini-2021.yaml")
    assert run.loop.batch_size == 3584 == 56 * V3_8_CORES * run.loop.accumulation
    assert run.loop.accumulation == 8
    optimizer = run.training.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup_steps, optimizer.decay) == (
        *("adafactor", 0.005, 2000, "linear"),
    )
    model = run.training.model
    assert (model.image_vocab_size, model.image_length, model.d_model) == (16384, 256, 1024)


def test_weights_to_start_from_bring_their_config():
    run = load_run(CONFIGS / "finetune-emoji.yaml", ["training.model.guidance=2.0"])
    assert run.training.init_from == "shipped"
    assert (run.training.model.image_vocab_size, run.training.model.guidance) == (1024, 2.0)


def test_the_emoji_vqgan_makes_sixteen_by_sixteen_tokens():
    training = load_run(CONFIGS / "vqgan-emoji.yaml").training
    training.check()
    assert (training.model.downscale, training.model.grid, training.side) == (8, 16, 64)


def test_the_emoji_clip_reads_what_the_emoji_vqgan_draws():
    run = load_run(CONFIGS / "clip-emoji.yaml")
    run.training.check()
    vision = run.training.model.vision
    assert (vision.image_size, vision.image_size // vision.patch_size) == (128, 16)
    assert run.evaluation.pairs == 256
    assert run.training.damage and vision.image_size % run.training.cell == 0
