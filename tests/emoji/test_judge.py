import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini import DalleMini
from dalle_mini.emoji.art import (
    MEDIUM,
    MEDIUM_AT_POSITION,
    PALETTE,
    Emoji,
    everyday_candidates,
    everyday_emoji,
    find_font,
    is_held_out,
    render,
)
from dalle_mini.emoji.judge import (
    EmojiJudge,
    EmojiPrompt,
    EmojiScores,
    Judgement,
    Mistake,
    held_out_prompts,
    mistakes,
    pick_gain,
    plain_caption,
    score,
)
from dalle_mini.emoji.scene_prompts import held_out_scenes, is_right, right_image
from dalle_mini.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SNAIL, APPLE = Emoji("🐌", "snail"), Emoji("🍎", "red apple")


@pytest.fixture(scope="module")
def quality():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        return importlib.import_module("emoji_quality")


@pytest.fixture(scope="module")
def judge():
    return EmojiJudge(emoji=everyday_emoji()[:80], scales=(MEDIUM_AT_POSITION, MEDIUM))


def half_resolution(image: np.ndarray) -> np.ndarray:
    size = image.shape[0]
    small = Image.fromarray(image).resize((size // 2, size // 2), Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("degrade", [lambda image: image, half_resolution], ids=["clean", "half-resolution"])
def test_judge_finds_emoji_color_size_and_place(judge, degrade):
    colors = list(PALETTE)
    drawn = [
        (one, colors[i % 12], (10, 12)[i % 2], (3 - i % 2 + i // 2 % 3 - 1, 3 - i % 2 + i // 6 % 3 - 1))
        for i, one in enumerate(everyday_emoji()[:80])
    ]
    images = np.stack([degrade(render(one, color, 64, scale, place)) for one, color, scale, place in drawn])
    expected = [((one.name,), color, scale, place) for one, color, scale, place in drawn]
    assert [(one.names, one.color, one.scale, one.position) for one in judge(images)] == expected


def test_distance_is_the_mean_squared_difference_of_the_pixels(judge):
    image = half_resolution(render(SNAIL, "brown", 64, 10, (4, 2)))
    apple = EmojiJudge(emoji=[APPLE], scales=[10], reach=0)(image[None], ["pink"])[0]
    expected = np.mean((image / 255 - render(APPLE, "pink", 64, 10, (3, 3)) / 255) ** 2)
    assert (apple.name, apple.color, apple.scale, apple.position) == ("red apple", "pink", 10, (3, 3))
    assert apple.distance == pytest.approx(expected, rel=5e-3)  # a render rounds to whole steps of colour
    assert judge(image[None], ["brown"])[0].distance < expected


def test_emoji_that_are_drawn_alike_are_one():
    norway, island = Emoji("🇳🇴", "flag of norway"), Emoji("🇧🇻", "flag of bouvet island")
    seen = EmojiJudge(emoji=[SNAIL, norway, island])(render(island, "green")[None])[0]
    assert seen.names == ("flag of norway", "flag of bouvet island")
    assert seen.is_emoji(EmojiPrompt(island, "green", ""))
    assert not seen.is_emoji(EmojiPrompt(SNAIL, "green", ""))


@pytest.mark.parametrize("size", [16, 32, 96])
def test_pictures_of_any_multiple_of_16(size):
    emoji = everyday_emoji()[:10]
    seen = EmojiJudge(size, emoji)(np.stack([render(one, "blue", size) for one in emoji]))
    assert [(one.name, one.color) for one in seen] == [(one.name, "blue") for one in emoji]


def test_background_is_the_commonest_of_the_border(judge):
    image = np.full((64, 64, 3), PALETTE["orange"], np.uint8)
    image[20:44, 20:44] = PALETTE["black"]
    image[:20] = PALETTE["green"]
    assert judge.backgrounds(image[None]) == ["orange"]


def test_pictures_of_another_size_are_refused(judge):
    with pytest.raises(ValueError, match=r"64, 64.*32, 32"):
        judge(np.zeros((1, 32, 32, 3), np.uint8))


def test_prompts_are_held_out_pairs_without_repetition():
    emoji = everyday_candidates()
    prompts = held_out_prompts(100, emoji, seed=3)
    assert len({prompt.emoji for prompt in prompts}) == 100
    assert all(is_held_out(prompt.emoji, prompt.color) for prompt in prompts)
    assert prompts == held_out_prompts(100, emoji, seed=3)
    assert prompts != held_out_prompts(100, emoji, seed=4)
    pairs = [(one, color) for one in emoji for color in PALETTE if is_held_out(one, color)]
    everything = held_out_prompts(len(pairs), emoji)
    assert {(prompt.emoji, prompt.color) for prompt in everything} == set(pairs)
    with pytest.raises(UserError, match=f"1 to {len(pairs)}"):
        held_out_prompts(len(pairs) + 1, emoji)


def test_captions():
    assert plain_caption(SNAIL, "yellow") == "a snail on a yellow background"
    assert plain_caption(Emoji("🍇", "grapes"), "orange") == "grapes on an orange background"


def seen(name: str, color: str) -> Judgement:
    return Judgement((name,), color, 0.0, 12, (2, 2))


PROMPTS = [EmojiPrompt(SNAIL, "yellow", "a snail"), EmojiPrompt(APPLE, "blue", "an apple")]
JUDGED = [
    [seen("snail", "yellow"), seen("shell", "yellow"), seen("shell", "red"), seen("snail", "yellow")],
    [seen("tomato", "blue"), seen("tomato", "blue"), seen("red apple", "blue"), seen("cherries", "blue")],
]


def test_scores():
    assert score(PROMPTS, JUDGED) == EmojiScores(0.5, 1.0, 3 / 8, 7 / 8, 1.0, 1.0)


def test_the_gain_of_the_pick_is_paired_within_each_prompt():
    easy, hard, mixed = [True] * 4, [False] * 4, [True, True, False, False]
    gain, error = pick_gain([easy, hard])  # the prompts differ, the pick gains nothing in either
    assert (gain, error) == (0, 0)
    gain, error = pick_gain([easy, mixed, mixed, hard])
    assert gain == pytest.approx(1 / 4)
    assert error == pytest.approx(np.std([0, 0.5, 0.5, 0], ddof=1) / 2)
    assert pick_gain([mixed]) == (0.5, None)


def test_mistakes():
    assert mistakes(PROMPTS, JUDGED) == [
        Mistake("an apple", "tomato", 2, True),
        Mistake("a snail", "shell", 2, False),
        Mistake("an apple", "cherries", 1, False),
    ]
    assert mistakes(PROMPTS, JUDGED, background=True) == [Mistake("a snail", "red", 1, False)]


@pytest.mark.slow
def test_benchmark_end_to_end(quality, golden_bundle, tmp_path, capsys, monkeypatch):
    few = everyday_emoji()[:40]
    monkeypatch.setattr("dalle_mini.emoji.judge.all_emoji", lambda font=None: few)
    monkeypatch.setattr("dalle_mini.emoji.scene_judge.all_emoji", lambda font=None: everyday_emoji())
    options = ["--prompts", "3", "--candidates", "2", "--reconstructions", "5", "--output", str(tmp_path / "out")]
    options += ["--scene-prompts", "4"]
    assert quality.main(["--model", str(golden_bundle), *options, "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out.splitlines()[-1])
    shares = ("single_accuracy", "background_accuracy", "random_single_accuracy", "random_background_accuracy")
    assert all(0 <= figures[name] <= 1 for name in (*shares, "codebook_use"))
    assert figures["vqgan_psnr"] > 0 and figures["prompts"] == 3 and figures["candidates"] == 2
    assert figures["models"]["dalle"]["sha256"]
    assert figures["pick_gain"] == pytest.approx(figures["single_accuracy"] - figures["random_single_accuracy"])
    assert figures["pick_gain_error"] >= 0
    assert "the pick minus a random candidate" in out
    for kind, what in itertools.product(("", "random_", "any_"), ("pair", "relation")):
        assert 0 <= figures[f"{kind}{what}_accuracy"] <= 1
    assert figures["relation_accuracy"] <= figures["pair_accuracy"] and figures["scene_prompts"] == 4
    assert 0 <= figures["reconstructed_relation_accuracy"] <= figures["reconstructed_pair_accuracy"] <= 1
    assert "never seen together" in out and "[4/4]" in err
    assert "wrong emoji" in out and "[3/3]" in err
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 300
    written = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [len(row["judged"]) for row in written["details"]] == [2, 2, 2]
    assert [len(row["judged"]) for row in written["scenes"]] == [2, 2, 2, 2]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["contact_sheet.png", "quality.json", "scenes.png"]


@pytest.mark.slow
def test_benchmark_with_a_baseline_and_without_scenes(quality, golden_bundle, tmp_path, capsys, monkeypatch):
    for module in ("judge", "scene_judge"):
        monkeypatch.setattr(f"dalle_mini.emoji.{module}.all_emoji", lambda font=None: everyday_emoji())

    def figures(*options: str) -> dict:
        common = ["--prompts", "2", "--candidates", "2", "--reconstructions", "1", "--output", str(tmp_path), "--json"]
        assert quality.main(["--model", str(golden_bundle), *common, *options]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    plain = figures("--scene-prompts", "0")
    assert "single_accuracy" in plain and "pair_accuracy" not in plain and not (tmp_path / "scenes.png").exists()
    both = figures("--scene-prompts", "2", "--baseline", str(golden_bundle))
    assert both["baseline"]["models"]["dalle"] == both["models"]["dalle"]
    # The baseline is the same model here, asked for the same.
    for kind, what in itertools.product(("", "random_", "any_"), ("single", "background", "pair", "relation")):
        assert both[f"baseline_{kind}{what}_accuracy"] == both[f"{kind}{what}_accuracy"]
    assert both["single_accuracy"] == plain["single_accuracy"]


def test_emoji_list_of_a_bundle(quality, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "all_emoji", lambda font: [APPLE, Emoji("🇳🇴", "flag of norway"), SNAIL])
    dalle = tmp_path / "dalle"
    dalle.mkdir()
    assert quality.known_emoji(dalle, find_font()) == everyday_emoji()
    listed = tmp_path / "emoji.json"
    listed.write_text(json.dumps(["snail", "flag of norway"]))
    assert [one.name for one in quality.known_emoji(dalle, find_font())] == ["snail", "flag of norway"]
    for text, message in (('["snial"]', "snial"), ("{}", "list of emoji names"), ("[", "not JSON")):
        listed.write_text(text)
        with pytest.raises(UserError, match=rf"emoji\.json.*{message}"):
            quality.known_emoji(dalle, find_font())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--font", "nowhere.ttf"], "fonts-noto-color-emoji"),
        (["--prompts", "many"], "not a whole number"),
        (["--candidates", "0"], "candidates"),
        (["--scene-prompts", "-1"], "scene prompts"),
        (["--reconstructions", "0"], "reconstructions"),
        (["--font", str(BENCHMARKS / "emoji_quality.py"), "--model", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_of_the_user_are_one_line(quality, options, message, tmp_path, capsys):
    assert quality.main([*options, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_bundle_says_which_scenes_it_was_trained_on(quality, golden_bundle, tmp_path, monkeypatch):
    for module in ("judge", "scene_judge"):
        monkeypatch.setattr(f"dalle_mini.emoji.{module}.all_emoji", lambda font=None: everyday_emoji()[:20])
    pipe = DalleMini.from_pretrained(golden_bundle)
    dalle = tmp_path / "dalle"
    dalle.mkdir()
    pipe.folders["dalle"] = dalle
    assert not quality.is_tidy(dalle)
    free = quality.draw_judges(pipe, find_font(), scenes=True)
    (tmp_path / "scenes.json").write_text('{"tidy": true}')
    assert quality.is_tidy(dalle)
    tidy = quality.draw_judges(pipe, find_font(), scenes=True)
    # Its pictures, and nothing in the other one's sizes, are told by the judges that go with it.
    size, few = pipe.vqgan.config.resolution, everyday_emoji()[:8]
    shown = np.stack([render(one, "blue", size, 8) for one in few])
    assert [one.name for one in tidy.single(shown)] == [one.name for one in few]
    assert {one.scale for one in tidy.single(shown)} == {8} and {one.scale for one in free.single(shown)} == {12}
    prompts = held_out_scenes(3, everyday_emoji()[:20])
    pictures = np.stack([right_image(prompt, size, tidy=True) for prompt in prompts])
    found = tidy.pairs(pictures, [(prompt.first, prompt.second) for prompt in prompts])
    assert all(is_right(one, prompt) for one, prompt in zip(found, prompts, strict=True))
    (tmp_path / "scenes.json").write_text("[]")
    with pytest.raises(UserError, match=r"scenes\.json"):
        quality.is_tidy(dalle)
