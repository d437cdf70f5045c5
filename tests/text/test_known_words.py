import json

import pytest

from dalle_mini.errors import UserError
from dalle_mini.text.known_words import NEAREST, KnownWords, edit_distance, related_words
from dalle_mini.weights.bundle import VOCABULARY

# The CLDR's keywords of some things, and the words of training captions.
GROUPS = [
    ["couch", "lamp", "hotel", "sofa", "armchair"],
    ["chair", "seat", "sit", "armchair"],
    ["seat", "airplane", "travel"],
    ["cat", "kitten", "kitty", "pet", "animal"],
    ["dog", "puppy", "pooch", "pet", "animal"],
    ["snail", "escargot", "slug", "animal"],
    ["automobile", "car", "driving", "vehicle"],
    ["ship", "cruise", "passenger", "vehicle"],
    ["house", "home", "ranch", "building"],
    ["guitar", "instrument", "music", "strum"],
    ["hot", "beverage", "coffee", "tea", "caffeine"],
]
SEEN = """
    a an the on and of with blue red background chair couch sofa cat kitten dog snail car ship house guitar coffee
    airplane dragon octopus umbrella elephant strawberry woman's boot cherry box animal
"""
WORDS = SEEN.split()
MODEL = KnownWords(WORDS, related_words(GROUPS, WORDS))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("an armchair", ["armchair: never seen; near: chair, couch, sofa"]),
        ("a cat on a couch", []),
        ("A CAT, and a Dog!", []),
        ("two cats", ["two: never seen"]),
        ("cherries", []),
        ("boxes", []),
        ("the cat's house", []),
        ("a woman’s boot", []),
        ("a slug", ["slug: never seen; near: snail, animal"]),
        ("slugs on a ship", ["slugs: never seen; near: snail, animal"]),
        ("kitty", ["kitty: never seen; near: cat, kitten, animal"]),
        ("a pooch", ["pooch: never seen; near: dog, animal"]),
        ("a vehicle", ["vehicle: never seen; near: car, ship"]),
        ("a caffeine drink", ["caffeine: never seen; near: coffee", "drink: never seen"]),
        ("a cruise", ["cruise: never seen; near: ship"]),
        ("the ranch", ["ranch: never seen; near: house"]),
        ("a gutiar", ["gutiar: never seen; near: guitar"]),
        ("an elefant", ["elefant: never seen; near: elephant"]),
        ("an umbrela on a dragn", ["umbrela: never seen; near: umbrella", "dragn: never seen; near: dragon"]),
        ("strawbery", ["strawbery: never seen; near: strawberry"]),
        ("asdfghjkl", ["asdfghjkl: never seen"]),
        ("blorf blorf", ["blorf: never seen"]),
        ("", []),
        ("7 🐱 !", ["face: never seen"]),  # the model reads "7, cat face"
        ("<b>a caf&eacute;</b>", ["cafe: never seen"]),
        ("кошка", ["koshka: never seen"]),
    ],
)
def test_what_a_model_has_not_seen(prompt, told):
    assert [str(one) for one in MODEL.unknown(prompt)] == told


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("fox", "fox", 0),
        ("fox", "", 3),
        ("gutiar", "guitar", 1),
        ("strawbery", "strawberry", 1),
        ("elefant", "elephant", 2),
        ("dinasour", "dinosaur", 2),
        ("sun", "moon", 3),
    ],
)
def test_slips_of_the_pen(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_a_compound_is_near_its_last_noun_and_what_is_related_to_it():
    model = KnownWords(["chair", "couch", "arm", "book", "ice", "cream"], {"chair": ["couch", "ice cream"], "book": []})
    assert model.nearest("armchair") == ("chair", "couch", "ice cream")
    assert model.nearest("bookworm") == ("book",)
    assert model.nearest("chairman") == ("chair", "couch", "ice cream")
    assert model.nearest("icebox") == ()  # "ice" is no noun with relatives, and short
    assert KnownWords(["chair", "ice"], {"chair": ["ice cream"]}).nearest("armchair") == ("chair",)


def test_numbers_from_ten_are_words():
    model = KnownWords(["cats", "nine", "k", "ten", "30"])
    assert [str(one) for one in model.unknown("12 cats")] == ["12: never seen"]
    assert [one.word for one in model.unknown("10 cats, 100 cats and 1,000 cats")] == ["10", "100", "and", "1000"]
    assert not model.unknown("9 cats 4k 30 cats 1 ten")
    assert [one.word for one in model.unknown("50s cats")] == ["s"]  # which is no plural


def test_a_form_of_a_word_is_near_it():
    model = KnownWords(["rain", "umbrella", "sit", "ride", "box"], {"rain": ["umbrella"]})
    assert model.nearest("raining") == model.nearest("rainy") == ("rain", "umbrella")
    assert model.nearest("sitting") == ("sit",)
    assert model.nearest("riding") == ("ride",)
    assert model.nearest("boxed") == ("box",)
    assert model.nearest("ring") == ()


def test_a_word_of_most_groups_comes_first():
    related = related_words([["seat", "chair"], ["seat", "chair", "sofa"], ["seat", "sofa", "bed"]], ["chair", "sofa"])
    assert related == {"seat": ["chair", "sofa"], "bed": ["sofa"]}
    assert len(MODEL.nearest("pet")) <= NEAREST


def test_a_vocabulary_is_kept_in_a_folder(tmp_path):
    assert KnownWords.load(tmp_path) is None
    MODEL.save(tmp_path)
    again = KnownWords.load(tmp_path)
    assert again.words == MODEL.words
    assert again.unknown("an armchair") == MODEL.unknown("an armchair")
    for damage in ("no json", "[]", json.dumps({"words": ["a"]})):
        (tmp_path / VOCABULARY).write_text(damage)
        with pytest.raises(UserError, match="not a vocabulary"):
            KnownWords.load(tmp_path)
