import itertools

import numpy as np
import pytest

from dalle_mini.emoji.art import everyday_emoji, find_font
from dalle_mini.emoji.nouns import (
    EVERYDAY_NAMES,
    RENAMED,
    is_counted,
    is_plural,
    noun_phrase,
    spoken,
    variant,
    without_skin,
)
from dalle_mini.emoji.vocabulary import (
    MORE,
    THINNEST,
    TWIN_DISTANCE,
    _ink,
    _on_black_and_white,
    people_emoji,
    scene_candidates,
    scene_emoji,
)
from dalle_mini.errors import UserError


def test_candidates_are_known_single_emoji_without_repetition():
    emoji = scene_candidates()
    names = [one.name for one in emoji]
    assert len(set(names)) == len(names) > 900
    assert all(len(one.characters.replace("\ufe0f", "")) == 1 for one in emoji)
    assert scene_candidates(["plants"])[0].name == "seedling"
    assert {one.characters[0] for one in scene_candidates(["plants"])} > set(MORE["plants"])
    with pytest.raises(UserError, match="minerals"):
        scene_candidates(["minerals"])


def test_scene_emoji_are_more_than_600_no_twins_and_hold_all_everyday_ones():
    emoji = scene_emoji()
    assert len(emoji) >= 600
    assert emoji[: len(everyday_emoji())] == everyday_emoji()
    pixels = [_on_black_and_white(find_font(), one) for one in emoji]
    nearest = min(np.sqrt(np.mean((np.stack(pixels[i + 1 :]) - pixels[i]) ** 2, axis=1)).min() for i in range(200))
    assert nearest >= TWIN_DISTANCE - 1e-4
    assert min(_ink(find_font(), one) for one in emoji) >= THINNEST
    names = {one.name for one in emoji}
    assert {"grinning face", "snowman"} <= names  # of twins the first stays
    assert not {"grinning face with big eyes", "snowman without snow", "black circle", "dotted line face"} & names
    assert len(scene_emoji(kinds=["animals", "food"])) < len(scene_emoji(distance=0.1, kinds=["animals", "food"]))


def test_people_come_in_all_their_variants_and_only_in_the_larger_set():
    people = people_emoji()
    names = {one.name for one in people}
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    for gender, tone in itertools.product(("", "woman ", "man "), tones):
        assert f"{gender}firefighter {tone} skin tone" in names
    assert len(people) > 1000
    assert not any(name.startswith(("family", "couple", "kiss")) or "holding hands" in name for name in names)
    plain, larger = scene_emoji(kinds=["plants"]), scene_emoji(kinds=["plants"], people=True)
    assert not names & {one.name for one in scene_emoji()}
    assert larger == plain + people


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("mouse", "a mouse", "two mice"),
        ("computer mouse", "a computer mouse", "two computer mice"),
        ("ewe", "a ewe", "two ewes"),
        ("wolf", "a wolf", "two wolves"),
        ("tropical fish", "a tropical fish", "two tropical fish"),
        ("deer", "a deer", "two deer"),
        ("goose", "a goose", "two geese"),
        ("ox", "an ox", "two oxen"),
        ("tooth", "a tooth", "two teeth"),
        ("snowman", "a snowman", "two snowmen"),
        ("butterfly", "a butterfly", "two butterflies"),
        ("monkey", "a monkey", "two monkeys"),
        ("fox", "a fox", "two foxes"),
        ("church", "a church", "two churches"),
        ("volcano", "a volcano", "two volcanoes"),
        ("flamingo", "a flamingo", "two flamingos"),
        ("kitchen knife", "a kitchen knife", "two kitchen knives"),
        ("maple leaf", "a maple leaf", "two maple leaves"),
        ("sheaf of rice", "a sheaf of rice", "two sheaves of rice"),
        ("cloud with rain", "a cloud with rain", "two clouds with rain"),
        ("man's shoe", "a man's shoe", "two men's shoes"),
        ("fishing pole", "a fishing pole", "two fishing poles"),
        ("face screaming in fear", "a face screaming in fear", "two faces screaming in fear"),
        ("face with monocle", "a face with monocle", "two faces with monocle"),
        ("hourglass done", "an hourglass", "two hourglasses"),
        ("woman", "a woman", "two women"),
        ("person running", "a person running", "two people running"),
        ("woman lifting weights", "a woman lifting weights", "two women lifting weights"),
        ("man in tuxedo", "a man in tuxedo", "two men in tuxedo"),
        (
            "woman firefighter medium-dark skin tone",
            "a woman firefighter with medium-dark skin",
            "two women firefighters with medium-dark skin",
        ),
        (
            "man medium-light skin tone red hair",
            "a man with red hair and medium-light skin",
            "two men with red hair and medium-light skin",
        ),
        ("person dark skin tone bald", "a bald person with dark skin", "two bald people with dark skin"),
        ("grapes", "grapes", None),
        ("scissors", "scissors", None),
        ("bread", "bread", None),
        ("statue of liberty", "the statue of liberty", None),
        ("bow and arrow", "a bow and arrow", None),
        ("santa claus", "santa claus", None),
    ],
)
def test_articles_and_plurals(name, one, two):
    word = spoken(name)
    assert noun_phrase(word) == one
    assert is_counted(word) == (two is not None)
    if two:
        assert noun_phrase(word, 2) == two
        assert noun_phrase(word, 3, "small") == two.replace("two", "three small")


def test_sheep_and_other_everyday_names():
    assert noun_phrase("sheep", 3) == "three sheep"
    assert EVERYDAY_NAMES["ewe"] == ("sheep",)
    assert noun_phrase("red car", adjective="huge") == "a huge red car"
    assert noun_phrase("ufo") == "a ufo" and noun_phrase("piano", 2) == "two pianos"
    assert is_plural("grapes") and is_plural("headphones") and not is_plural("bread") and not is_plural("santa claus")


def test_every_spoken_and_everyday_name_belongs_to_one_emoji():
    from dalle_mini.emoji.art import _known_emoji

    known = {name for _, name in _known_emoji()}
    assert not (set(EVERYDAY_NAMES) | set(RENAMED)) - known
    others = [*RENAMED.values(), *itertools.chain(*EVERYDAY_NAMES.values())]
    assert len(set(others)) == len(others)
    assert not set(others) & {one.name for one in scene_candidates()}
    words = [spoken(one.name) for one in scene_candidates()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("woman firefighter dark skin tone", "woman, dark skin"),
        ("firefighter medium-light skin tone", "medium-light skin"),
        ("man dancing", "man"),
        ("man's shoe", None),
        ("woman's hat", None),
        ("snowman", None),
        ("snail", None),
    ],
)
def test_variant(name, wanted):
    assert variant(name) == wanted
    assert without_skin("woman firefighter dark skin tone") == "woman firefighter"
