import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.emoji.art import EVERYDAY, Emoji, is_held_out
from dalle_mini.emoji.layout import fact
from dalle_mini.emoji.phrases import MEANINGLESS, NUMBERS, STYLE_WORDS, UNSEEN, misspelt, nonsense
from dalle_mini.emoji.recolor import COLORS
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scenes import COUNTED, SINGLE, TWO
from dalle_mini.emoji.splits import (
    STYLE_SHARE,
    STYLED_KINDS,
    is_fact_held_out,
    is_paint_held_out,
    is_pair_held_out,
    is_style_held_out,
)
from dalle_mini.emoji.styled import STYLED_SPLITS, StyledScenes, held_out_kinds
from dalle_mini.emoji.styled_layout import SCALES, grid, most_scale, pair
from dalle_mini.emoji.styles import SHIPPED_STYLES
from dalle_mini.emoji.things import FACING, is_person, things
from dalle_mini.emoji.words import GENERAL, UNSAID, Lexicon, read_annotations
from dalle_mini.errors import UserError

ART = Path(__file__).parent.parent / "golden" / "art"
ANNOTATIONS = read_annotations(ART)
EMOJI = [one for one in things() if one.characters.replace("\ufe0f", "") in ANNOTATIONS]
WORDS = Lexicon(ANNOTATIONS, EMOJI)


def source(**options):
    return StyledScenes(options.pop("size", 256), folder=ART, words=WORDS, **options)


@pytest.fixture(scope="module")
def train():
    scenes = source(length=6000)
    return [scenes.scene(index) for index in range(scenes.length)]


def test_training_never_shows_what_is_held_out(train):
    for scene in train:
        emoji = {thing.emoji for thing in scene.things}
        assert not held_out_kinds(scene)
        assert not any(is_style_held_out(thing.emoji, thing.style) for thing in scene.things)
        assert not any(thing.color and is_paint_held_out(thing.emoji, thing.color) for thing in scene.things)
        assert not any(is_held_out(one, color) for one in emoji for color in scene.background.colors)
        assert not any(is_pair_held_out(a, b) for a in emoji for b in emoji)
        assert not any(is_fact_held_out(*stated) for stated in scene.facts())


@pytest.mark.parametrize("kind", STYLED_KINDS)
def test_each_held_out_split_shows_its_kind_alone(kind):
    scenes = source(length=120, split=f"heldout-{kind}")
    assert {held_out_kinds(scenes.scene(index)) for index in range(120)} == {frozenset({kind})}


@pytest.mark.parametrize("split", STYLED_SPLITS)
def test_a_scene_is_known_by_its_number(split):
    def scenes(seed):
        made = source(length=30, split=split, seed=seed)
        return [made.scene(index) for index in range(30)]

    assert scenes(0) == scenes(0) != scenes(1)


def test_a_picture_is_its_things_on_its_ground(train):
    small, large = source(size=64, length=40), source(size=256, length=40)
    images, captions = small.batch(range(40))
    assert images.shape == (40, 64, 64, 3) and captions == [scene.caption for scene in train[:40]]
    for index in range(40):
        again = large[index].image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.mean(np.abs(again - images[index])) < 4


def test_scenes_stay_within_a_style_but_for_few(train):
    of_two = [scene for scene in train if scene.kind == TWO]
    mixed = [scene for scene in train if len({thing.style for thing in scene.things}) > 1]
    assert all(scene.kind == TWO for scene in mixed)
    assert 0.02 < len(mixed) / len(of_two) < 0.10
    said = [word for words, _ in STYLE_WORDS.values() for word in words]
    assert all(sum(scene.caption.lower().count(word) for word in said) >= 2 for scene in mixed[:20])
    counts = Counter(scene.things[0].style for scene in train)
    assert all(abs(counts[style] / len(train) - 0.25) < 0.03 for style in SHIPPED_STYLES)


def test_what_a_caption_leaves_open_varies(train):
    plain = re.compile(r"an? [a-z' ]+")
    short = {text for names in WORDS.names.values() for text in names} | WORDS.general.keys()
    scenes = [
        scene
        for scene in train
        if scene.kind == SINGLE and plain.fullmatch(scene.caption) and scene.caption.split(" ", 1)[1] in short
    ]
    assert len(scenes) > 100
    boxes = [scene.things[0].box for scene in scenes]
    assert {box.scale for box in boxes} == {5, 8, 12}
    assert len({(box.x, box.y) for box in boxes}) > 9
    assert {scene.things[0].style for scene in scenes} == set(SHIPPED_STYLES)
    assert len({scene.background.name for scene in scenes}) > 8
    assert 0.02 < np.mean([scene.things[0].flipped for scene in scenes]) < 0.3


def test_size_words_are_sizes(train):
    for scene in train:
        for thing in scene.things:
            if thing.size:
                assert thing.box.scale == SCALES[thing.size]
    said = Counter(thing.size for scene in train for thing in scene.things)
    assert min(said["small"], said["large"], said["tiny"]) > 100
    assert SCALES["tiny"] * 16 in range(40, 57)


def test_counts_to_nine_in_digits_and_words(train):
    captions = {}
    for scene in train:
        if scene.kind == COUNTED:
            captions.setdefault(len(scene.things), []).append(scene.caption.lower())
    assert set(captions) == set(range(2, 10))
    for count, said in captions.items():
        assert any(re.search(rf"\b{count}\b", caption) for caption in said)
        assert any(re.search(rf"\b{NUMBERS[count]}\b", caption) for caption in said)
    wrong = [NUMBERS[n] for n in range(2, 10) if n != 4]
    assert not any(re.search(rf"\b({'|'.join(wrong)})\b", caption) for caption in captions[4])


@pytest.mark.parametrize("count", range(1, 10))
def test_equal_things_do_not_overlap(count):
    for seed in range(20):
        boxes = grid(random.Random(seed), count, most_scale(count))
        assert len(boxes) == count and all(box.inside() for box in boxes)
        cells = [(box.x + x, box.y + y) for box in boxes for x in range(box.scale) for y in range(box.scale)]
        assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize("scales", [(8, 8), (5, 5), (5, 8), (8, 5)])
def test_the_boxes_state_the_relation(name, scales):
    relation = RELATIONS[name]
    if relation.fact == "in front of" and scales[0] != scales[1]:
        return  # one in front is as large as the other
    for seed in range(10):
        first, second = pair(random.Random(seed), relation.fact, scales, bool(relation.touching))
        assert first.inside() and second.inside()
        assert fact(second, first) == (relation.fact, False)


def test_everyday_ways_of_asking(train):
    captions = [scene.caption for scene in train]

    def share(pattern, flags=0):
        return np.mean([bool(re.search(pattern, caption, flags)) for caption in captions])

    assert 0.005 < share(r"^please draw") < 0.03
    assert share(r"^[A-Z]") > 0.02
    assert share(r"[^\x00-\x7f]") > 0.005  # emoji characters
    assert share(r"^(some|many|a few|several)") > 0.005
    assert 0.02 < share("|".join(MEANINGLESS)) < 0.2
    assert share("background") > 0.3
    assert not share("|".join(rf"\b{word}\b" for word in UNSEEN), re.IGNORECASE)


def test_several_things_may_be_named_by_their_characters(train):
    told = [scene for scene in train if len(scene.things) > 1 and re.search(r"[^\x00-\x7f]", scene.caption)]
    assert 0.01 < len(told) / len(train) < 0.05
    for scene in told:
        wanted = Counter(thing.emoji.characters for thing in scene.things)
        for characters, count in wanted.items():
            # Each thing has its own characters, or a number before those of all.
            said = scene.caption.count(characters)
            number = rf"\b({count}|{NUMBERS[count]})\b"
            assert said == count or (said == 1 and re.search(number, scene.caption, re.IGNORECASE)), scene.caption
    captions = " | ".join(scene.caption for scene in told)
    one = r"[^\x00-\x7f]+"
    for way in (f"{one} and {one}", f"{one}, {one} and {one}", f"{one} {one}", rf"\d {one}", rf"({one})\1", "under"):
        assert re.search(way, captions), way
    assert not re.search(rf"{one}[a-z]", captions)


def test_a_general_word_may_be_any_of_its_things(train):
    flowers = Counter(
        scene.things[0].emoji.name
        for scene in train
        if scene.kind == SINGLE and re.search(r"\bflowers?\b", scene.caption)
    )
    assert set(flowers) <= {one.name for one in WORDS.general["flower"].things}
    assert len(flowers) >= 3
    assert WORDS.meant_by("flower") == WORDS.general["flower"].things
    assert [one.name for one in WORDS.meant_by("red apple")] == ["red apple"]
    assert {one.name for one in WORDS.meant_by("apple")} == {"red apple", "green apple"}
    assert WORDS.meant_by("blorf") == ()


def test_the_lists_name_things_of_the_world():
    known = {one.characters.replace("\ufe0f", "") for one in things()}
    assert len(known) == len(things()) > 700
    assert not {one for listed in GENERAL.values() for one in listed} - known
    assert not FACING - {one[0] for one in known}
    assert not UNSAID & GENERAL.keys() and not set(MEANINGLESS) & set(UNSEEN)
    assert all(not UNSAID & set(text.split()) for text in WORDS.keywords)


def test_painted_things_say_so(train):
    painted = [scene for scene in train if any(thing.color for thing in scene.things)]
    assert 0.02 < len(painted) / len(train) < 0.2
    assert len({thing.color for scene in painted for thing in scene.things if thing.color}) == len(COLORS)
    assert not any(is_person(thing.emoji) for scene in painted for thing in scene.things if thing.color)
    right = [scene for scene in painted if all((t.color or "") in scene.caption.lower() for t in scene.things)]
    assert len(right) / len(painted) > 0.97  # the rest has a slip in that word


def all_pairs():
    everything = [Emoji(character, f"thing {character}") for character in "".join(EVERYDAY.values())]
    return [*things(), *everything]


@pytest.mark.parametrize("style", SHIPPED_STYLES)
def test_a_share_of_the_things_is_held_out_in_each_style(style):
    held = [one for one in all_pairs() if is_style_held_out(one, style)]
    assert abs(len(held) / len(all_pairs()) - STYLE_SHARE) < 0.03
    assert held == [one for one in all_pairs() if is_style_held_out(one, style)]


def test_half_of_fluents_held_out_pairs_are_held_out_together():
    flat, solid = ({one.name for one in all_pairs() if is_style_held_out(one, style)} for style in ("flat", "3d"))
    together = 2 * len(flat & solid)
    assert abs(together / (len(flat) + len(solid)) - 0.5) < 0.12
    assert not any(all(is_style_held_out(one, style) for style in SHIPPED_STYLES) for one in all_pairs())


def test_slips_make_no_other_known_word():
    rng = random.Random(0)
    known = {"boat", "boats", "bat", "coat"}
    slips = {misspelt(rng, "a boat", known) for _ in range(200)}
    assert "a bat" not in slips and {"a bot", "a baot"} & slips
    assert misspelt(rng, "a cat", known) == "a cat"
    words = {nonsense(rng, known) for _ in range(500)}
    assert len(words) > 400 and not words & known


def test_mistakes_are_told():
    with pytest.raises(UserError, match="not a multiple of 16"):
        source(size=100)
    with pytest.raises(UserError, match="unknown split"):
        source(split="test")
    with pytest.raises(UserError, match="no style"):
        source(styles=())
    with pytest.raises(UserError, match="at least one image"):
        source(length=0)
    with pytest.raises(IndexError):
        source(length=3).scene(3)
    with pytest.raises(UserError, match="give more things"):
        source(emoji=EMOJI[:2], split="heldout-pair", length=1).scene(0)


def test_two_of_the_same_stand_with_a_third(train):
    """ "two cats under a rainbow"."""
    found = [scene for scene in train if sorted(Counter(thing.emoji for thing in scene.things).values()) == [1, 2]]
    assert 0.01 < len(found) / len(train) < 0.05
    said = [scene for scene in found if re.search(r"\b(two|2)\b", scene.caption.lower())]
    assert len(said) / len(found) > 0.95  # the rest has a slip in that word
    assert all(len({thing.box.y for thing in scene.things}) == 2 for scene in found)
