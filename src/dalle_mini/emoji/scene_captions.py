"""The sentences of the emoji scenes: relations, numbers, sizes and backgrounds, each in several wordings."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dalle_mini.emoji.captions import SIZE_WORDS, pick, with_article
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, LEFT_OF
from dalle_mini.emoji.nouns import EVERYDAY_NAMES, is_counted, is_plural, noun_phrase, spoken

EVERYDAY_NAME_SHARE = 0.3  # how often a thing goes by an everyday name, where it has one


@dataclass(frozen=True)
class Relation:
    """One of the relations that a caption can name, of a subject to an object.

    Attributes:
        fact: what the picture states, a name of `scene_layout.FACTS`.
        forward: whether the fact is of the subject (left of) or of the object (right of); None: either will do.
        phrases: what stands between subject and object; the first is the commonest.
        attached: what follows "{object} with {subject}"; {it} and {its} are the object.
        both: a sentence that says where each stands, or None.
        touching: whether what is above stands on what is below; None: as it comes.
    """

    fact: str
    forward: bool | None
    phrases: tuple[str, ...]
    attached: str
    both: str | None = None
    touching: bool | None = None


RELATIONS: dict[str, Relation] = {
    "left of": Relation(
        LEFT_OF,
        True,
        ("to the left of", "left of", "on the left of"),
        "on {its} left",
        "{subject} on the left and {object} on the right",
    ),
    "right of": Relation(
        LEFT_OF,
        False,
        ("to the right of", "right of", "on the right of"),
        "on {its} right",
        "{subject} on the right and {object} on the left",
    ),
    "next to": Relation(LEFT_OF, None, ("next to", "beside"), "next to {it}", "{subject} and {object} side by side"),
    "above": Relation(
        ABOVE, True, ("above", "over"), "above {it}", "{subject} at the top and {object} at the bottom", False
    ),
    "below": Relation(
        ABOVE, False, ("below", "beneath"), "below {it}", "{subject} at the bottom and {object} at the top", False
    ),
    "on top of": Relation(ABOVE, True, ("on top of", "on"), "on top", None, True),
    "under": Relation(ABOVE, False, ("under", "underneath"), "under {it}"),
    "in front of": Relation(IN_FRONT_OF, True, ("in front of",), "in front of {it}"),
    "behind": Relation(IN_FRONT_OF, False, ("behind",), "behind {it}"),
}

# {On} has its article, {on} has none. The first of each list is the commonest, so it stands more than once.
ON_BACKGROUND = (
    "{scene} on {On}",
    "{scene} on {On}",
    "{scene} on {On}",
    "{scene}, {on}",
    "{On} with {scene}",
    "a picture of {scene} on {On}",
)
WITHOUT_BACKGROUND = ("{scene}", "{scene}", "{scene}", "a picture of {scene}")
THERE_IS_SHARE = 0.12

# Vertical gradients that have a name: colours at the top and at the bottom.
NAMED_GRADIENTS: dict[tuple[str, str], str] = {
    ("purple", "orange"): "sunset",
    ("pink", "yellow"): "sunrise",
    ("blue", "light blue"): "sky",
    ("light blue", "blue"): "sea",
    ("black", "blue"): "night",
    ("red", "yellow"): "fire",
    ("light blue", "green"): "meadow",
    ("pink", "light blue"): "candy",
}
DOWN, ACROSS = DIRECTIONS = ("down", "across")
GRADIENTS = {
    DOWN: (
        "a background from {a} to {b}",
        "a background from {a} to {b}",
        "a gradient from {a} to {b}",
        "a background from {a} at the top to {b} at the bottom",
        "a vertical gradient from {a} to {b}",
    ),
    ACROSS: (
        "a background from {a} on the left to {b} on the right",
        "a left to right gradient from {a} to {b}",
        "a horizontal gradient from {a} to {b}",
    ),
}


@dataclass(frozen=True)
class Mention:
    """A caption's words for some equal emoji: "two small mice" is Mention("mouse", 2, "small")."""

    name: str
    count: int = 1
    size: str | None = None


def called(rng: random.Random, name: str, count: int = 1) -> str:
    """The word for an emoji: its spoken name, or at times one of its everyday names. `count` of them can be counted."""
    usual = spoken(name)
    names = EVERYDAY_NAMES.get(name, ())
    if names and rng.random() < EVERYDAY_NAME_SHARE:
        usual = pick(rng, names)
    return usual if count == 1 or is_counted(usual) else spoken(name)


def phrase(rng: random.Random, mention: Mention) -> tuple[str, bool]:
    """A mention with its article or number, and whether it is a plural."""
    word = called(rng, mention.name, mention.count)
    adjective = pick(rng, SIZE_WORDS[mention.size]) if mention.size else None
    return noun_phrase(word, mention.count, adjective), mention.count > 1 or is_plural(word)


def counted_caption(rng: random.Random, mention: Mention, in_a_row: bool) -> str:
    """ "three mice", "three mice in a row", "there are two small wolves"."""
    scene, _ = phrase(rng, mention)
    if in_a_row and rng.random() < 0.25:
        scene += " in a row" if mention.count > 2 else " side by side"
    return _there_is(rng, scene, plural=True)


def pair_caption(rng: random.Random, subject: Mention, relation: str, object: Mention) -> str:
    """One of the wordings for a subject in a relation to an object; `relation` is a key of `RELATIONS`."""
    first = phrase(rng, subject)
    return related(rng, first, relation, phrase(rng, object))


def related(rng: random.Random, subject: tuple[str, bool], relation: str, object: tuple[str, bool]) -> str:
    """As `pair_caption`, of noun phrases and whether they are plurals."""
    words = RELATIONS[relation]
    (first, first_plural), (second, second_plural) = subject, object
    style = rng.random()
    if style < 0.15:
        it = {"it": "them", "its": "their"} if second_plural else {"it": "it", "its": "its"}
        return f"{second} with {first} {words.attached.format(**it)}"
    if style < 0.27 and words.both:
        return words.both.format(subject=first, object=second)
    between = pick(rng, (words.phrases[0], *words.phrases))
    return _there_is(rng, f"{first} {between} {second}", first_plural)


def between_caption(rng: random.Random, middle: Mention, ends: Sequence[Mention], direction: str) -> str:
    """ "a cat between a dog and a snail", "a cat between two dogs"; `ends` in their order in the picture."""
    inner, plural = phrase(rng, middle)
    if ends[0].name == ends[1].name:
        outer, _ = phrase(rng, Mention(ends[0].name, 2))
        return _there_is(rng, f"{inner} between {outer}", plural)
    one, other = (phrase(rng, end)[0] for end in ends)
    style = rng.random()
    if style < 0.2:
        return f"{one}, {inner} and {other} {'from left to right' if direction == ACROSS else 'from top to bottom'}"
    if rng.random() < 0.5:
        one, other = other, one
    if style < 0.4:
        return f"{one} and {other} with {inner} between them"
    return _there_is(rng, f"{inner} between {one} and {other}", plural)


def pair_with_one_caption(rng: random.Random, pair: Sequence[Mention], relation: str, one: Mention) -> str:
    """ "a cat and a dog under a rainbow": two different things in one relation to a third."""
    first, second = (phrase(rng, mention)[0] for mention in pair)
    third, _ = phrase(rng, one)
    between = pick(rng, (RELATIONS[relation].phrases[0], *RELATIONS[relation].phrases))
    return f"{first} and {second} {between} {third}"


def single_caption(rng: random.Random, word: str, size_word: str | None, place: str | None) -> str:
    """ "a small snail in the top left corner"."""
    adjective = pick(rng, SIZE_WORDS[size_word]) if size_word else None
    return noun_phrase(word, adjective=adjective) + (f" {place}" if place else "")


def on_background(rng: random.Random, scene: str, background: str | None) -> str:
    """A scene's words with those of its background, which has its article; None is not said."""
    if background is None:
        return scene if scene.startswith("there ") else pick(rng, WITHOUT_BACKGROUND).format(scene=scene)
    template = ON_BACKGROUND[0] if scene.startswith("there ") else pick(rng, ON_BACKGROUND)
    return template.format(scene=scene, On=background, on=background.split(" ", 1)[1])


def color_words(color: str) -> str:
    return with_article(f"{color} background")


def gradient_words(rng: random.Random, colors: tuple[str, str], direction: str) -> str:
    """A gradient with its article: "a background from blue to pink", "a sunset gradient"."""
    named = NAMED_GRADIENTS.get(colors) if direction == DOWN else None
    if named and rng.random() < 0.75:
        return with_article(f"{named} {pick(rng, ('gradient', 'background'))}")
    return pick(rng, GRADIENTS[direction]).format(a=colors[0], b=colors[1])


def _there_is(rng: random.Random, scene: str, plural: bool) -> str:
    if rng.random() >= THERE_IS_SHARE:
        return scene
    return f"there {'are' if plural else 'is'} {scene}"
