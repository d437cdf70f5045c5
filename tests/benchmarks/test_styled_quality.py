"""benchmarks/styled_quality.py and what it is made of."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dalle_mini.emoji.layout import Box
from dalle_mini.emoji.scenes import SINGLE, Background, Scene, Thing
from dalle_mini.emoji.styled import draw_styled
from dalle_mini.emoji.styled_judge import StyledJudge
from dalle_mini.emoji.styled_prompts import GROUND, STYLE, UNKNOWN, StyledPrompt
from dalle_mini.emoji.styles import SHIPPED_STYLES, open_style
from dalle_mini.emoji.things import things
from dalle_mini.errors import UserError
from dalle_mini.settings import GenerationSettings
from dalle_mini.weights.bundle import SHIPPED
from dalle_mini.weights.editions import EDITIONS

TESTS = Path(__file__).parents[1]
ART = TESTS / "golden" / "art"
STYLES = {name: open_style(name, ART) for name in SHIPPED_STYLES}
EMOJI = [one for one in things() if one.characters in STYLES["noto"]]
FOX = next(one for one in EMOJI if one.name == "fox")


def module(name):
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(TESTS.parent / "benchmarks")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def benchmark():
    return module("styled_quality")


@pytest.fixture(scope="module")
def stages():
    return module("styled_stages")


@pytest.fixture(scope="module")
def judge():
    return StyledJudge(STYLES, emoji=[one.characters for one in EMOJI])


def test_the_benchmark_tells_how_good_the_judge_is(benchmark, capsys):
    assert benchmark.main(["--judge", "8", "--art", str(ART), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    exact = figures["exact"]
    assert figures["scenes"] == 8 and exact["thing_and_style"] > 0.9 and exact["false_specks"] == 0


def test_the_benchmark_counts_picks_and_others(stages):
    right, wrong = (dict.fromkeys(("things", "style", "clean"), value) for value in (True, False))
    rows = [{"parts": [right, wrong]}, {"parts": [right, right]}, {"parts": [wrong, right]}, {"parts": [wrong, wrong]}]
    found = stages.scores(rows)
    assert found["prompts"] == 4 and found["things_and_style"] == 0.5
    assert found["things"]["pick"] == 0.5 and found["things"]["random"] == 0.5 and found["things"]["any"] == 0.75
    rows = [{"parts": [{"things": True, "clean": True}]}, {"parts": [dict.fromkeys(("things", "style"), True)]}]
    assert "style" not in stages.scores(rows[:1]) and stages.scores(rows)["style"]["pick"] == 1.0
    assert found["style"]["gain"] == 0.0 and found["style"]["gain_error"] > 0
    low, high = found["things"]["gain_interval"]
    assert low == -high < 0 and found["things"]["prompts"] == 4
    alone = stages.scores([{"parts": row["parts"][:1]} for row in rows])
    assert alone["things"] == {"prompts": 2, "pick": 1.0}  # no random candidate was judged


def test_the_benchmark_goes_on_with_the_same_alone(benchmark, tmp_path):
    path, about = tmp_path / "partial.json", {"asked": {"seed": 1}}
    first = {"copies": lambda: 1, "clip": lambda: 2}
    assert benchmark.Before(path, about).measure(first, ["copies"]) == {"copies": 1}
    other = {"copies": lambda: 3, "clip": lambda: 4}
    again = benchmark.Before(path, about)
    assert again.measure(other, ["copies", "clip"]) == {"copies": 1, "clip": 4}
    assert again.measure(other, ["clip"], "baseline ") == {"clip": 4}
    assert benchmark.Before(path, {"asked": {"seed": 2}}).figures == {}
    path.write_text("{")
    assert benchmark.Before(path, about).figures == {}
    again.forget()
    assert not path.exists()


def test_the_benchmark_knows_a_bundle_by_its_lists(stages, benchmark, capsys, tmp_path):
    assert benchmark.main(["--model", "shipped", "--art", str(ART), "--prompts", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    emoji, styles, says_styles = stages.known_world(SHIPPED)
    assert len(emoji) == 704 and styles == ["noto"] and not says_styles
    (tmp_path / "emoji.json").write_text('["fox"]')
    (tmp_path / "scenes.json").write_text('{"styles": ["noto", "3d"]}')
    assert stages.known_world(tmp_path) == ([FOX], ["noto", "3d"], True)
    (tmp_path / "emoji.json").write_text('["no such thing"]')
    with pytest.raises(UserError, match="not a model of emoji"):
        stages.known_world(tmp_path)


class FakePipe:
    """Draws the right render of each caption's thing on white, at 256 pixels."""

    vqgan = None

    def generate_each(self, captions, settings):
        for caption in captions:
            emoji = next(one for one in EMOJI if one.name in caption)
            scene = Scene("", (Thing(emoji, Box(4, 4, 8), None, "noto"),), Background(("white",)), SINGLE)
            yield SimpleNamespace(images=[Image.fromarray(draw_styled(scene, 256, STYLES))] * settings.candidates)


@pytest.fixture
def one_style(stages, judge):
    bundle = stages.Bundle(FakePipe(), EMOJI, ["noto"], False, ART)
    bundle.__dict__.update(art=STYLES, judge=judge)  # as if they had been asked for
    return bundle


def test_the_benchmark_measures_single_things(stages, one_style, monkeypatch):
    monkeypatch.setattr("dalle_mini.evaluation.reconstruction.ssim", lambda images, made: 0.5)  # takes long to compile
    settings = GenerationSettings(candidates=2, keep=2)
    prompt = StyledPrompt("a fox", UNKNOWN, (FOX,))
    found = stages.draw_and_judge(one_style, [prompt], settings, 2)
    assert found["things"]["pick"] == 1 and found["median_psnr"] > 40 and found["median_ssim"] == 0.5
    cat = next(one for one in EMOJI if one.name == "cat")
    wrong = stages.draw_and_judge(one_style, [StyledPrompt("a fox", UNKNOWN, (cat,))], settings, 1)
    assert wrong["things"]["pick"] == 0 and wrong["median_psnr"] < 25


def test_the_benchmark_asks_a_model_without_styles_for_none(stages, one_style, tmp_path):
    styled = dataclasses.replace(one_style, styles=SHIPPED_STYLES, says_styles=True)
    asked = stages.Stages(styled, tmp_path, GenerationSettings(candidates=1, keep=1), 1, 4, 4, 2)
    assert asked.held_out(STYLE, one_style) == []
    captions = {kind: [one.caption for one in asked.held_out(kind, one_style)] for kind in (GROUND, UNKNOWN)}
    assert len(captions[GROUND]) > 1 and not any("3d" in one or "flat" in one for one in captions[GROUND])
    few = dataclasses.replace(one_style, emoji=[FOX])
    assert {one.things for one in asked.held_out(UNKNOWN, few)} <= {(FOX,)}
    assert set(asked.of(one_style)) >= {GROUND, "copies", "printed", "open"} and "clip" not in asked.of(one_style)


def test_the_benchmark_tells_which_printed_prompts_fail(stages, one_style, tmp_path, monkeypatch, capsys):
    places = {"a fox": ["README.md:1"], "a cat and a fox": ["docs/a.md:2"], "a zzz": ["docs/a.md:3"]}
    monkeypatch.setattr(stages, "printed_places", lambda: places)
    asked = stages.Stages(one_style, tmp_path, GenerationSettings(candidates=1, keep=1), 1, 1, 1, 1)
    found = asked.printed(one_style, "printed")
    assert found["prompts"] == 2 and found["not_known"] == 1
    assert [(one["prompt"], one["in"]) for one in found["failed"]] == [("a cat and a fox", ["docs/a.md:2"])]
    assert "FAILED: a cat and a fox: seen " in capsys.readouterr().err
    assert (tmp_path / "printed.png").stat().st_size > 1000


def test_the_ceiling_is_of_prompts_that_have_a_right_scene(stages, one_style, monkeypatch):
    monkeypatch.setattr(stages, "copies", lambda vqgan, images: images)
    read = stages.CaptionReader(stages.Lexicon({}, EMOJI))
    texts = ("three foxes", "a fox", "a fox and a cat", "a fox, a cat and a bee", "two foxes and a cat", "a zzz")
    prompts = [read(text) for text in texts]
    assert stages.ceiling(one_style, prompts[:5]) == {"prompts": 4, "things": 1.0, "clean": 1.0}
    assert stages.ceiling(one_style, prompts[4:]) == {"prompts": 0}
    styled = StyledPrompt("a flat fox", STYLE, (FOX,), "flat")
    bundle = dataclasses.replace(one_style, styles=["noto", "flat"])
    bundle.__dict__.update(art=STYLES, judge=one_style.judge)
    assert stages.ceiling(bundle, [styled]) == {"prompts": 1, "things": 1.0, "style": 1.0, "clean": 1.0}


@pytest.fixture
def of_styles(one_style):
    bundle = dataclasses.replace(one_style, styles=SHIPPED_STYLES, says_styles=True)
    bundle.__dict__.update(art=STYLES, judge=one_style.judge)
    return bundle


def test_captions_of_styled_pairs_are_exchanged(of_styles, judge):
    pictures = module("caption_order").styled_pictures(of_styles, 9, 1)
    assert len(pictures) > 2 and pictures[0].image.shape == (256, 256, 3)
    for one in pictures:
        assert one.caption != one.exchanged and sorted(one.caption.split()) == sorted(one.exchanged.split())
        assert all(found.drawings for found in judge(one.image[None])[0].seen)


@pytest.mark.parametrize("world", ["one_style", "of_styles"])
def test_smaller_types_are_judged_in_any_edition(stages, world, request):
    bundle = request.getfixturevalue(world)
    asked = [one for one in stages.held_out(GROUND, 4, bundle) if one.ground]
    assert bool([one for one in asked if one.style]) == bundle.says_styles
    scenes = [stages.right_scene(one, bundle.styles) for one in asked]
    images = [Image.fromarray(draw_styled(scene, 256, STYLES)) for scene in scenes]

    class Drawn:
        def generate(self, captions, candidates, keep):
            return [SimpleNamespace(scores=[2.0, 1.0], images=[image, image]) for image in images]

    assert module("dtype_error").pictures(Drawn(), asked, 2, bundle.judge) == "1.50 | 2.00 | 100% | 100%"


def test_another_model_has_its_editions_name(benchmark):
    models = {part: {"sha256": digest} for part, digest in EDITIONS[1].sha256.items()}
    assert benchmark.name_of(models) == "the second edition"
    assert benchmark.name_of(models | {"clip": {"sha256": "0"}}) == "the other model"


def test_a_vqgan_of_smaller_images_copies_in_its_own_size(stages):
    class Perfect:
        """Gives back what it is given, 128 pixels wide."""

        resolution = 128

    given = []

    def reconstruct(vqgan, images):
        given.append(images.shape)
        return images.astype(np.float32) / 255, np.arange(5)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dalle_mini.evaluation.reconstruction.reconstruct", reconstruct)
        patched.setattr("dalle_mini.evaluation.reconstruction.ssim", lambda images, made: 1.0)  # takes long to compile
        patched.setattr(stages, "COPIES", 3)
        found = stages.measure_copies(Perfect(), EMOJI, ["noto"], ART)
        assert given == [(3, 128, 128, 3)] and 40 < found["noto"]["psnr"] < 70  # less than exact: 100
        Perfect.resolution = 256
        assert stages.measure_copies(Perfect(), EMOJI, ["noto"], ART)["noto"]["psnr"] > 90
