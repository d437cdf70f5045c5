"""The recipes in the package: each is read, and is of the size and the numbers that it says."""

import math
import re
import shlex
from pathlib import Path

import pytest

from dalle_mini.cli import build_parser, main
from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.image_tokenizer import token_grid
from dalle_mini.text import CaptionTokenizer
from dalle_mini.training.config import config_file, recipes
from dalle_mini.training.run.folder import check_here
from dalle_mini.training.seq2seq.run import Seq2SeqRun
from dalle_mini.training.tasks import TASKS, load_run
from dalle_mini.weights.bundle import check_fit, find_part
from dalle_mini.weights.pretrained import flatten

CONFIGS = recipes.FOLDER
NAMES = recipes.names()
V3_8_CORES = 8


def network(name):
    start = name.partition("-")[0]
    return start if start in ("vqgan", "clip") else "seq2seq"


def kind(name):
    return TASKS[network(name)].config


def test_which_there_are():
    assert {"micro", "mini", "mini-2021", "mega", "emoji", "finetune-mini", "finetune-emoji"} <= {*NAMES}
    assert {"vqgan-f16-256", "vqgan-emoji", "clip-emoji", "clip-finetune"} <= {*NAMES}


def test_they_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--list"])
    assert stop.value.code == 0
    *lines, place = capsys.readouterr().out.splitlines()
    assert str(CONFIGS) in place
    assert [line.split()[0] for line in lines] == NAMES
    assert "mini-2021       The first DALL·E mini (July 2021), with the settings of its report: BART" in lines[8]
    assert all(40 < len(line) < 160 for line in lines)


def test_a_name_is_the_recipe_and_a_path_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mine in ("mini", "mine.yaml", "mini-2021.yaml"):
        Path(mine).write_text("loop: {steps: 7}")
    assert load_run("mini").loop.steps == 25000
    for path in ("./mini", "mine.yaml", "mini-2021.yaml", tmp_path / "mini"):
        assert load_run(path).loop.steps == 7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nothing", "^nothing: no such recipe or file; recipes are clip-emoji, .*vqgan-f16-256$"),
        ("mimi", r"^mimi: no such recipe or file \(did you mean mini\?\); recipes are "),
        ("somewhere/mine.yaml", "^somewhere/mine.yaml cannot be read"),
        ("tools/train/configs/mini.yaml", "no such file; the recipe is called mini, without a folder or an ending$"),
    ],
)
def test_one_that_is_not_there(config, message):
    with pytest.raises(UserError, match=message):
        load_run(config)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_read_and_tells_how_to_run_it(name):
    path = CONFIGS / f"{name}.yaml"
    values = config_file.read(path)
    assert values.pop("network") == network(name)
    config_file.build(kind(name), values)
    head = path.read_text().partition("network:")[0]
    assert f"#   dalle-mini train {name} --output " in head
    for word in ("hardware:", "time", "loss"):
        assert word in head, f"{path} does not tell its {word}"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_its_head_is_one_that_can_be_given(name):
    """Its options, settings and kinds of places: a run's folder is here, data and checkpoints may be in a bucket."""
    head = (CONFIGS / f"{name}.yaml").read_text().partition("network:")[0]
    command = re.search(r"^#   dalle-mini (train (?:.*\\\n# +)*.*)$", head, re.MULTILINE)[1]
    arguments = shlex.split(command.replace("\\\n#", " "))
    args = build_parser().parse_args(arguments)
    assert args.config == name
    check_here(args.output)
    values = config_file.read(CONFIGS / f"{name}.yaml")
    values.pop("network")
    run = config_file.build(kind(name), values, args.settings)
    for source in run.data.train:
        assert "://" not in source or source.startswith("gs://bucket/")
    assert run.loop.checkpoints is None or run.loop.checkpoints.startswith("gs://bucket/")
    if "v3-" in head and kind(name) is Seq2SeqRun:  # a machine that may vanish
        assert run.loop.checkpoints and run.data.train == ("gs://bucket/tokens",)


@pytest.mark.parametrize(("name", "cores"), [("mini-2021", 8), ("mini", 8), ("mega", 32), ("mega", 256), ("mega", 512)])
def test_batches_divide_over_the_hardware_that_is_named(name, cores):
    loop = load_run(CONFIGS / f"{name}.yaml").loop
    assert loop.batch_size % (cores * loop.accumulation) == 0


def test_heads_speak_of_settings_that_there_are():
    for name in NAMES:
        for path in re.findall(
            r"`((?:data|training|loop|samples|mesh)\.[\w.]+)`", (CONFIGS / f"{name}.yaml").read_text()
        ):
            value = kind(name)()
            for part in path.split("."):
                value = getattr(value, part)


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
    assert (run.training.model.image_vocab_size, run.training.model.guidance) == (6144, 2.0)


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


@pytest.mark.usefixtures("offline")
def test_a_recipe_to_try_things_with_fetches_nothing(tmp_path):
    """Its tokenizer, its VQGAN and what encodes a folder of images are in the package, and fit its model."""
    run = load_run("micro", [f"data.train={tmp_path}"])
    named = {"dalle": run.data.tokenizer, "vqgan": run.data.vqgan}
    shipped = {part: find_part(part, source) for part, source in named.items()}
    CaptionTokenizer.from_pretrained(shipped["dalle"]).check_vocab_size(run.training.model.encoder_vocab_size)
    check_fit(run.training.model, token_grid(shipped["vqgan"]), shipped)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("clip-finetune", ["training.init_from=shipped"]),
        ("vqgan-f16-256", ["training.init_from=shipped", "training.perceptual.clip=shipped"]),
    ],
)
def test_the_examples_of_help_fetch_nothing(recipe, settings, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = capsys.readouterr().out.replace("\\\n", " ").split()
    assert recipe in words and all(one in words for one in settings)
    assert load_run(recipe, settings).training.model is not None


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing in the Hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
