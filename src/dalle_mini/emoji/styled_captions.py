"""The captions of styled scenes: what of a scene is said, in which of a thing's words, and how people type it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dalle_mini.emoji.captions import PLACES, pick, with_article
from dalle_mini.emoji.nouns import is_counted, is_plural, spoken
from dalle_mini.emoji.phrases import (
    NUMBERS,
    REQUESTS,
    SOME,
    STYLE_WORDS,
    capitals,
    counted,
    empty_word,
    misspelt,
    nonsense,
    one_of,
    with_empty_words,
)
from dalle_mini.emoji.scene_captions import DOWN, NAMED_GRADIENTS, RELATIONS, related
from dalle_mini.emoji.scenes import Background, Thing
from dalle_mini.emoji.styled_layout import SIZES_SAID
from dalle_mini.emoji.words import Lexicon

GENERAL_SHARE, KEYWORD_SHARE, CHARACTER_SHARE = 0.30, 0.06, 0.04  # of the words for a single thing
CHARACTERS_SHARE = 0.05  # of the captions of several things name all of them by emoji characters
REPEATED = 5  # emoji characters at most for equal things: the seq2seq model reads the whole name of each
BARE_SHARE = 0.18  # of the captions have no articles
EMPTY_SHARE, REQUEST_SHARE, SLIP_SHARE, CAPITALS_SHARE = 0.10, 0.22, 0.05, 0.05
NONSENSE_SHARE = 0.01  # of the captions of single things are nothing else
NUMBER_OPEN_SHARE = 0.2
ADJECTIVE_SHARE = 0.4  # of the styles that are said stand before the noun

# {On} has its article, {on} has none, {color} is the colour alone.
GROUNDS = (
    "{scene} on {On}",
    "{scene} on {On}",
    "{scene} on {On}",
    "{scene}, {on}",
    "{scene} with {On}",
    "{On} with {scene}",
    "{scene} {on}",
)
ON_COLOR = "{scene} on {color}"


@dataclass(frozen=True)
class Said:
    """The parts of a scene's look that the caption says; None is left open."""

    ground: Background | None
    style: str | None


class Captioner:
    """Finds captions in the words of a lexicon. Each method is a pure function of the generator and the scene."""

    def __init__(self, words: Lexicon):
        self._words = words
        texts = (
            {text for names in words.names.values() for text in names} | words.general.keys() | words.keywords.keys()
        )
        self._known = frozenset(part for text in texts for part in text.split())

    def single(self, rng: random.Random, thing: Thing, told: Said, place: tuple[int, int] | None) -> str:
        """ "a small 3d fox in the top left corner on a blue background"."""
        if rng.random() < NONSENSE_SHARE and told == Said(None, None) and not (thing.size or thing.color or place):
            return " ".join(nonsense(rng, self._known) for _ in range(pick(rng, (1, 1, 2, 3))))
        bare, style, adjective = self._style(rng, told)
        word, alone = self._single_word(rng, thing)
        if alone and not (thing.size or thing.color or adjective):
            phrase = word
        else:
            phrase = one_of(word, self._adjectives(rng, thing, adjective), bare)
        if place:
            phrase += f" {pick(rng, PLACES[place])}"
        return self._finish(rng, phrase, told, style, bare)

    def counted(self, rng: random.Random, thing: Thing, size: str | None, count: int, told: Said) -> str:
        """ "three cats", "3 small cats", "cats", "some cats"."""
        bare, style, adjective = self._style(rng, told)
        characters = rng.random() < CHARACTERS_SHARE
        word = self._word(rng, thing, counted=True)
        adjectives = self._adjectives(rng, Thing(thing.emoji, thing.box, size, color=thing.color), adjective)
        opens = [said for said, counts in SOME.items() if count in counts]
        if characters:
            phrase = _counted_characters(rng, thing, count, adjectives)
        elif opens and rng.random() < NUMBER_OPEN_SHARE:
            phrase = counted(rng, word, None, pick(rng, opens), adjectives)
        else:
            phrase = counted(rng, word, count, adjectives=adjectives)
        return self._finish(rng, phrase, told, style, bare)

    def two(
        self, rng: random.Random, first: Thing, relation: str | None, second: Thing, told: Said, mixed: bool
    ) -> str:
        """Two things in a relation, a key of `RELATIONS`, or in any if None; `mixed`: each says its style."""
        bare, style, adjective = self._style(rng, Said(told.ground, None if mixed else told.style))
        styles = [self._style_adjective(rng, one.style) for one in (first, second)] if mixed else [adjective, ""]
        if adjective and rng.random() < 0.5:
            styles[1] = adjective
        characters = rng.random() < CHARACTERS_SHARE
        phrases = [
            self._phrase(rng, one, of, bare, characters) for one, of in zip((first, second), styles, strict=True)
        ]
        if relation is None:
            joint = pick(rng, (" and ", " and ", " and ", " with ", ", ", " & "))
            texts = [text for text, _ in phrases]
            scene = _side_by_side(rng, texts) if characters and rng.random() < 0.5 else joint.join(texts)
        else:
            scene = related(rng, phrases[0], relation, phrases[1])
        return self._finish(rng, scene, told, style, bare)

    def row(self, rng: random.Random, things: Sequence[Thing], told: Said) -> str:
        """Three things from the left to the right, as such or as they come."""
        bare, style, adjective = self._style(rng, told)
        characters = rng.random() < CHARACTERS_SHARE
        left, middle, right = (
            self._phrase(rng, one, adjective if one is things[0] else "", bare, characters)[0] for one in things
        )
        kind = rng.random()
        if kind < 0.3:
            scene = f"{left}, {middle} and {right}"
            scene += pick(rng, (" from left to right", " in a row, from left to right"))
        elif kind < 0.6:
            ends = [left, right]
            if rng.random() < 0.5:
                ends.reverse()
            scene = f"{middle} between {ends[0]} and {ends[1]}"
        else:
            three = [left, middle, right]
            three.sort(key=lambda _: rng.random())
            if characters:
                return self._finish(rng, _side_by_side(rng, three), told, style, bare)
            scene = f"{three[0]}, {three[1]}{pick(rng, (' and ', ' and ', ', ', ', and '))}{three[2]}"
        return self._finish(rng, scene, told, style, bare)

    def pair_with_one(self, rng: random.Random, pair: Sequence[Thing], relation: str, one: Thing, told: Said) -> str:
        """ "a cat and a dog under a rainbow", "two cats under a rainbow"."""
        bare, style, adjective = self._style(rng, told)
        first, second = pair
        characters = rng.random() < CHARACTERS_SHARE
        if first.emoji == second.emoji and characters:
            both = _counted_characters(rng, first, 2, self._adjectives(rng, first, ""))
        elif first.emoji == second.emoji:
            both = counted(rng, self._word(rng, first, counted=True), 2, adjectives=self._adjectives(rng, first, ""))
        else:
            phrases = [self._phrase(rng, each, "", bare, characters)[0] for each in pair]
            if rng.random() < 0.5:
                phrases.reverse()
            both = _side_by_side(rng, phrases) if characters and rng.random() < 0.5 else " and ".join(phrases)
        third, _ = self._phrase(rng, one, adjective, bare, characters)
        between = pick(rng, (RELATIONS[relation].phrases[0], *RELATIONS[relation].phrases))
        return self._finish(rng, f"{both} {between} {third}", told, style, bare)

    def _style(self, rng: random.Random, told: Said) -> tuple[bool, str, str]:
        """Whether there are no articles, the style as it follows the caption, and as it stands before a noun."""
        bare = rng.random() < BARE_SHARE
        if told.style is None:
            return bare, "", ""
        if rng.random() < ADJECTIVE_SHARE:
            return bare, "", self._style_adjective(rng, told.style)
        return bare, pick(rng, STYLE_WORDS[told.style][1]), ""

    @staticmethod
    def _style_adjective(rng: random.Random, style: str) -> str:
        return pick(rng, STYLE_WORDS[style][0])

    def _adjectives(self, rng: random.Random, thing: Thing, style: str) -> str:
        words = []
        if thing.size:
            words.append(pick(rng, SIZES_SAID[thing.size]))
        if rng.random() < EMPTY_SHARE / 2:
            words.append(empty_word(rng, self._known))
        colored = [one for one in (thing.color, style) if one]
        if len(colored) == 2 and rng.random() < 0.5:
            colored.reverse()
        return "".join(f"{one} " for one in words + colored)

    def _phrase(
        self, rng: random.Random, thing: Thing, style: str, bare: bool, characters: bool = False
    ) -> tuple[str, bool]:
        """A thing of several, with its article, and whether it is a plural; or its emoji characters, without one."""
        if characters:
            return self._adjectives(rng, thing, style) + thing.emoji.characters, False
        word = self._word(rng, thing)
        return one_of(word, self._adjectives(rng, thing, style), bare), is_plural(word)

    def _single_word(self, rng: random.Random, thing: Thing) -> tuple[str, bool]:
        """A word for a thing, and whether it stands alone, without an article."""
        lot = rng.random()
        if lot < CHARACTER_SHARE:
            return thing.emoji.characters, True
        if lot < CHARACTER_SHARE + KEYWORD_SHARE and (keywords := self._words.keywords_of(thing.emoji)):
            return pick(rng, keywords).text, True
        return self._word(rng, thing), False

    def _word(self, rng: random.Random, thing: Thing, counted: bool = False) -> str:
        """One of a thing's names, or a general word; one that can be counted where that is wanted."""
        general = [one for one in self._words.general_words(thing.emoji) if one.counted or not counted]
        if general and rng.random() < GENERAL_SHARE:
            return pick(rng, general).text
        names = self._words.names[thing.emoji]
        word = names[0] if rng.random() < 0.55 else pick(rng, names)
        return word if not counted or is_counted(word) else spoken(thing.emoji.name)

    def _finish(self, rng: random.Random, scene: str, told: Said, style: str, bare: bool) -> str:
        """A scene's words with its ground and style, as people type it."""
        # The style stands before the ground or after it.
        early = style and rng.random() < 0.3
        if early:
            scene = _with_style(rng, scene, style)
        if told.ground is not None:
            scene = _with_ground(rng, scene, told.ground, bare)
        if style and not early:
            scene = _with_style(rng, scene, style)
        if rng.random() < REQUEST_SHARE and not scene.startswith("there "):
            scene = pick(rng, REQUESTS).format(it=scene)
        if rng.random() < EMPTY_SHARE / 2:
            scene = with_empty_words(rng, scene, self._known)
        if rng.random() < SLIP_SHARE:
            scene = misspelt(rng, scene, self._known)
        if rng.random() < CAPITALS_SHARE:
            scene = capitals(rng, scene)
        return scene


def _side_by_side(rng: random.Random, phrases: Sequence[str]) -> str:
    """Emoji characters one after the other: "🐱🐶", "🐱 🐶", "🐱 small 🐶"."""
    has_words = any(phrase[0].isascii() for phrase in phrases[1:])
    return (" " if has_words else pick(rng, ("", " "))).join(phrases)


def _counted_characters(rng: random.Random, thing: Thing, count: int, adjectives: str) -> str:
    """Equal things by their emoji characters: "🐱🐱🐱", "3 🐱", "three small 🐱"."""
    if count <= REPEATED and not adjectives and rng.random() < 0.7:
        return thing.emoji.characters * count
    return f"{count if rng.random() < 0.7 else NUMBERS[count]} {adjectives}{thing.emoji.characters}"


def _with_style(rng: random.Random, scene: str, style: str) -> str:
    return f"{scene}{pick(rng, (', ', ', ', ' ')) if not style.startswith(('in ', 'as ')) else ' '}{style}"


def _with_ground(rng: random.Random, scene: str, ground: Background, bare: bool) -> str:
    if ground.direction == DOWN and ground.colors in NAMED_GRADIENTS:
        words = f"{NAMED_GRADIENTS[ground.colors]} {pick(rng, ('gradient', 'background'))}"
    else:
        words = f"{ground.colors[0]} background"
        if rng.random() < 0.08:
            return ON_COLOR.format(scene=scene, color=ground.colors[0])
    template = pick(rng, GROUNDS[:-1])
    if bare:
        template = pick(rng, (GROUNDS[0], GROUNDS[3], GROUNDS[-1]))
    return template.format(scene=scene, On=words if bare else with_article(words), on=words)
