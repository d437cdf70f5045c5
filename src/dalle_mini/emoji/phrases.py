"""How people ask: styles, numbers, requests, slips of the pen, and words that mean nothing to the model."""

import random
import re
from collections.abc import Collection

from dalle_mini.emoji.captions import pick, with_article
from dalle_mini.emoji.nouns import noun_phrase, plural, takes_article

# Adjectives before the noun, and what follows a comma or "in".
STYLE_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "noto": (
        ("noto", "google", "noto style"),
        (
            "noto style",
            "in noto style",
            "in the style of noto",
            "google style",
            "in the style of google",
            "android style",
        ),
    ),
    "3d": (
        ("3d", "3d", "3d rendered", "three-dimensional", "glossy 3d"),
        ("3d", "in 3d", "3d render", "3d style", "in the style of fluent 3d", "as a 3d render", "rendered in 3d"),
    ),
    "flat": (
        ("flat", "flat", "fluent flat", "flat style"),
        (
            "flat",
            "flat drawing",
            "flat style",
            "in flat style",
            "flat design",
            "in the style of fluent",
            "as a flat drawing",
        ),
    ),
    "twemoji": (
        ("twemoji", "twitter", "twemoji style"),
        ("twemoji style", "in twemoji style", "in the style of twemoji", "twitter style", "in the style of twitter"),
    ),
    "openmoji": (("openmoji",), ("openmoji style", "in the style of openmoji")),
    "openmoji-black": (("outlined",), ("line drawing", "as a line drawing", "in black and white lines")),
}

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# A number that is left open, and what it may be.
SOME: dict[str, tuple[int, ...]] = {
    "": (2, 3, 4),
    "some": (2, 3, 4, 5),
    "several": (4, 5, 6),
    "many": (7, 8, 9),
    "lots of": (7, 8, 9),
    "a few": (3, 4),
    "a couple of": (2,),
    "a pair of": (2,),
}

REQUESTS = (
    "please draw {it}",
    "draw {it}",
    "draw me {it}",
    "can you draw {it}",
    "can you draw {it} please",
    "show me {it}",
    "i want {it}",
    "make {it}",
    "make a picture of {it}",
    "a picture of {it}",
    "a picture of {it}",
    "picture of {it}",
    "an image of {it}",
    "a drawing of {it}",
    "an illustration of {it}",
    "an emoji of {it}",
    "{it} as an emoji",
    "{it} please",
)

# Said of pictures by people, and shown by none of ours. `UNSEEN` is kept for asking a model: training never says it.
_MEANINGLESS_WORDS = """
    beautiful amazing awesome nice lovely pretty wonderful gorgeous stunning incredible fantastic magnificent
    epic detailed intricate realistic photorealistic hyperrealistic cinematic dramatic surreal abstract modern
    vintage retro futuristic steampunk cyberpunk minimalist baroque gothic medieval ancient antique classic
    elegant fancy luxurious cozy quirky whimsical playful cheeky clumsy lazy brave noble humble famous legendary
    mysterious mystical enchanted haunted sacred cursed fluffy furry fuzzy hairy smooth rough rusty dusty dirty
    shiny sparkling glowing glittering wooden metallic plastic ceramic marble velvet woolen knitted crocheted
    handmade painted sculpted embroidered woven australian brazilian canadian egyptian french german greek
    italian mexican norwegian polish scottish spanish swiss gentle grumpy hungry thirsty sleepy tired bored
    curious clever wise foolish jealous nervous proud shy stubborn wandering drifting floating dreaming thinking
    waiting resting working studying traveling celebrating
"""
MEANINGLESS = tuple(_MEANINGLESS_WORDS.split())
TRAILING = (
    "4k",
    "8k",
    "hd",
    "high quality",
    "best quality",
    "masterpiece",
    "highly detailed",
    "trending",
    "digital art",
    "concept art",
    "studio lighting",
    "soft light",
    "golden hour",
    "oil painting",
    "watercolor",
    "pencil sketch",
    "pixel art",
    "by van gogh",
    "by picasso",
    "by monet",
    "at work",
    "in paris",
    "in the city",
    "in the forest",
    "on holiday",
    "for my sister",
    "thank you",
)
_UNSEEN_WORDS = """
    adorable ambitious bohemian charismatic cosmic dazzling dystopian eccentric effervescent ethereal exuberant
    feral flamboyant frosted glamorous gloomy holographic iridescent jubilant kaleidoscopic lackadaisical
    luminous majestic melancholic nostalgic opulent ornate peculiar pensive psychedelic quizzical rambunctious
    regal rustic serene solitary splendid suspicious tattered translucent turbulent unusual velvety victorian
    wistful zealous
"""
UNSEEN = tuple(_UNSEEN_WORDS.split())
_SYLLABLES = """
    b bl br c ch cl cr d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sn st t th tr v w z
    a e i o u ai ee oo ou ar er or
    b ck d f g l ll m mp n nd ng nk p r rg rt s sh st t th x z
"""
_STARTS, _MIDDLES, _ENDS = (line.split() for line in _SYLLABLES.strip().splitlines())
_KEYS = "asdfghjklqwertyuiopzxcvbnm"


def nonsense(rng: random.Random, known: Collection[str] = ()) -> str:
    """A word that nobody knows: "blorfing", "asdfgh". None of `known`."""
    while True:
        kind = rng.random()
        if kind < 0.15:
            start = int(rng.random() * 20)
            word = _KEYS[start : start + 4 + int(rng.random() * 6)]
        else:
            count = 1 if kind < 0.4 else 2
            word = "".join(pick(rng, _STARTS) + pick(rng, _MIDDLES) for _ in range(count)) + pick(rng, _ENDS)
            word += pick(rng, ("", "", "y", "ing", "o", "le"))
        if word not in known and word not in UNSEEN:
            return word


def empty_word(rng: random.Random, known: Collection[str] = ()) -> str:
    """An adjective that no picture shows, or nonsense."""
    if rng.random() < 0.5:
        word = pick(rng, MEANINGLESS)
        if word not in known:
            return word
    return nonsense(rng, known)


def with_empty_words(rng: random.Random, caption: str, known: Collection[str] = ()) -> str:
    """A caption that says something more, of which no picture shows anything."""
    kind = rng.random()
    if kind < 0.30:
        return f"{caption}, {pick(rng, TRAILING)}"
    if kind < 0.45:
        return f"{caption}, {pick(rng, TRAILING)}, {pick(rng, TRAILING)}"
    if kind < 0.60:
        return f"{caption} {empty_word(rng, known)}"
    if kind < 0.72:
        return f"{empty_word(rng, known)} {caption}"
    if kind < 0.86:
        return f"{caption} {pick(rng, ('named', 'called'))} {nonsense(rng, known)}"
    return f"{caption} {pick(rng, ('with', 'and'))} {with_article(nonsense(rng, known))}"


def counted(rng: random.Random, noun: str, count: int | None, said: str = "", adjectives: str = "") -> str:
    """A noun with its number: "three small cats", "3 cats"; where `count` is None with `said`, a key of `SOME`.

    `adjectives` end with a space or are nothing.
    """
    number = said
    if count is not None:
        number = str(count) if rng.random() < 0.4 else NUMBERS[count]
    return f"{number} {adjectives}{plural(noun)}".strip()


def one_of(noun: str, adjectives: str = "", bare: bool = False) -> str:
    """A noun with its article, or none where it is `bare`: "a small cat", "grapes". Adjectives as in `counted`."""
    if bare:
        return adjectives + noun
    if adjectives and takes_article(noun):
        return with_article(adjectives + noun)
    return noun_phrase(noun, adjective=adjectives.strip() or None)


def misspelt(rng: random.Random, caption: str, known: Collection[str]) -> str:
    """A caption with a slip in one of its longer words: a letter missing, doubled, or two letters swapped.

    No slip makes one of the `known` words of another. A caption of short words stays as it is.
    """
    places = [found.span() for found in re.finditer(r"[a-z]{4,}", caption)]
    if not places:
        return caption
    start, end = pick(rng, places)
    word = caption[start:end]
    at = 1 + int(rng.random() * (len(word) - 2))
    kind = rng.random()
    if kind < 0.45:
        slip = word[:at] + word[at + 1 :]
    elif kind < 0.85:
        slip = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        slip = word[:at] + word[at] + word[at:]
    return caption if slip in known else caption[:start] + slip + caption[end:]


def capitals(rng: random.Random, caption: str) -> str:
    """The caption with capital letters as people put them."""
    kind = rng.random()
    if kind < 0.6:
        return caption[:1].upper() + caption[1:]
    return caption.title() if kind < 0.8 else caption.upper()
