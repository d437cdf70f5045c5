"""CLIP runs as a user has them: from a YAML file, of captioned pictures, from a published CLIP, stopped, sharded."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import children
import sharded_clip
import tiny_runs
from dalle_mini import cli
from dalle_mini.errors import UserError
from dalle_mini.generation.ranking import ClipRanker
from dalle_mini.models import CLIP
from dalle_mini.training.clip import run as clip_run
from dalle_mini.training.clip.retrievals import RIGHT, WRONG, framed
from dalle_mini.training.clip.trainer import SIGLIP_BIAS
from dalle_mini.training.tasks import load_run, recorded_run, train

GOLDEN = Path(__file__).parents[2] / "golden" / "clip"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (230, 220, 20)}


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """A band of one colour on another in forty pictures, each with two captions."""
    folder, rng = tmp_path_factory.mktemp("pile"), np.random.default_rng(0)
    for i in range(40):
        ground, band = rng.permutation(list(COLOURS))[:2]
        image = np.empty((30, 30, 3), np.uint8)
        image[:], image[8:20] = COLOURS[ground], COLOURS[band]
        Image.fromarray(image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{band} on {ground}\na band of {band} on {ground}\n")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Pictures without captions, in a folder for each class."""
    folder = tmp_path_factory.mktemp("classes")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((24 + i, 24, 3), colour, np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def config(pile, tmp_path):
    """A YAML file of a tiny run, without and with changes to its sections."""

    def write(**sections):
        values = {
            "network": "clip",
            "data": {"train": [str(pile)], "held_out": 0.3, "min_side": None},
            "training": {
                "init_from": str(GOLDEN),
                "noise": 0.0,
                "optimizer": {"name": "adamw", "learning_rate": 0.002, "warmup_steps": 1, "decay": "constant"},
            },
            "evaluation": {"pairs": 8},
            "loop": {"steps": 4, "batch_size": 8, "eval_every": 2, "log_every": 2},
            "samples": {"captions": 2},
        }
        return tiny_runs.write_config(tmp_path / "run.yaml", values, sections)

    return write


def test_fine_tuning_begins_at_the_published_clips_similarity(config, tmp_path):
    """To the bit of its parameters, with its own tokenizer and its own look at pictures; sigmoid takes the towers."""
    settings, published = load_run(config()), CLIP.from_pretrained(GOLDEN)
    assert settings.training.model == published.config
    trainer = clip_run.prepare(settings, tmp_path / "run")
    params = trainer.loaded()
    ranker = ClipRanker.from_pretrained(GOLDEN)
    images, captions = trainer.held_out_pairs()
    assert images.shape[1:] == (24, 24, 3) and "on" in captions[0]
    pictures, texts = trainer.image_vectors(params, images), trainer.text_vectors(params, captions[:1])
    found = np.exp(params["logit_scale"]) * pictures @ texts.T
    np.testing.assert_allclose(found[:, 0], ranker.scores(images, captions[0]), rtol=1e-4)
    assert trainer.preprocessor["image_mean"] == ranker.preprocessor_config["image_mean"]

    sigmoid = clip_run.prepare(load_run(config(training={"loss": "sigmoid"})), tmp_path / "run").loaded()
    assert sigmoid["logit_bias"] == SIGLIP_BIAS and np.exp(sigmoid["logit_scale"]) == pytest.approx(10)
    same = {name: part for name, part in sigmoid.items() if not name.startswith("logit_")}
    jax.tree.map(np.testing.assert_array_equal, same, {name: params[name] for name in same})


@pytest.mark.slow
def test_a_run_from_yaml(config, classes, tmp_path, capsys):
    """It learns, is evaluated, shows what it finds, and ends as a CLIP that ranks; and tells how to go on."""
    evaluation = {"classes": list(COLOURS), "templates": ["{}", "a band of {}"], "pictures": [str(classes)]}
    path, out = config(evaluation=evaluation), tmp_path / "run"
    assert cli.main(["train", str(path), "--output", str(out)]) == 0
    assert "error" not in capsys.readouterr().err
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (last,) = (record for record in records if record["step"] == 4 and "eval_recall" in record)
    names = {"eval_loss", "eval_recall_at_5", "eval_caption_recall_at_10", "eval_zero_shot", "eval_zero_shot_top_5"}
    assert names <= last.keys()
    assert last["eval_zero_shot_pictures"] == 12 and last["eval_zero_shot_top_5"] == 1  # of four classes

    ranker = ClipRanker.from_pretrained(out / "final")
    trainer = clip_run.prepare(load_run(path), out)
    images, captions = trainer.held_out_pairs()
    folder = out / "samples" / "00000004"
    drawn = json.loads((folder / "results.json").read_text())["prompts"]
    assert [row["settings"]["picture"] for row in drawn] == [0, 1]
    for row, caption in zip(drawn, captions, strict=False):
        assert (folder / row["grid"]).is_file()
        scores = ranker.scores(images, caption)
        assert row["settings"]["found"][0] == scores.argmax()
        cosine = scores.max() / np.exp(float(ranker.clip.logit_scale[...]))
        assert row["settings"]["cosines"][0] == pytest.approx(cosine, abs=1e-3)
    page = (out / "report.html").read_text()
    assert "Captions that find their image" in page and "Zero-shot classification" in page

    again = recorded_run(out)
    assert again == load_run(path)
    with pytest.raises(UserError, match=r"other values of training\.flip"):
        train(dataclasses.replace(again, training=dataclasses.replace(again.training, flip=True)), out)
    # The run is a start as well, whose tokenizer lies in its final folder.
    start = load_run(config(training={"init_from": str(out)}))
    assert start.training.model == again.training.model
    assert clip_run._companions(str(out)) == out / "final"


@pytest.mark.slow
def test_from_nothing(config, tmp_path):
    """A tokenizer is made of the captions, once; and it learns what is on what."""
    model = dataclasses.asdict(tiny_runs.CLIP.model)
    model["vision"] |= {"image_size": 16, "patch_size": 4}
    model = json.loads(json.dumps(model))
    sections = {
        "training": {"init_from": None, "model": model},
        "loop": {"steps": 150, "batch_size": 16, "eval_every": 150, "log_every": 50},
    }
    path, out = config(**sections), tmp_path / "run"
    final = train(load_run(path), out)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (last,) = (record for record in records if "eval_recall" in record)
    assert last["eval_recall"] > 0.6
    made = (out / "tokenizer" / "tokenizer.json").read_bytes()
    assert (final / "tokenizer.json").read_bytes() == made
    clip_run.prepare(load_run(path), out)
    assert (out / "tokenizer" / "tokenizer.json").read_bytes() == made


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path, loss):
    """Running mean and optimizer included, with augmentations, in pieces."""
    loop = tiny_runs.short_loop(steps=4, keep=1, accumulation=2)
    optimizer = dataclasses.replace(tiny_runs.CLIP.optimizer, ema=0.9)
    config = dataclasses.replace(
        tiny_runs.CLIP, loss=loss, optimizer=optimizer, damage=0.3, crop_scale=0.5, colour=0.2, flip=True
    )
    trainer = tiny_runs.make("clip", tmp_path, loop, config)

    whole, stopped = tiny_runs.whole_and_stopped(trainer, loop, tmp_path)
    assert whole == stopped
    for part in ("params/logit_scale", "opt_state", "ema/text_model"):
        assert any(name.startswith(part) for name in whole), part


def on_meshes(folder, loss):
    """Metrics on each mesh, on four devices of this machine's processor."""
    return json.loads(children.output(sharded_clip.__file__, folder, loss, devices=4).splitlines()[-1])


def test_the_losses_and_their_gradients_are_the_same_on_any_mesh(tmp_path):
    single, *others = on_meshes(tmp_path, "contrast")
    assert all(single["numbers"])
    for sharded, mesh in zip(others, sharded_clip.MESHES[1:], strict=True):
        np.testing.assert_allclose(sharded["numbers"], single["numbers"], rtol=1e-5, err_msg=f"on {mesh}")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_sharded_equals_single(loss, tmp_path):
    """The whole trainer, with damaged copies, with parameters split too, and in microbatches."""
    single, *others = on_meshes(tmp_path, loss)
    assert len(single["loss"]) == sharded_clip.STEPS
    assert len(set(single["loss"])) == sharded_clip.STEPS  # it moves
    for sharded, mesh in zip(others, sharded_clip.MESHES[1:], strict=True):
        for name in ("loss", "grad_norm", "logit_scale", "evaluated"):
            np.testing.assert_allclose(sharded[name], single[name], rtol=1e-5, err_msg=f"{name} on {mesh}")


def test_frames_tell_right_from_wrong():
    images = np.full((3, 32, 32, 3), 7, np.uint8)
    sheet = framed(images, np.array([True, False, True]))
    assert sheet.shape == (74, 74, 3)
    assert tuple(sheet[0, 0]) == RIGHT and tuple(sheet[0, -1]) == WRONG and tuple(sheet[-1, 0]) == RIGHT
    assert (sheet[-1, -1] == 255).all() and (sheet[2:34, 2:34] == 7).all()


BAD = {
    "training.loss": ({"training": {"loss": "hinge"}}, "training.loss: 'hinge' is none of softmax, sigmoid"),
    "training.train": ({"training": {"train": "none"}}, "training.train: 'none' is none of both, text, vision"),
    "training.lss": ({"training": {"lss": "softmax"}}, "training.lss: no such setting; did you mean loss"),
    "other network": ({"training": {"model": {"projection_dim": 8}}}, "its config.json is of another model"),
    "no pile": ({"data": {"train": ["nowhere"]}}, "nowhere: there is no such file or folder"),
    "no start": ({"training": {"init_from": "./nowhere"}}, f"no such folder: {Path.cwd()}/nowhere"),
    "cells": ({"training": {"damage": 0.3, "cell": 5}}, "training.cell 5 does not divide 24 pixels"),
    "one class": ({"evaluation": {"classes": ["red"]}}, "evaluation.classes: two or more names are needed"),
    "no class": ({"evaluation": {"classes": ["cat", "dog"]}}, "has a caption that names one of the 2 classes"),
    "no names": (
        {"evaluation": {"classes_file": "none.txt"}},
        f"evaluation.classes_file: {Path.cwd()}/none.txt cannot be read",
    ),
    "template": ({"evaluation": {"templates": ["a photo"]}}, "'a photo' must have one {}, for the class's name"),
    "pairs": ({"evaluation": {"pairs": 0}}, "evaluation.pairs: 0 is too small"),
    "samples": ({"samples": {"captions": -1}}, "samples.captions: -1 is not a number of 0 or more"),
}


@pytest.mark.parametrize("what", BAD)
def test_mistakes_are_one_line(what, config, tmp_path, capsys):
    sections, message = BAD[what]
    assert message in tiny_runs.refusal(config(**sections), tmp_path / "run", capsys)


def test_pictures_without_captions_are_no_pairs(config, classes, tmp_path, capsys):
    path = config(data={"train": [str(classes)]})
    assert cli.main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    assert "no image of it can be used" in capsys.readouterr().err
