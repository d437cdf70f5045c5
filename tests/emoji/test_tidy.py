import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest

from dalle_mini.emoji.art import everyday_candidates, is_held_out
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, LEFT_OF, fact
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scenes import SPLITS
from dalle_mini.emoji.splits import HELD_OUT_KINDS, is_fact_held_out, is_pair_held_out
from dalle_mini.emoji.tidy import TIDY_SHARES, TINY, WIDTH, TidyScenes, arrange_tidily

EMOJI = everyday_candidates()[:120]


def scenes(n, **options):
    source = TidyScenes(length=n, emoji=EMOJI, **options)
    return [source.scene(i) for i in range(n)]


@pytest.fixture(scope="module")
def train():
    return scenes(6000)


def test_every_emoji_is_of_one_width_in_one_of_nine_places_but_for_small_ones(train):
    things = [thing for scene in train for thing in scene.things]
    wide = [thing.box for thing in things if thing.size is None]
    assert {box.scale for box in wide} == {WIDTH}
    assert {(box.x, box.y) for box in wide} == set(itertools.product((0, 4, 8), repeat=2))
    assert {(thing.box.scale, thing.size) for thing in things if thing.size} == {(TINY, "small")}
    assert all(box.inside() for box in (thing.box for thing in things))


def test_shares_of_the_kinds(train):
    counts = Counter(scene.kind for scene in train)
    for kind, share in TIDY_SHARES.items():
        assert abs(counts[kind] / len(train) - share) < 0.02


def test_only_gradients_with_a_name_and_few(train):
    graded = [scene for scene in train if scene.background.direction]
    assert 0.02 < len(graded) / len(train) < 0.06
    assert all(re.search(r"gradient|background", scene.caption) for scene in graded)


def test_training_never_shows_what_is_held_out(train):
    for scene in train:
        emoji = {thing.emoji for thing in scene.things}
        assert not scene.held_out_kinds()
        assert not any(is_held_out(one, color) for one in emoji for color in scene.background.colors)
        assert not any(is_pair_held_out(a, b) for a in emoji for b in emoji)
        assert not any(is_fact_held_out(*stated) for stated in scene.facts())


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_each_held_out_split_shows_its_kind_alone(kind):
    assert {one.held_out_kinds() for one in scenes(200, split=f"heldout-{kind}")} == {frozenset({kind})}


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_is_known_by_its_number(split):
    assert scenes(30, split=split) == scenes(30, split=split)
    assert scenes(30, split=split) != scenes(30, split=split, seed=1)


@pytest.mark.parametrize("name", RELATIONS)
def test_the_boxes_state_the_relation(name):
    relation, (one, other) = RELATIONS[name], EMOJI[:2]
    for seed in range(20):
        behind, front = arrange_tidily(random.Random(seed), name, [(one, None)], [(other, None)])
        stated, forward = fact(behind.box, front.box)
        first = behind if forward else front
        assert stated == relation.fact
        if relation.forward is not None:
            assert (first.emoji == one) == relation.forward


def test_all_the_relations_are_in_training(train):
    stated = Counter(name for scene in train for _, name, _ in scene.facts())
    assert min(stated[name] for name in (LEFT_OF, ABOVE, IN_FRONT_OF)) > 300


def test_an_emoji_is_the_same_patches_wherever_it_stands():
    source = TidyScenes(128, length=4000, emoji=EMOJI[:30])
    looks: dict = {}
    for index in range(source.length):
        scene = source.scene(index)
        (thing, *others) = scene.things
        if others or thing.size or scene.background.name != "white":
            continue
        x, y = thing.box.x * 8, thing.box.y * 8
        looks.setdefault(thing.emoji, {})[x, y] = source[index].image[y : y + 64, x : x + 64]
    compared = [list(places.values()) for places in looks.values() if len(places) > 1]
    assert len(compared) > 20
    for first, *rest in compared:
        assert all(np.array_equal(first, one) for one in rest)
