"""VQGAN runs as a user has them: from a YAML file, of a pile of pictures, from a published VQGAN, stopped, sharded."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import children
import sharded_vqgan
import tiny_runs
from dalle_mini import cli
from dalle_mini.errors import UserError
from dalle_mini.evaluation import reconstruction
from dalle_mini.evaluation.reconstruction import psnr, reconstruct
from dalle_mini.models import VQGAN
from dalle_mini.training.config.sections import MeshConfig
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.tasks import load_run, recorded_run, train
from dalle_mini.training.vqgan import run as vqgan_run
from dalle_mini.training.vqgan import trainer as vqgan
from dalle_mini.training.vqgan.discriminator import DiscriminatorConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "vqgan" / "tiny_f4_64"


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Evaluations fill up their calls, and unoptimised convolutions are slow."""
    monkeypatch.setattr(reconstruction, "BATCH", 4)


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """Two flat colours a picture, without captions."""
    folder, rng = tmp_path_factory.mktemp("pile"), np.random.default_rng(0)
    for i in range(32):
        image = np.broadcast_to(rng.integers(0, 256, 3), (20, 16, 3)).astype(np.uint8)
        image[: 4 + i % 12] = rng.integers(0, 256, 3)
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def config(pile, tmp_path):
    """A YAML file of a tiny run, without and with changes to its sections."""

    def write(**sections):
        values = {
            "network": "vqgan",
            "data": {"train": [str(pile)], "held_out": 0.3, "min_side": None},
            "training": {
                "init_from": str(GOLDEN),
                "optimizer": {"name": "adamw", "learning_rate": 0.002, "warmup_steps": 1, "decay": "constant"},
            },
            "loop": {"steps": 16, "batch_size": 8, "eval_every": 8, "log_every": 4},
            "samples": {"pictures": 3},
        }
        return tiny_runs.write_config(tmp_path / "run.yaml", values, sections)

    return write


@pytest.mark.slow
def test_fine_tuning_begins_at_the_published_vqgans_psnr(config, tmp_path, monkeypatch):
    monkeypatch.setattr(vqgan, "EVALUATED", 4)  # one call
    settings, published = load_run(config()), VQGAN.from_pretrained(GOLDEN)
    assert settings.training.model == published.config
    trainer = vqgan_run.prepare(settings, tmp_path)
    program = step_program(trainer, settings.loop, MeshConfig(), make_mesh(MeshConfig()))
    state = program.init(jax.random.key(0))
    images, _ = trainer.held_out.batch(range(4))
    before = psnr(images, reconstruct(published, images)[0])
    assert trainer.evaluate(program, state, 8)["psnr"] == pytest.approx(before, abs=1e-4)
    np.testing.assert_array_equal(state.params["codebook"]["embedding"], published.codebook.embedding[...])


@pytest.mark.slow
def test_fine_tuning_a_published_vqgan(config, tmp_path, capsys):
    """It learns, draws what it does, and ends as one that is read as ever."""
    path, out = config(), tmp_path / "run"
    settings, published = load_run(path), VQGAN.from_pretrained(GOLDEN)
    images, _ = (held_out := vqgan_run.prepare(settings, out).held_out).batch(range(len(held_out)))
    before = psnr(images, reconstruct(published, images)[0])

    assert cli.main(["train", str(path), "--output", str(out)]) == 0
    assert "error" not in capsys.readouterr().err
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    evaluated = {record["step"]: record for record in records if "eval_psnr" in record}
    assert sorted(evaluated) == [8, 16]
    assert evaluated[16]["eval_psnr"] > before + 1
    assert {"eval_loss", "eval_ssim", "eval_codebook_use", "eval_perplexity"} <= evaluated[16].keys()

    trained = VQGAN.from_pretrained(out / "final")
    assert trained.config == published.config
    pictures, _ = reconstruct(trained, images)
    assert psnr(images, pictures) == pytest.approx(evaluated[16]["eval_psnr"], abs=1e-3)

    folder = out / "samples" / "00000016"
    drawn = json.loads((folder / "results.json").read_text())["prompts"]
    assert [row["settings"]["picture"] for row in drawn] == [0, 1, 2]
    for number, row in enumerate(drawn):
        assert (folder / row["grid"]).is_file()
        assert row["settings"]["psnr"] == pytest.approx(psnr(images[[number]], pictures[[number]]), abs=0.02)
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/webp') == 2 * 3
    assert "PSNR, dB" in page and "Codebook use" in page

    again = recorded_run(out)
    assert again == settings
    with pytest.raises(UserError, match=r"other values of training\.l2_weight"):
        train(dataclasses.replace(again, training=dataclasses.replace(again.training, l2_weight=1.0)), out)
    # Its checkpoints are a start as well, whose config they know.
    assert load_run(config(training={"init_from": str(out)})).training.model == published.config


def test_reconstructions_lie_below_their_originals(config, tmp_path):
    from dalle_mini.training.vqgan.reconstructions import Reconstructions

    settings = load_run(config())
    trainer = vqgan_run.prepare(settings, tmp_path)
    drawn = Reconstructions(settings.samples, trainer).draw(trainer.loaded())
    images, _ = trainer.held_out.batch(range(3))
    assert len(drawn) == 3
    side = settings.training.model.resolution
    for sample, image in zip(drawn, images, strict=True):
        (both,) = sample.images
        assert both.size == (side, 2 * side + 1)
        np.testing.assert_array_equal(np.asarray(both)[:side], image)
        below = np.asarray(both)[side + 1 :]
        assert (below != image).any()


JUDGED = dataclasses.replace(
    tiny_runs.VQGAN,
    discriminator=DiscriminatorConfig(start=1, n_layers=1, ndf=4),
    optimizer=dataclasses.replace(tiny_runs.VQGAN.optimizer, ema=0.9),
)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path):
    """Discriminator, its optimizer, the codebook's counts and the running mean included."""
    loop = tiny_runs.short_loop(steps=4, keep=1)
    trainer = tiny_runs.make("vqgan", tmp_path, loop, JUDGED)

    whole, stopped = tiny_runs.whole_and_stopped(trainer, loop, tmp_path)
    assert whole == stopped
    for part in ("params/discriminator", "opt_state/discriminator", "extra/uses", "extra/sums", "ema/codebook"):
        assert any(name.startswith(part) for name in whole), part
    exported = VQGAN.from_pretrained(tmp_path / "stopped" / "final")
    assert exported.config == JUDGED.model


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_sharded_equals_single(devices, golden_bundle, tmp_path):
    told = children.output(sharded_vqgan.__file__, tmp_path, golden_bundle, devices, devices=devices)
    single, sharded = json.loads(told.splitlines()[-1])
    assert len(single["loss"]) == sharded_vqgan.STEPS
    assert all(single["discriminator"][2:]) and all(single["adversarial_weight"][2:])
    for name in ("loss", "mse", "perceptual", "commitment", "entropy_loss", "discriminator", "revived"):
        np.testing.assert_allclose(sharded[name], single[name], rtol=1e-5, atol=1e-8, err_msg=name)


VARIANTS = {
    "cosine": {"model": {"quantizer": "cosine"}, "entropy_weight": 0.05, "entropy_temperature": 0.2},
    "loss": {"codebook": "loss", "flip": True, "dtype": "bfloat16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn_and_are_read_again(name, tmp_path):
    change = dict(VARIANTS[name])
    model = dataclasses.replace(tiny_runs.VQGAN.model, **change.pop("model", {}))
    loop = tiny_runs.short_loop(steps=40, batch_size=8)
    trainer = tiny_runs.make("vqgan", tmp_path, loop, dataclasses.replace(tiny_runs.VQGAN, model=model, **change))
    program, state, metrics = tiny_runs.train(trainer, loop)
    assert metrics["psnr"][-5:].mean() > metrics["psnr"][:5].mean() + 4
    assert state.params["codebook"]["embedding"].dtype == np.float32
    found = trainer.evaluate(program, state, 8)
    assert found["codebook_use"] > 0.4
    trainer.export(state, tmp_path)
    again = VQGAN.from_pretrained(tmp_path)
    images = tiny_runs.Pictures().images
    assert psnr(images, reconstruct(again, images)[0]) == pytest.approx(found["psnr"], abs=1e-4)


BAD = {
    "training.codebok": ({"training": {"codebok": "ema"}}, "training.codebok: no such setting; did you mean codebook"),
    "other network": ({"training": {"model": {"ch": 64}}}, "its config.json is of another model"),
    "no crop": ({"training": {"crop": 6}}, "training.crop 6 is not a multiple of the 4 pixels of a token"),
    "no pile": ({"data": {"train": ["nowhere"]}}, "nowhere: there is no such file or folder"),
    "no start": ({"training": {"init_from": "./nowhere"}}, f"no such folder: {Path.cwd()}/nowhere"),
    "no vgg": ({"training": {"perceptual": {"kind": "lpips"}}}, "kind lpips needs the file of torchvision's VGG16"),
    "gumbel": ({"training": {"model": {"quantizer": "gumbel"}}}, "training a gumbel VQGAN is not supported"),
    "judge": ({"training": {"discriminator": {"n_layers": 3}}}, "needs images or crops of 24 pixels, not 16"),
}


@pytest.mark.parametrize("what", BAD)
def test_mistakes_are_one_line(what, config, tmp_path, capsys):
    sections, message = BAD[what]
    assert message in tiny_runs.refusal(config(**sections), tmp_path / "run", capsys)


def test_plans_are_for_seq2seq(config, capsys, monkeypatch):
    monkeypatch.setattr("dalle_mini.planning.plan.prepare", lambda topology: None)  # it is for a process without jax
    assert cli.main(["plan", str(config()), "--topology", "h100x1"]) == 2
    assert "plans are made for the seq2seq network alone" in capsys.readouterr().err
