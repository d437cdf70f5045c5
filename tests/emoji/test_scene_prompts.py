import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dalle_mini.emoji.art import Emoji, everyday_candidates, is_held_out
from dalle_mini.emoji.judge import held_out_prompts
from dalle_mini.emoji.layout import Box
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scene_judge import Found, SceneJudge, SceneJudgement
from dalle_mini.emoji.scene_prompts import (
    ScenePrompt,
    SceneScores,
    held_out_scenes,
    is_right,
    right_image,
    scene_caption,
    score_scenes,
    single_caption,
)
from dalle_mini.emoji.scenes import Background, Scene, Thing, draw
from dalle_mini.emoji.splits import is_pair_held_out
from dalle_mini.emoji.tidy import TidyScenes
from dalle_mini.emoji.vocabulary import scene_candidates
from dalle_mini.errors import UserError

SNAIL, APPLE, CAT = Emoji("🐌", "snail"), Emoji("🍎", "red apple"), Emoji("🐈", "cat")
EMOJI = everyday_candidates()[:90]
PROMPTS = held_out_scenes(18, EMOJI, seed=2)
ASKED = [(prompt.first, prompt.second) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def judge():
    return SceneJudge(64, emoji=[*EMOJI, APPLE])


@pytest.fixture(scope="module")
def pictures():
    return np.stack([right_image(prompt, 64) for prompt in PROMPTS])


def damaged(images):
    """As soft as a small VQGAN makes them, and with noise."""
    half = [Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in images]
    soft = np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in half])
    noise = np.random.default_rng(0).normal(0, 20, soft.shape)
    return np.clip(soft + noise, 0, 255).astype(np.uint8)


def test_single_emoji_are_asked_for_by_the_words_of_the_training_captions():
    assert single_caption(Emoji("🍎", "red apple"), "blue") == "a red apple on a blue background"
    assert single_caption(Emoji("🔒", "locked"), "orange") == "a padlock on an orange background"
    asked = held_out_prompts(20, scene_candidates()[400:], caption=single_caption)
    assert all(prompt.caption == single_caption(prompt.emoji, prompt.color) for prompt in asked)
    source = TidyScenes(length=30_000, emoji=scene_candidates()[400:600])
    told = {source.caption(index) for index in range(30_000)}
    shown = [single_caption(one, "white") for one in source.emoji]
    assert sum(caption in told for caption in shown) > 100


def test_exact_pictures_are_right_in_all_relations_on_all_backgrounds(judge, pictures):
    seen = judge(pictures, ASKED)
    assert all(one.both_present for one in seen)
    assert [one.background.name for one in seen] == [prompt.color or "white" for prompt in PROMPTS]
    wrong = [prompt for prompt, one in zip(PROMPTS, seen, strict=True) if not is_right(one, prompt)]
    # A thin emoji may stand in front of another without hiding a pixel of it: only that is not to be seen.
    assert {prompt.relation for prompt in wrong} <= {"in front of", "behind"} and len(wrong) <= 1


def test_soft_and_noisy_pictures_are_right_too(judge, pictures):
    seen = judge(damaged(pictures), ASKED)
    assert np.mean([one.both_present for one in seen]) >= 0.9
    assert np.mean([is_right(one, prompt) for one, prompt in zip(seen, PROMPTS, strict=True)]) >= 0.85


@pytest.mark.parametrize("damage", [lambda images: images, damaged], ids=["exact", "damaged"])
def test_pictures_of_other_emoji_do_not_pass(judge, pictures, damage):
    shown = damage(pictures)
    others = [*ASKED[1:], ASKED[0]]
    assert not any(one.both_present for one in judge(shown, others))
    one_wrong = [(first, second) for (first, _), (_, second) in zip(ASKED, others, strict=True)]
    seen = judge(shown, one_wrong)
    assert not any(one.both_present for one in seen)
    assert np.mean([one.first.present for one in seen]) >= 0.9  # and the right one is still seen


def test_an_emoji_alone_or_twice_is_no_pair(judge):
    white = Background(("white",))
    left, right = Box(0, 4, 7), Box(8, 4, 7)
    alone = draw(Scene("", (Thing(SNAIL, left),), white, "two"), 64)
    twice = draw(Scene("", (Thing(SNAIL, left), Thing(SNAIL, right)), white, "two"), 64)
    empty = np.full((64, 64, 3), 255, np.uint8)
    for image, snail in ((alone, True), (twice, True), (empty, False)):
        for asked in ((SNAIL, APPLE), (APPLE, SNAIL)):
            (seen,) = judge(image[None], [asked])
            present = {one.emoji: one.present for one in (seen.first, seen.second)}
            assert present == {SNAIL: snail, APPLE: False}


def test_places_sizes_and_what_is_in_front_are_found(judge):
    boxes = Box(1, 3, 9), Box(6, 8, 7)
    for behind, front in ((SNAIL, CAT), (CAT, SNAIL)):
        things = Thing(behind, boxes[0]), Thing(front, boxes[1])
        image = draw(Scene("", things, Background(("blue", "pink"), "down"), "two"), 64)
        (seen,) = judge(image[None], [(behind, front)])
        assert [one.box for one in (seen.first, seen.second)] == list(boxes)
        assert [one.names for one in (seen.first, seen.second)] == [(behind.name,), (front.name,)]
        assert min(seen.first.explained, seen.second.explained) > 0.99
        assert seen.first_in_front is False and seen.background == Background(("blue", "pink"), "down")
        assert seen.is_related("behind") and not seen.is_related("in front of") and not seen.is_related("left of")


def test_pictures_of_128_pixels_are_judged_as_those_of_64():
    few = sorted({one for pair in ASKED[:9] for one in pair}, key=lambda one: one.name)
    shown = np.stack([right_image(prompt, 128) for prompt in PROMPTS[:9]])
    seen = SceneJudge(128, emoji=few)(shown, ASKED[:9])
    assert all(one.both_present for one in seen)


def test_pictures_of_another_size_are_refused(judge):
    with pytest.raises(ValueError, match=r"64, 64.*32, 32"):
        judge(np.zeros((1, 32, 32, 3), np.uint8), [(SNAIL, CAT)])
    with pytest.raises(ValueError, match="2 images"):
        judge(np.zeros((2, 64, 64, 3), np.uint8), [(SNAIL, CAT)])
    with pytest.raises(ValueError, match="moose"):
        judge(np.zeros((1, 64, 64, 3), np.uint8), [(SNAIL, Emoji("🫎", "moose"))])


def seen(first: Box, second: Box, in_front: bool | None = None, present: bool = True) -> SceneJudgement:
    names = ("snail",) if present else ("shell",)
    return SceneJudgement(Found(SNAIL, first, names), Found(CAT, second, ("cat",)), in_front, Background(("white",)))


@pytest.mark.parametrize(
    ("first", "second", "in_front", "holds"),
    [
        (Box(0, 5, 7), Box(8, 4, 7), None, {"left of", "next to"}),
        (Box(9, 5, 7), Box(1, 6, 7), None, {"right of", "next to"}),
        (Box(4, 0, 7), Box(5, 8, 7), None, {"above"}),
        (Box(4, 0, 7), Box(5, 6, 7), True, {"above", "on top of"}),
        (Box(4, 0, 7), Box(5, 6, 7), False, {"above", "on top of"}),
        (Box(4, 9, 7), Box(5, 1, 7), None, {"below", "under"}),
        (Box(4, 8, 7), Box(5, 1, 7), None, {"below", "under"}),
        (Box(5, 6, 7), Box(2, 3, 7), True, {"in front of"}),
        (Box(5, 6, 7), Box(2, 3, 7), False, {"behind"}),
        (Box(5, 6, 7), Box(2, 3, 7), None, set()),
    ],
)
def test_relations_of_boxes(first, second, in_front, holds):
    judged = seen(first, second, in_front)
    assert {name for name in RELATIONS if judged.is_related(name)} == holds


def test_prompts_are_held_out_pairs_in_all_relations():
    emoji = everyday_candidates()
    prompts = held_out_scenes(90, emoji, seed=3)
    assert all(is_pair_held_out(prompt.first, prompt.second) for prompt in prompts)
    assert len({frozenset((prompt.first, prompt.second)) for prompt in prompts}) == 90
    assert Counter(prompt.relation for prompt in prompts) == dict.fromkeys(RELATIONS, 10)
    assert max(Counter(itertools.chain(*((p.first, p.second) for p in prompts))).values()) == 1
    colored = [prompt for prompt in prompts if prompt.color]
    assert len(colored) == 45
    assert not any(is_held_out(one, prompt.color) for prompt in colored for one in (prompt.first, prompt.second))
    assert prompts == held_out_scenes(90, emoji, seed=3) != held_out_scenes(90, emoji, seed=4)
    pairs = sum(is_pair_held_out(a, b) for a, b in itertools.combinations(emoji[:40], 2))
    assert len(held_out_scenes(pairs, emoji[:40])) == pairs
    with pytest.raises(UserError, match=f"1 to {pairs}"):
        held_out_scenes(pairs + 1, emoji[:40])


def test_captions():
    assert scene_caption(SNAIL, "left of", APPLE) == "a snail to the left of a red apple"
    wanted = "grapes on top of a cat on an orange background"
    assert scene_caption(Emoji("🍇", "grapes"), "on top of", CAT, "orange") == wanted


def test_what_fits_best_must_also_fit_well():
    box = Box(0, 4, 7)
    assert Found(SNAIL, box, ("snail",), 0.7).present
    assert not Found(SNAIL, box, ("snail",), 0.2).present
    assert not Found(SNAIL, box, ("shell",), 0.9).present


def test_scores():
    left, right = Box(0, 4, 7), Box(8, 4, 7)
    good, turned, missing = seen(left, right), seen(right, left), seen(left, right, present=False)
    prompts = [ScenePrompt(SNAIL, "left of", CAT, None, ""), ScenePrompt(SNAIL, "next to", CAT, None, "")]
    judged = [[turned, good, missing, missing], [good, turned, missing, good]]
    assert score_scenes(prompts, judged) == SceneScores(1.0, 0.5, 5 / 8, 4 / 8, 1.0, 1.0)
    # The place of an emoji that is not there is worth nothing.
    assert missing.is_related("left of") and not is_right(missing, prompts[0])
