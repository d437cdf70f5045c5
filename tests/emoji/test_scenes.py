import itertools
import pickle
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dalle_mini.emoji.art import PALETTE, Emoji, everyday_candidates, is_held_out, render
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, LEFT_OF, SCENE_SCALES, Box, fact
from dalle_mini.emoji.nouns import variant
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scenes import (
    SHARES,
    SIZES,
    SPLITS,
    Background,
    EmojiScenes,
    Scene,
    Thing,
    arrange,
    draw,
    family,
    paint,
)
from dalle_mini.emoji.splits import (
    HELD_OUT_KINDS,
    is_combination_held_out,
    is_fact_held_out,
    is_pair_held_out,
)
from dalle_mini.emoji.vocabulary import scene_candidates
from dalle_mini.errors import UserError

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
PEOPLE = [
    Emoji(f"{gender}{tone}", f"{gender} {job} {tone} skin tone")
    for gender, job, tone in itertools.product(("man", "woman"), ("firefighter", "astronaut"), TONES)
]
EMOJI = everyday_candidates()[:60] + PEOPLE


def scenes(n, emoji=None, **options):
    source = EmojiScenes(length=n, emoji=everyday_candidates() if emoji is None else emoji, **options)
    return [source.scene(i) for i in range(n)]


@pytest.fixture(scope="module")
def train():
    return scenes(12_000, EMOJI)


def pairs_of(scene):
    return {
        frozenset((a.emoji.name, b.emoji.name))
        for a, b in itertools.combinations(scene.things, 2)
        if a.emoji != b.emoji
    }


def looks_of(scene):
    return {(thing.size, scene.background.name, variant(thing.emoji.name)) for thing in scene.things}


def test_training_never_shows_what_is_held_out(train):
    for scene in train:
        emoji = {thing.emoji for thing in scene.things}
        assert not any(is_held_out(one, color) for one in emoji for color in scene.background.colors), scene
        assert not any(is_pair_held_out(a, b) for a in emoji for b in emoji), scene
        assert not any(is_fact_held_out(*stated) for stated in scene.facts()), scene
        assert not any(is_combination_held_out(*look) for look in looks_of(scene)), scene


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_held_out_splits_show_one_kind_each_and_nothing_of_it_is_in_training(kind, train):
    held_out = scenes(400, EMOJI, split=f"heldout-{kind}")
    assert all(scene.held_out_kinds() == {kind} for scene in held_out)
    things = {
        "color": lambda scene: {(t.emoji.name, color) for t in scene.things for color in scene.background.colors},
        "pair": pairs_of,
        "relation": lambda scene: {(first.name, name, second.name) for first, name, second in scene.facts()},
        "attributes": looks_of,
    }[kind]
    trained = set().union(*map(things, train))
    new = [things(scene) - trained for scene in held_out]
    assert all(new)
    assert len(set().union(*new)) > 30  # not the same few again and again


def test_what_is_held_out_together_is_trained_apart(train):
    """A pair that is held out is of emoji that are each trained on with others, in every relation."""
    emoji = {thing.emoji.name for scene in train if len(scene.things) > 1 for thing in scene.things}
    assert {one.name for one in EMOJI} <= emoji
    assert {name for scene in train for _, name, _ in scene.facts()} == {LEFT_OF, ABOVE, IN_FRONT_OF}
    sizes = {(thing.size, scene.background.name) for scene in train for thing in scene.things}
    assert {("small", color) for color in PALETTE if not is_combination_held_out("small", color, None)} <= sizes


def test_a_tenth_of_each_kind_is_held_out_and_fixed():
    emoji = everyday_candidates()
    pairs = list(itertools.combinations(emoji[:150], 2))
    assert np.mean([is_pair_held_out(a, b) for a, b in pairs]) == pytest.approx(0.1, abs=0.01)
    for name in (LEFT_OF, ABOVE, IN_FRONT_OF):
        assert np.mean([is_fact_held_out(a, name, b) for a, b in pairs]) == pytest.approx(0.1, abs=0.01)
    combinations = [
        (size, background, person)
        for size in ("small", "large")
        for background in (*PALETTE, "blue to pink down", "pink to blue across")
        for person in (None, *(f"woman, {tone} skin" for tone in TONES), "man", "woman")
        if (background, person) != ("white", None)
    ]
    assert np.mean([is_combination_held_out(*one) for one in combinations]) == pytest.approx(0.1, abs=0.05)
    # Frozen: a change would let pictures that judge a trained model slip into another's training.
    assert [b.name for b in emoji[1:40] if is_pair_held_out(emoji[0], b)] == FROZEN_PAIRS
    assert [b.name for b in emoji[1:40] if is_fact_held_out(emoji[0], LEFT_OF, b)] == FROZEN_FACTS
    assert [c for c in PALETTE if is_combination_held_out("small", c, None)] == FROZEN_SMALL


FROZEN_PAIRS = ["dragon", "turtle", "dolphin", "cat face"]
FROZEN_FACTS = ["dragon", "snail", "octopus", "spiral shell", "dolphin"]
FROZEN_SMALL = ["gray", "light blue"]


def test_what_is_held_out_does_not_depend_on_order_or_skin():
    snail = Emoji("🐌", "snail")
    assert not is_pair_held_out(snail, snail) and not is_fact_held_out(snail, ABOVE, snail)
    emoji = everyday_candidates()
    assert all(is_pair_held_out(a, b) == is_pair_held_out(b, a) for a, b in itertools.combinations(emoji[:40], 2))
    firefighters = [one for one in PEOPLE if one.name.startswith("woman firefighter")]
    for other in emoji[:60]:
        assert len({is_pair_held_out(other, one) for one in (*firefighters, Emoji("", "woman firefighter"))}) == 1
        assert len({is_fact_held_out(other, ABOVE, one) for one in firefighters}) == 1
    assert not is_combination_held_out("small", "white", None)  # on white that is no combination
    assert not any(is_combination_held_out(None, color, None) for color in PALETTE)


def test_relations_are_drawn_as_they_are_said():
    rng = random.Random("relations")
    a, b = Emoji("a", "snail"), Emoji("b", "cat")
    for name, relation in RELATIONS.items():
        for sizes in ((None, None), *SIZES):
            for _ in range(40):
                things = arrange(rng, name, [(a, sizes[0])], [(b, sizes[1])])
                ((first, stated, _),) = Scene("", things, Background(("white",)), "two").facts()
                assert all(thing.box.inside() for thing in things)
                assert stated == relation.fact
                if relation.forward is not None:
                    assert (first == a) == relation.forward, (name, things)
                boxes = {thing.emoji: thing.box for thing in things}
                assert boxes[a].scale == {"small": 5, None: 7, "large": 9}[sizes[0]]
                if name == "on top of":
                    assert boxes[a].y + boxes[a].scale == boxes[b].y + 1
                if name in ("above", "below"):
                    upper, lower = (boxes[a], boxes[b]) if name == "above" else (boxes[b], boxes[a])
                    assert upper.y + upper.scale <= lower.y


def test_boxes_lie_inside_on_whole_cells_in_few_sizes_and_what_is_behind_stays_visible(train):
    for scene in train:
        assert 1 <= len(scene.things) <= 3
        for thing in scene.things:
            assert thing.box.inside() and all(type(value) is int for value in (thing.box.x, thing.box.y))
        if scene.kind != "single":
            assert {thing.box.scale for thing in scene.things} <= set(SCENE_SCALES)
        for behind, front in itertools.combinations(scene.things, 2):
            across, down = (
                max(0, min(a + behind.box.scale, b + front.box.scale) - max(a, b))
                for a, b in ((behind.box.x, front.box.x), (behind.box.y, front.box.y))
            )
            assert across * down <= 0.41 * behind.box.scale**2
            if fact(behind.box, front.box)[0] != IN_FRONT_OF:
                assert min(across, down) <= 1


def test_kinds_backgrounds_and_sizes_are_distributed_as_documented(train):
    kinds = Counter(scene.kind for scene in train)
    for kind, share in SHARES.items():
        assert kinds[kind] / len(train) == pytest.approx(share, abs=0.02)
    gradients = sum(scene.background.direction is not None for scene in train) / len(train)
    assert 0.10 < gradients < 0.16  # a little less than 15 %: two colours are oftener held out than one
    two = [scene for scene in train if scene.kind == "two"]
    sized = np.mean([any(thing.size for thing in scene.things) for scene in two])
    assert 0.28 < sized < 0.37
    assert {len(scene.things) for scene in two} == {2, 3}
    assert {scene.background.colors[0] for scene in train} == set(PALETTE)


def test_people_do_not_crowd_out_the_rest(train):
    assert family("woman firefighter medium-dark skin tone") == family("man firefighter") == "firefighter"
    assert family("red apple") == "red apple"
    singles = [scene.things[0].emoji for scene in train if scene.kind == "single"]
    share = np.mean([one in set(PEOPLE) for one in singles])
    assert share == pytest.approx(2 / 62, abs=0.01)  # two families among 62, though 20 emoji among 80
    assert {variant(one.name) for one in singles if one in set(PEOPLE)} >= {f"woman, {tone} skin" for tone in TONES}


def test_examples_depend_on_seed_index_and_split_alone():
    few = everyday_candidates()[:40]
    assert scenes(60, few) == scenes(100, few)[:60] == scenes(60, few, size=64)
    assert scenes(60, few, seed=1) != scenes(60, few)
    assert len({scene.caption for scene in scenes(200)}) > 195
    source = EmojiScenes(length=9, emoji=few)
    assert pickle.loads(pickle.dumps(source)).scene(5) == source.scene(5)


def test_single_emoji_keep_the_sentences_of_the_first_edition(train):
    plain = {
        f"{'an' if one.name[0] in 'aeiou' else 'a'} {one.name} on a {color} background"
        for one in everyday_candidates()[:60]
        for color in PALETTE
    }
    assert sum(scene.caption in plain for scene in train) > 250


@pytest.mark.parametrize(
    "options",
    [
        {"size": 50},
        {"size": 0},
        {"split": "test"},
        {"split": "heldout-size"},
        {"length": 0},
        {"emoji": []},
        {"emoji": everyday_candidates()[:2]},
        {"jitter": 2},
    ],
)
def test_wrong_options_are_user_errors(options):
    with pytest.raises(UserError):
        EmojiScenes(**{"emoji": EMOJI, **options})


def test_emoji_too_few_for_a_split_are_named():
    emoji = everyday_candidates()
    trio = next(
        three
        for three in itertools.combinations(emoji[:20], 3)
        if not any(is_pair_held_out(a, b) for a, b in itertools.combinations(three, 2))
    )
    with pytest.raises(UserError, match=r"heldout-pair.*more emoji"):
        EmojiScenes(emoji=trio, split="heldout-pair").scene(0)


def test_index_outside_the_source():
    source = EmojiScenes(length=3, emoji=EMOJI)
    assert len(source) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


def test_gradients_run_from_their_first_colour_to_their_second():
    down, across = (paint(Background(("blue", "pink"), direction), 64) for direction in ("down", "across"))
    np.testing.assert_array_equal(down, across.swapaxes(0, 1))
    assert np.abs(down[0, 0].astype(int) - PALETTE["blue"]).max() < 4
    assert np.abs(down[-1, -1].astype(int) - PALETTE["pink"]).max() < 4
    assert (np.sign(np.diff(down[:, 0].astype(int), axis=0)) * (1, 1, -1) >= 0).all()  # more red and green, less blue
    assert (paint(Background(("red",)), 32) == PALETTE["red"]).all()


def test_pictures_are_their_things_drawn_in_order():
    apple, snail = Emoji("🍎", "red apple"), Emoji("🐌", "snail")
    boxes = Box(1, 2, 7), Box(4, 6, 9)
    white = Background(("white",))
    both = draw(Scene("", (Thing(apple, boxes[0]), Thing(snail, boxes[1])), white, "two"), 128)
    one = render(snail, "white", 128, 9, (4, 6))
    opaque = (render(snail, "black", 128, 9, (4, 6)).astype(int) + 255 - one).min(-1) == 255
    np.testing.assert_array_equal(both[opaque], one[opaque])  # the snail is whole, in front
    apart = render(apple, "white", 128, 7, (1, 2))
    outside = np.ones((128, 128), bool)
    outside[48:120, 32:104] = False
    np.testing.assert_array_equal(both[outside], apart[outside])
    assert (apart[~outside] != 255).any()  # and something of the apple is covered


@pytest.mark.parametrize("size", [64, 128])
def test_batch_is_its_examples_also_from_threads(size):
    source = EmojiScenes(size, length=40, emoji=everyday_candidates()[:50])
    images, captions = source.batch(range(40))
    assert images.shape == (40, size, size, 3) and images.dtype == np.uint8
    assert captions == [source.caption(i) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for other, _ in pool.map(lambda _: source.batch(range(40)), range(4)):
            np.testing.assert_array_equal(other, images)


def test_captions_read_like_english():
    emoji = scene_candidates()
    for split in SPLITS:
        for scene in scenes(4_000 if split == "train" else 100, emoji, split=split):
            caption = scene.caption
            assert caption == " ".join(caption.split()) and not re.search(r"[{}:_]", caption)
            assert not re.search(r"\ba (?!ewe|euro|unicorn|ufo|one-)[aeiou]", caption), caption
            assert not re.search(r"\ban [^aeiouhx]", caption), caption
            assert not re.search(r"\b(an?|the) (an?|the|two|three)\b(?!-)", caption), caption
            assert not re.search(r"\b(mouses|wolfs|fishes|sheeps|\w*mans|tooths)\b", caption), caption
            for color in scene.background.colors if scene.background.direction is None else ():
                assert color == "white" or f"{color} background" in caption
            many = Counter(thing.emoji for thing in scene.things)
            numbers = re.findall(r"\b(two|three)\b", caption.replace("two-hump", ""))
            assert ["two", "three"][max(many.values()) - 2] in numbers if max(many.values()) > 1 else not numbers
