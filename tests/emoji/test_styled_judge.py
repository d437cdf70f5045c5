from pathlib import Path

import numpy as np
import pytest

from dalle_mini.emoji.art import PALETTE, is_held_out
from dalle_mini.emoji.fidelity import right_render
from dalle_mini.emoji.layout import Box, shared
from dalle_mini.emoji.phrases import UNSEEN
from dalle_mini.emoji.scenes import SINGLE, Background, Scene, Thing
from dalle_mini.emoji.splits import is_pair_held_out, is_style_held_out
from dalle_mini.emoji.styled import StyledScenes, draw_styled
from dalle_mini.emoji.styled_judge import Drawing, Seen, StyledJudge, StyledJudgement
from dalle_mini.emoji.styled_layout import layouts
from dalle_mini.emoji.styled_prompts import (
    GROUND,
    KINDS,
    PAIR,
    STYLE,
    UNKNOWN,
    StyledPrompt,
    held_out_prompts,
    is_related,
    right_scene,
    verdict,
)
from dalle_mini.emoji.styles import SHIPPED_STYLES, open_style
from dalle_mini.emoji.things import things
from dalle_mini.emoji.words import Lexicon, read_annotations
from dalle_mini.errors import UserError

ART = Path(__file__).parent.parent / "golden" / "art"
ANNOTATIONS = read_annotations(ART)
EMOJI = [one for one in things() if one.characters in open_style("noto", ART)]
FOX = next(one for one in EMOJI if one.name == "fox")
STYLES = {name: open_style(name, ART) for name in SHIPPED_STYLES}


@pytest.fixture(scope="module")
def scenes():
    source = StyledScenes(256, 3, 48, folder=ART, words=Lexicon(ANNOTATIONS, EMOJI))
    return [source[index] for index in range(48)]


@pytest.fixture(scope="module")
def judge(scenes):
    painted = [
        (thing.emoji.characters, thing.color) for one in scenes for thing in one.scene.things if thing.color is not None
    ]
    return StyledJudge(folder=ART, emoji=[one.characters for one in EMOJI], painted=painted)


def test_a_layout_of_every_scene_is_known(scenes):
    known = {frozenset(boxes) for boxes in layouts()}
    source = StyledScenes(256, 1, 3000, folder=ART, words=Lexicon(ANNOTATIONS, EMOJI))
    assert all(frozenset(t.box for t in source.scene(index).things) in known for index in range(3000))
    assert all(box.inside() for boxes in layouts() for box in boxes)
    overlapping = [boxes for boxes in layouts() if len(boxes) == 2 and min(shared(*boxes)) > 0]
    assert len(overlapping) == 4
    assert all(back.y < front.y for back, front in overlapping)


def test_what_is_drawn_is_seen(scenes, judge):
    """The things, in their styles and colours, in their places, on their ground, and nothing else."""
    wrong = []
    for example, found in zip(scenes, judge(np.stack([one.image for one in scenes])), strict=True):
        scene = example.scene
        boxes = {one.box: one for one in found.seen}
        same = {*boxes} == {thing.box for thing in scene.things} and found.ground == scene.background
        right = same and all(boxes[t.box].shows(t.emoji, t.style, t.color) for t in scene.things)
        if not right or found.specks:
            wrong.append((scene.caption, found))
        assert found.unexplained < 0.3
    assert len(wrong) <= 1, wrong


def test_bare_ground_shows_nothing(judge):
    (found,) = judge(np.full((1, 256, 256, 3), PALETTE["blue"], np.uint8))
    assert found == StyledJudgement(Background(("blue",)), (), 0.0, 0)


def test_confetti_is_no_thing(judge):
    cells = np.random.default_rng(0).integers(0, 256, (1, 16, 1, 16, 1, 3), np.uint8)
    (found,) = judge(np.broadcast_to(cells, (1, 16, 16, 16, 16, 3)).reshape(1, 256, 256, 3))
    assert not any(one.drawings for one in found.seen)


def test_specks_are_groups_of_pixels_that_touch_nothing(judge):
    scene = right_scene(StyledPrompt("a flat fox", STYLE, (FOX,), "flat"), ["flat"])
    clean = draw_styled(scene, 256, STYLES)
    for side, count in ((3, 0), (4, 1), (9, 1)):
        spotted = clean.copy()
        spotted[20 : 20 + side, 20 : 20 + side] = (200, 30, 30)
        (found,) = judge(spotted[None])
        assert found.specks == count and found.seen[0].shows(FOX, "flat")
    faint = clean.copy()
    faint[20:40, 20:40] -= 30
    touching = clean.copy()
    touching[120:128, 40:128] = (200, 30, 30)
    assert [one.specks for one in judge(np.stack([faint, touching]))] == [0, 0]


def test_pictures_of_another_size(judge):
    scene = right_scene(StyledPrompt("a flat fox", STYLE, (FOX,), "flat"), ["flat"])
    (found,) = judge(draw_styled(scene, 128, STYLES)[None])
    assert found.seen[0].shows(FOX, "flat")
    with pytest.raises(ValueError, match="a multiple of 128"):
        judge(np.zeros((1, 100, 100, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_ask_for_what_training_never_showed(kind):
    prompts = held_out_prompts(kind, 12, things(), SHIPPED_STYLES)
    assert prompts == held_out_prompts(kind, 12, things(), SHIPPED_STYLES)
    assert prompts != held_out_prompts(kind, 12, things(), SHIPPED_STYLES, seed=1)
    assert len({prompt.things[0] for prompt in prompts}) == 12
    for prompt in prompts:
        if kind == GROUND:
            assert is_held_out(prompt.things[0], prompt.ground) and not is_style_held_out(*prompt.things, prompt.style)
        elif kind == STYLE:
            assert is_style_held_out(prompt.things[0], prompt.style) and prompt.style in prompt.caption
        elif kind == PAIR:
            assert is_pair_held_out(*prompt.things)
            assert prompt.style is None or not any(is_style_held_out(one, prompt.style) for one in prompt.things)
        elif kind == UNKNOWN:
            assert {*prompt.caption.replace(",", "").split()} & {*UNSEEN}
    if kind == PAIR:
        assert len({prompt.relation for prompt in prompts}) == 9 and {p.style is None for p in prompts} == {True, False}
    with pytest.raises(UserError, match=kind):
        held_out_prompts(kind, 10**6, EMOJI, SHIPPED_STYLES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_pictures_are_right(kind, judge):
    prompts = [one for one in held_out_prompts(kind, 4, EMOJI, SHIPPED_STYLES, seed=2) if {*one.things} <= {*EMOJI}]
    if kind == PAIR:
        prompts += held_out_prompts(kind, 12, EMOJI, SHIPPED_STYLES)
    images = [draw_styled(right_scene(one, SHIPPED_STYLES), 256, STYLES) for one in prompts]
    found = [verdict(*both) for both in zip(prompts, judge(np.stack(images)), strict=True)]
    assert all(one.things and one.style and one.ground and one.clean for one in found)
    assert sum(one.relation for one in found) >= len(found) - 1  # "in front of" may be hidden by nothing


def test_what_is_wrong_is_told():
    def seen(name, style, box):
        return Seen(box, (Drawing(next(one for one in EMOJI if one.name == name).characters, style),), 0.9)

    left, right = Box(0, 4, 8), Box(8, 4, 8)
    cat = next(one for one in EMOJI if one.name == "cat")
    prompt = StyledPrompt("a flat fox to the left of a cat", PAIR, (FOX, cat), "flat", None, "left of")

    def judged(*found, ground="white", unexplained=0.0, specks=0):
        return verdict(prompt, StyledJudgement(Background((ground,)), found, unexplained, specks))

    good = judged(seen("fox", "flat", left), seen("cat", "flat", right))
    assert good.all_right and good.clean
    assert judged(seen("cat", "flat", right), seen("fox", "flat", left)).all_right
    assert not judged(seen("cat", "flat", left), seen("fox", "flat", right)).relation
    assert not judged(seen("fox", "flat", left), seen("cat", "3d", right)).style
    assert not judged(seen("fox", "flat", left)).things
    assert not judged(seen("fox", "flat", left), Seen(right, (), 0.1)).things
    assert not judged(seen("fox", "flat", left), seen("cat", "flat", right), unexplained=0.6).things
    assert not judged(seen("fox", "flat", left), seen("cat", "flat", right), specks=2).clean
    both = StyledJudgement(
        Background(("white",)), (seen("cat", "flat", Box(4, 4, 8)), seen("fox", "flat", Box(0, 8, 8))), 0, 0
    )
    assert is_related(both, both.seen[1], both.seen[0], "in front of")
    assert is_related(both, both.seen[0], both.seen[1], "behind")
    assert not is_related(both, both.seen[0], both.seen[1], "in front of")


def test_the_right_render_is_where_the_judge_saw_the_thing(judge):
    scene = Scene("", (Thing(FOX, Box(8, 0, 8), None, "3d", flipped=True),), Background(("blue",)), SINGLE)
    image = draw_styled(scene, 256, STYLES)
    (found,) = judge(image[None])
    assert np.array_equal(right_render(image, found, FOX, [*STYLES], None, STYLES), image)
    unseen = StyledJudgement(found.ground, (), 1.0, 0)
    assert np.array_equal(right_render(image, unseen, FOX, [*STYLES], "blue", STYLES), image)
    assert not np.array_equal(right_render(image, found, FOX, ["noto"], "blue", STYLES), image)
