"""Pictures while training: the pipeline's own, from parameters wherever they are."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import children
import draw_samples
from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.training.records import read_samples
from dalle_mini.training.tracking.samples import mean_score
from draw_samples import PROMPTS, SEED, config, sampler, split


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Not here: pictures are compared with those of programs that other tests may have compiled, optimised."""


@pytest.fixture(scope="module")
def expected(pipe):
    return pipe.generate(list(PROMPTS), candidates=2, keep=2, seed=SEED)


@pytest.fixture(scope="module")
def ours(golden_bundle):
    return sampler(golden_bundle, config(golden_bundle))


def assert_same(samples, results):
    assert [one.prompt for one in samples] == [one.prompt for one in results]
    for sample, result in zip(samples, results, strict=True):
        assert sample.candidates == result.indices
        np.testing.assert_allclose(sample.scores, result.scores, rtol=1e-5)
        for one, other in zip(sample.images, result.images, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_what_the_pipeline_draws_the_same_each_time(ours, expected):
    """Also after other parameters had their turn, whose pictures are others."""
    sampler, params = ours
    assert_same(sampler.draw(params), expected)
    others = sampler.draw({**params, "lm_head": jax.tree.map(lambda leaf: -leaf, params["lm_head"])})
    assert all(
        not np.array_equal(one.images[0], result.images[0]) for one, result in zip(others, expected, strict=True)
    )
    again = sampler.draw(params)
    assert_same(again, expected)
    assert mean_score(again) == pytest.approx(np.mean([one.scores for one in expected]), rel=1e-5)


def test_nothing_is_held_between(ours):
    sampler, params = ours
    sampler.draw(params)
    assert sampler._pipe.engine.model is None and sampler._pipe.model is None


def test_without_clip_pictures_are_in_the_order_of_their_keys(golden_bundle, expected):
    drawing, params = sampler(golden_bundle, config(golden_bundle, clip=None))
    samples = drawing.draw(params)
    assert [(one.scores, one.candidates) for one in samples] == [(None, [0, 1])] * 2
    assert mean_score(samples) is None
    for sample, result in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample.images[result.indices[0]], result.images[0])


def test_no_prompts_draw_nothing(golden_bundle):
    drawing, params = sampler(golden_bundle, config(golden_bundle, prompts=(), vqgan=None))
    assert drawing.draw(params) == []


def test_the_datas_own_vqgan(golden_bundle):
    own = config(golden_bundle, clip=None, vqgan=None)
    vqgan = golden_bundle / "vqgan"
    sampler(golden_bundle, own, vqgan=str(vqgan), trained_on=fingerprint(VQGAN.from_pretrained(vqgan)))
    with pytest.raises(UserError, match=r"not the VQGAN whose tokens this run is trained on \(0123\)"):
        sampler(golden_bundle, own, vqgan=str(vqgan), trained_on="0123")
    with pytest.raises(UserError, match=r"^samples.vqgan: name the VQGAN"):
        sampler(golden_bundle, own)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ("a snail", " ")}, "prompt 2 is blank"),
        ({"candidates": 0}, "candidates is 0"),
        ({"vqgan": "NOWHERE"}, "NOWHERE"),
        ({"clip": "NOWHERE"}, "NOWHERE"),
    ],
)
def test_mistakes_show_at_the_start(golden_bundle, changed, message):
    with pytest.raises(UserError, match=message):
        sampler(golden_bundle, config(golden_bundle, **changed))


def test_a_vqgan_of_other_pictures(golden_bundle, tmp_path):
    fields = json.loads((golden_bundle / "vqgan" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"resolution": 2 * fields["resolution"]}))
    with pytest.raises(UserError, match="does not fit this run's model: its images are"):
        sampler(golden_bundle, config(golden_bundle, vqgan=str(tmp_path)))


def test_trouble_while_drawing_ends_no_run(ours, caplog):
    drawing, params = ours
    broken = {**params, "lm_head": jax.tree.map(lambda leaf: leaf * float("nan"), params["lm_head"])}
    assert drawing.draw(broken) == []
    assert "no images this time: the decoder's logits are not numbers" in caplog.text


def test_parameters_that_are_sharded_and_padded(ours, expected):
    sampler, params = ours
    assert_same(sampler.draw(split(params, jax.devices(), 4)), expected)


@pytest.mark.slow
def test_two_processes_that_hold_a_model_together(golden_bundle, tmp_path, expected):
    """Its parameters are split over both, and padded. The first draws what one process would."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = children.environment(devices=2)
    command = [sys.executable, str(Path(draw_samples.__file__)), str(golden_bundle), str(tmp_path / "00000001")]
    processes = [
        subprocess.Popen([*command, str(process), address], env=environment, stderr=subprocess.PIPE, text=True)
        for process in range(2)
    ]
    errors = [child.communicate(timeout=300)[1] for child in processes]
    assert [child.returncode for child in processes] == [0, 0], errors
    report = read_samples(tmp_path / "00000001")
    assert [row["prompt"] for row in report["prompts"]] == list(PROMPTS)
    for row, result in zip(report["prompts"], expected, strict=True):
        assert [picture["candidate"] for picture in row["pictures"]] == result.indices
        np.testing.assert_allclose([picture["score"] for picture in row["pictures"]], result.scores, rtol=1e-5)
