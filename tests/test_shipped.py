"""The model that ships with the package."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.emoji.art import all_emoji, find_font
from dalle_mini.emoji.judge import EmojiJudge
from dalle_mini.emoji.scene_judge import SceneJudge
from dalle_mini.emoji.tidy import TINY, WIDTH
from dalle_mini.models.fingerprint import stored_fingerprint
from dalle_mini.pipeline import SHIPPED, DalleMini
from dalle_mini.runtime import cores
from dalle_mini.settings import GenerationSettings
from dalle_mini.weights.bundle import SHIPPED_TOKENS

REPOSITORY = Path(__file__).parent.parent


def test_is_small_complete_and_described():
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size <= 40e6
    names = json.loads((SHIPPED / "emoji.json").read_text())
    assert len(set(names)) == len(names) >= 600
    lines = (SHIPPED / "README.md").read_text("utf-8").splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    expected = ["Networks", "Data", "Licence", "Recipe and training time", "Scores", "Limits", "This edition"]
    assert headings == expected


def test_its_tokens_are_known_by_their_fingerprint():
    assert stored_fingerprint(SHIPPED / "vqgan") == SHIPPED_TOKENS


@pytest.fixture(scope="module")
def pipe():
    return DalleMini.from_pretrained()


@pytest.fixture(scope="module")
def known():
    """The emoji that the model knows, by name."""
    by_name = {one.name: one for one in all_emoji()}
    return {name: by_name[name] for name in json.loads((SHIPPED / "emoji.json").read_text())}


@pytest.mark.slow
def test_the_background_is_what_is_asked_for(pipe):
    blue, green = pipe.generate(
        ["a lion on a blue background", "a lion on a green background"], candidates=8, keep=1, seed=0
    )
    assert blue.images[0].size == (128, 128)
    corner_blue, corner_green = (np.asarray(r.images[0], np.float32)[:12, :12].mean((0, 1)) for r in (blue, green))
    assert corner_blue.argmax() == 2
    assert corner_green.argmax() == 1


@pytest.mark.slow
def test_the_encoder_writes_the_tokens_that_the_model_learned(pipe):
    """The encoder must take, among codes that look alike, the one that the model draws with, or it sees confetti."""
    (drawn,) = pipe.generate(["a red apple"], candidates=4, keep=1, seed=0)
    white = np.asarray(pipe.vqgan.encode(np.ones((1, 128, 128, 3), np.float32)))
    assert np.bincount(drawn.tokens[0]).argmax() == white[0, 0]
    assert np.all(white == white[0, 0])


@pytest.mark.slow
def test_parallel_decoding_draws_the_same_in_few_passes(pipe):
    prompts = ["a snail on a yellow background", "two cats under a rainbow", "a rocket"]
    both = [
        list(pipe.generate_each(prompts, GenerationSettings(candidates=2, keep=2, decode=decode)))
        for decode in ("sequential", "auto")
    ]
    for sequential, auto in zip(*both, strict=True):
        np.testing.assert_array_equal(sequential.tokens, auto.tokens)
        assert sequential.passes == [256, 256] and sequential.window == 1
        assert max(auto.passes) < 256 / 2 and auto.window > 1


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 9, 32, 256])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "top_k": 6144},
        {"guidance": 10.0, "last_guidance": 1.0, "top_p": 0.9},
        {"temperature": 0.5, "guidance": 3.0, "negative_prompt": "a dog"},
    ],
)
def test_parallel_decoding_draws_the_same_with_any_settings(pipe, options, window):
    prompts = ["a snail on a yellow background", "two cats under a rainbow", "a rocket", "a blue bird"]
    canvas = pipe.canvas(np.full((128, 128, 3), 200, np.uint8), top=0.5, vary=0.5)
    settings = GenerationSettings(candidates=2, keep=2, **options)
    mixed = [settings, dataclasses.replace(settings, temperature=0.7, top_k=9)] * 2
    for start in (None, canvas):
        sequential, parallel = (
            pipe.generate_each(prompts, [dataclasses.replace(one, **how) for one in mixed], start)
            for how in ({"decode": "sequential"}, {"decode": "parallel", "window": window})
        )
        for one, other in zip(sequential, parallel, strict=True):
            assert one.indices == other.indices
            np.testing.assert_array_equal(one.tokens, other.tokens)


def test_draws_what_is_asked_for(pipe, known):
    """Told from every other emoji that the model knows."""
    asked = {"strawberry": "gray", "panda": "pink", "lion": "blue"}
    judge = EmojiJudge(128, list(known.values()), scales=(WIDTH,))
    prompts = [f"a {name} on a {color} background" for name, color in asked.items()]
    for (name, color), result in zip(asked.items(), pipe.generate(prompts, candidates=8, keep=1, seed=0), strict=True):
        (seen,) = judge(np.stack(result.images))
        assert (seen.name, seen.color) == (name, color)


@pytest.mark.slow
def test_draws_two_where_they_are_asked_for(pipe, known):
    """The same two emoji, the other way round: who reads the caption as a bag of words draws one of them wrong."""
    judge = SceneJudge(128, list(known.values()), scales=(TINY, WIDTH))
    snail, rocket = known["snail"], known["rocket"]
    for first, second in ((snail, rocket), (rocket, snail)):
        for relation in ("left of", "above"):
            caption = f"a {first.name} {'to the left of' if relation == 'left of' else relation} a {second.name}"
            (result,) = pipe.generate([caption], candidates=8, keep=1, seed=0)
            (seen,) = judge(np.stack(result.images), [(first, second)])
            assert seen.both_present and seen.is_related(relation), caption


@pytest.mark.slow
def test_a_picture_depends_on_its_own_seed_prompt_and_number_alone(pipe):
    one = pipe.generate(["a red apple"], candidates=1, keep=1, seed=3)[0]
    _, seven = pipe.generate(["a rocket", "a red apple"], candidates=7, keep=7, seed=3)
    np.testing.assert_array_equal(one.tokens[0], seven.tokens[seven.indices.index(0)])


@pytest.mark.slow
def test_cores_draw_what_one_draws(monkeypatch):
    drawn = []
    for count in (1, 2, 3, 8):
        monkeypatch.setattr(cores, "usable_cores", lambda count=count: count)
        on_cores = DalleMini.from_pretrained()
        (result,) = on_cores.generate(["a red apple on a blue background"], candidates=5, keep=5)
        images = np.stack([np.asarray(image) for image in result.images])
        drawn.append((result.tokens.tolist(), images.tolist(), result.indices, result.scores))
    assert drawn[1:] == drawn[:1] * 3


@pytest.mark.slow
def test_quality_benchmark(tmp_path):
    prompts = ["--prompts", "24", "--scene-prompts", "18", "--candidates", "8"]
    command = [sys.executable, "benchmarks/emoji_quality.py", "--json", "--output", str(tmp_path), *prompts]
    command += ["--font", str(find_font())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["vqgan_psnr"] >= 28
    assert figures["codebook_use"] >= 0.8
    assert figures["clip_recall"] >= 0.8
    assert figures["single_accuracy"] >= 0.9
    assert figures["background_accuracy"] >= 0.95
    assert figures["pair_accuracy"] >= 0.7
    assert figures["relation_accuracy"] >= 0.7
    assert (tmp_path / "contact_sheet.png").stat().st_size > 10_000
    assert (tmp_path / "scenes.png").stat().st_size > 10_000
