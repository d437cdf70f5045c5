"""`dalle-mini train`: from a config and a pile of pictures to weights that draw, and what is wrong with either."""

import dataclasses
import json
import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image

from dalle_mini.cli import main
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.training.run.init_from import start_model, start_tokens, start_vqgan
from dalle_mini.training.seq2seq.run import prepare
from dalle_mini.training.tasks import load_run, recorded_run
from dalle_mini.weights.folder import load_config
from dalle_mini.weights.pretrained import flatten

PICTURES = 24
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """Pictures with captions, for the golden bundle's VQGAN of 16 pixels."""
    folder = tmp_path_factory.mktemp("pile")
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        color = rng.integers(0, 256, 3)
        picture = np.clip(color + rng.integers(-20, 20, (80, 96, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture {number}\na colour of {color[0]}\n")
    return folder


@pytest.fixture(scope="module")
def config(golden_bundle, pile, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = {
        "network": "seq2seq",
        "data": {"train": [str(pile)]},
        "training": {
            "init_from": str(golden_bundle),
            "dtype": "float32",
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 1, "decay": "constant"},
        },
        "loop": {"steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 4},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert (
        main(["train", str(config), "--output", str(out), "samples.prompts=a red apple", "samples.candidates=1"]) == 0
    )
    return out


def records(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_pile_is_encoded_and_learned(trained):
    manifest = json.loads((trained / "tokens" / "00" / "manifest.json").read_text())
    assert manifest["seen"] == manifest["rows"] == PICTURES
    assert [record["step"] for record in records(trained) if "loss" in record] == [1, 2, 3, 4]
    assert any("eval_loss" in record for record in records(trained))
    assert (trained / "report.html").exists()
    assert list((trained / "samples").glob("*/01-a-red-apple.png"))


def test_what_was_trained_draws(trained, golden_bundle, tmp_path):
    bundle = str(golden_bundle)  # of which VQGAN and CLIP are taken
    command = ["generate", "a red apple", "--model", str(trained / "final"), "--vqgan", bundle, "--clip", bundle]
    assert main([*command, "--candidates", "2", "--guidance", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "a-red-apple" / "01.png").exists()
    assert (trained / "final" / "words.txt").exists()


def test_a_finished_run_goes_on_without_its_config(trained, capsys):
    before = (trained / "final" / "model.safetensors").read_bytes()
    assert main(["train", "--output", str(trained)]) == 0
    assert (trained / "final" / "model.safetensors").read_bytes() == before
    assert "continuing from step 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_outlives_what_it_began_from(golden_bundle, pile, config, tmp_path):
    start, pictures, out = tmp_path / "start", tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(golden_bundle, start)
    shutil.copytree(pile, pictures)
    sources = [f"training.init_from={start}", f"data.train=[{pictures}]"]
    assert main(["train", str(config), "--output", str(out), *sources, "loop.steps=2"]) == 0
    shutil.rmtree(start)
    shutil.rmtree(pictures)
    assert main(["train", "--output", str(out), "loop.steps=3", "--allow-changes"]) == 0
    assert [record["step"] for record in records(out) if "loss" in record] == [1, 2, 3]


def test_a_checkpoint_becomes_a_models_folder(trained, golden_bundle, tmp_path):
    assert main(["convert", str(trained / "checkpoints" / "4"), str(tmp_path / "model")]) == 0
    found, final = (
        flatten(nnx.state(DalleBart.from_pretrained(folder))) for folder in (tmp_path / "model", trained / "final")
    )
    assert found.keys() == final.keys()
    jax.tree.map(np.testing.assert_array_equal, found, final)
    beside = {file.name for file in (trained / "final").iterdir()}
    assert (
        {file.name for file in (tmp_path / "model").iterdir()}
        == beside
        >= {"tokenizer.json", "words.txt", "tokens.json"}
    )
    bundle = ["--vqgan", str(golden_bundle), "--clip", str(golden_bundle)]
    assert main(["convert", str(trained), str(tmp_path / "bundle"), *bundle]) == 0
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir() if file.is_dir()) == ["clip", "dalle", "vqgan"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bundle", "model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["training.optimizer.learning_rate=0.02"],
            "was started with other values of training.optimizer.learning_rate",
        ),
        (["--resume", "never"], "there is a run in it already"),
    ],
)
def test_a_run_is_not_continued_as_another(trained, config, arguments, message, capsys):
    given = [str(config), "--output", str(trained), "samples.prompts=[]", *arguments]
    assert main(["train", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def tuning(trained, tmp_path_factory):
    """A config that says nothing of model, tokenizer and VQGAN: the start does."""
    path = tmp_path_factory.mktemp("config") / "tuning.yaml"
    settings = {
        "data": {"train": [str(trained / "tokens" / "00")]},
        "training": {"dtype": "float32", "optimizer": {"warmup_steps": 0}},
        "loop": {"steps": 1, "batch_size": 4},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/4", "final"])
def test_another_run_to_start_from(trained, tuning, inside, tmp_path):
    run = load_run(tuning, [f"training.init_from={trained / inside}"])
    assert run.training.model.d_model == load_config(trained / "final")["d_model"] != DalleBartConfig().d_model
    loaded = prepare(run, tmp_path).loaded()
    found = DalleBart.from_pretrained(trained / "final")
    jax.tree.map(np.testing.assert_array_equal, loaded, nnx.to_pure_dict(nnx.state(found)))


@pytest.mark.slow
def test_a_run_that_starts_from_a_run(trained, tuning, golden_bundle, tmp_path, capsys):
    """Without its `final` too: tokenizer and VQGAN are those that the run was told of."""
    before = tmp_path / "before"
    shutil.copytree(trained, before, ignore=shutil.ignore_patterns("final"))
    given = f"training.init_from={before}"
    assert main(["train", str(tuning), "--output", str(tmp_path / "run"), given]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "final" / "tokenizer.json").exists()
    assert start_vqgan(str(before)) == start_vqgan(str(tmp_path / "run")) == str(golden_bundle)


def test_data_in_a_bucket(trained, tuning, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = fsspec.filesystem("memory")
    bucket.put(str(trained / "tokens" / "00"), "/bucket/here", recursive=True)
    given = [f"training.init_from={trained / 'final'}", "data.validation=memory://bucket/here"]
    settings = [
        prepare(load_run(tuning, [*given, f"data.train={source}"]), tmp_path / "run").settings()["data"]
        for source in (trained / "tokens" / "00", "memory://bucket/here")
    ]
    assert settings[0] == settings[1]  # the same data, wherever it lies
    bucket.rm("/bucket", recursive=True)
    assert len(list((tmp_path / "cache" / "dalle-mini" / "tokens").glob("here-*/manifest.json"))) == 1


def test_a_run_that_cannot_be_started_from(trained, tuning, tmp_path, capsys):
    only_final, empty, foreign = (tmp_path / name for name in ("only-final", "empty", "foreign"))
    shutil.copytree(trained / "final", only_final / "final")
    assert start_model(str(only_final)) == start_model(str(trained))
    empty.mkdir()
    shutil.copy(trained / "config.json", empty)
    shutil.copytree(trained / "checkpoints" / "4", foreign / "best")
    for source, message in (
        (empty, "the folder of a training run, not of a model"),
        (foreign / "best", "a checkpoint's folder is called by its step"),
    ):
        assert main(["train", str(tuning), "--output", str(tmp_path / "run"), f"training.init_from={source}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.stepps=3", "loop.stepps: no such setting; did you mean steps?"),
        ("loop.steps=none", "loop.steps: 'none' is not of type int"),
        ("data.train=/dev/null/nowhere", "no such folder: /dev/null/nowhere"),
        ("data.train=memory://nowhere/pile", "memory://nowhere/pile: "),
        ("data.train=[]", "data.train: name the encoded images"),
        ("training.init_from=/dev/null/nowhere", "no such folder: /dev/null/nowhere"),
        ("training.model.d_model=64", "is of another model than training.model: "),
        ("mesh.model=3", "mesh: data -1 x model 3 does not make the"),
    ],
)
def test_wrong_settings(config, change, message, tmp_path, capsys):
    assert main(["train", str(config), "--output", str(tmp_path / "run"), change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: gan\n", "network: 'gan' is "),
        ("loop: {stepss: 3}\n", "loop.stepss: no such setting; did you mean steps?"),
        ("training: [1]\n", "training: [1] is not of type Seq2SeqTraining"),
        ("[1, 2]\n", "it must hold names and values"),
    ],
)
def test_wrong_configs(tmp_path, text, message, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    assert f"error: {path}: " in (error := capsys.readouterr().err)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_not_a_matter_of_its_vqgan(config, tmp_path, capsys):
    (tmp_path / "pile").mkdir()
    given = [f"data.train={tmp_path / 'pile'}", f"data.tokenizer={GOLDEN / 'tokenizer'}", "training.init_from=null"]
    assert main(["train", str(config), "--output", str(tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "pile") in error and "data.vqgan" not in error


def test_a_folder_in_a_bucket_is_no_place_for_a_run(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(config), "--output", "gs://bucket/run"]) == 2
    assert "a run's folder is one on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_continue(tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path)]) == 2
    assert "holds no run to continue: name a CONFIG" in capsys.readouterr().err


def test_tokens_of_another_vqgan(trained, config, golden_bundle, tmp_path, capsys):
    tokens = tmp_path / "tokens"
    shutil.copytree(trained / "tokens" / "00", tokens)
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["vqgan"]["identity"] = "0" * 16
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    both = f'data.train=["{trained / "tokens" / "00"}", "{tokens}"]'
    assert main(["train", str(config), "--output", str(tmp_path / "run"), both]) == 2
    assert "tokens of another VQGAN" in capsys.readouterr().err


def test_weights_that_know_another_vqgans_tokens(trained, config, tuning, golden_bundle, tmp_path, capsys):
    tokens = tmp_path / "tokens"
    shutil.copytree(trained / "tokens" / "00", tokens)
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["vqgan"]["identity"] = "0" * 16
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    for start in (golden_bundle, trained, trained / "final"):
        given = [f"data.train={tokens}", f"training.init_from={start}"]
        assert main(["train", str(tuning), "--output", str(tmp_path / "run"), *given]) == 2
        error = capsys.readouterr().err
        assert f"init_from={start} knows the tokens of another VQGAN" in error and "training.new_tokens=true" in error
        assert prepare(load_run(tuning, [*given, "training.new_tokens=true"]), tmp_path / "run")
    (trained / "final" / "tokens.json").rename(tmp_path / "tokens.json")
    assert start_tokens(str(trained / "final")) is None  # nothing tells
    (tmp_path / "tokens.json").rename(trained / "final" / "tokens.json")


def test_a_run_whose_folder_is_gone_is_found_by_its_checkpoints(trained, config, tmp_path, capsys):
    shutil.copytree(trained / "checkpoints", tmp_path / "bucket")
    assert main(["train", "--output", str(tmp_path / "gone")]) == 2
    assert "or say where its checkpoints are (loop.checkpoints=...)" in capsys.readouterr().err
    found = recorded_run(tmp_path / "gone", [f"loop.checkpoints={tmp_path / 'bucket'}"])
    assert found.loop == dataclasses.replace(load_run(config).loop, checkpoints=str(tmp_path / "bucket"))


@pytest.mark.slow
def test_a_run_is_continued_from_another_working_directory(golden_bundle, pile, config, tmp_path, monkeypatch, capsys):
    """All that it was told of was relative to the one where it began."""
    work, elsewhere = tmp_path / "at work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(golden_bundle, work / "a start")
    shutil.copytree(pile, work / "pictures")
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.chdir(work)
    sources = ["training.init_from=a start/", "data.train=./pictures", "loop.checkpoints=~/kept", "loop.keep=4"]
    assert main(["train", str(config), "--output", "runs/mine", *sources, "loop.steps=2"]) == 0
    assert not (work / "~").exists() and (work / "kept" / "2").is_dir()
    assert main(["convert", "kept/2/", "~/best"]) == 0
    assert (work / "best" / "tokens.json").is_file()
    assert DalleBartConfig.from_dict(load_config("best")) == start_model("runs/mine") == start_model("kept/2")
    capsys.readouterr()

    monkeypatch.chdir(elsewhere)
    more = ["loop.steps=3", "--allow-changes"]
    assert main(["train", "--output", "../at work/runs/mine", *more]) == 0
    sources[2] = f"loop.checkpoints={work}/kept"
    given = [
        "training.init_from=../at work/a start",
        "data.train=~/pictures",
        sources[2],
        "loop.steps=3",
        "loop.keep=4",
    ]
    assert main(["train", str(config), "--output", "~/runs/mine", *given]) == 0  # another way to say the same
    assert capsys.readouterr().err.count("continuing from step") == 2
    assert [record["step"] for record in records(work / "runs" / "mine") if "loss" in record] == [1, 2, 3]
    assert not list(elsewhere.iterdir())

    work.rename(tmp_path / "moved")
    moved = [one.replace("../at work", "../moved").replace(str(work), str(tmp_path / "moved")) for one in given]
    monkeypatch.setenv("HOME", str(tmp_path / "moved"))
    assert main(["train", str(config), "--output", "../moved/runs/mine", *moved]) == 0
