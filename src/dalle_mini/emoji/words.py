"""The words that people have for the things: names, everyday and general words, and the keywords of the Unicode CLDR.

"fox" is one thing. "flower" is any of nine: a general word asks for any of its things. Keywords are said alone, without
an article: "halloween", "birthday".
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dalle_mini.emoji.art import Emoji
from dalle_mini.emoji.nouns import EVERYDAY_NAMES, is_counted, spoken
from dalle_mini.emoji.packages import CLDR, FETCH, default_folder, read_members
from dalle_mini.emoji.things import things
from dalle_mini.errors import UserError
from dalle_mini.runtime.files import write_whole

ANNOTATIONS = f"annotations-{CLDR.version}.json"
_LETTERS = re.compile(r"[a-z]+([ '-][a-z]+)*")
COMMON = 12  # a keyword of more things than these says too little

# Keywords that have another meaning in a caption, or none that a picture can show.
_UNSAID_WORDS = """
    above across after all and at back before behind below beside between big bottom center corner down facing
    for from front fun gay get give good great half have hot huge in inside it its large left lesbian lgbt lgbtq
    little look many me middle mini my new next no not of off old on one out over pair please point right see
    sexy sexual shape short side small some style tall the thing three tiny to top turn two under underneath up
    use very want way with without yes you black blue brown dark gray green orange pink purple red white
    yellow color flat cartoon draw picture pic pics google twitter android microsoft noto emoji
"""
UNSAID = frozenset(_UNSAID_WORDS.split())

# A noun, and the things that it may be, chosen by eye.
GENERAL: dict[str, Sequence[str]] = {
    "animal": "🐁🐄🐅🐇🐈🐊🐋🐌🐍🐎🐐🐑🐒🐓🐔🐕🐖🐘🐙🐢🐦🐧🐨🐪🐬🐸🐹🐺🐻🐼🦀🦁🦅🦆🦇🦈🦉🦊🦌🦍🦏🦒🦓🦔🦘🦚🦜🦝🦞🦢🦩",
    "pet": "🐇🐈🐕🐱🐶🐹",
    "cat": "🐈🐱",
    "kitten": "🐈🐱",
    "kitty": "🐈🐱",
    "dog": "🐕🐶🐩🦮",
    "puppy": "🐕🐶",
    "pig": "🐖🐷",
    "cow": "🐄🐮",
    "tiger": "🐅🐯",
    "horse": "🐎🐴",
    "pony": "🐎🐴",
    "monkey": "🐒🙈",
    "dragon": "🐉🐲",
    "dinosaur": "🦕🦖",
    "dino": "🦕🦖",
    "chick": "🐣🐤🐥",
    "bird": "🐦🐧🦅🦆🦉🦚🦜🦢🦩🕊🦃🦤🐓🐔🐤",
    "fish": "🐟🐠🦈",
    "insect": "🐛🐝🐞🦋🐜🪲",
    "sea animal": "🐙🐋🐬🐟🐠🦈🦀🦞🪼🦑🦭",
    "bunny": "🐇",
    "creature": "👻👽👾👹👺🧌🐉🦄🤖",
    "monster": "👹👺🧌👾🧟🐉",
    "flower": "🌷🌸🌹🌺🌻💐🪷🥀",
    "tree": "🌲🌳🌴🎋",
    "plant": "🌱🌲🌳🌴🌵🌷🌸🌹🌺🌻🍀🪴🌾🌿",
    "leaf": "🍁🍀🌿",
    "fruit": "🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🫐🥭🥥",
    "berry": "🍓🫐🍒",
    "apple": "🍎🍏",
    "vegetable": "🍅🍆🌽🌶🥑🥒🥕🥦🧄🥗",
    "food": "🌭🌮🍔🍕🍗🍜🍞🍟🍣🥐🥞🥪🧀🍳🍙🍝🥗",
    "snack": "🍟🍪🍿🥨🍫🍩🍘🥜",
    "dessert": "🍦🍩🍪🍫🍰🧁🎂🍨🍮🍧🥧",
    "sweet": "🍬🍭🍫🍪🍩🧁",
    "candy": "🍬🍭🍫",
    "cake": "🍰🎂🧁",
    "ice cream": "🍦🍨",
    "drink": "🍷🍸🍹🍺🥤☕🍶🧃",
    "glass": "🍷🍸🥃🥂",
    "vehicle": "🚁🚂🚌🚑🚒🚓🚕🚗🚚🚜🚲🛵🛻🏍🏎🚐🚙🚛🚝",
    "car": "🚗🚓🚕🏎🚙🚘",
    "bus": "🚌🚍🚎🚐",
    "truck": "🚚🛻🚒🚛",
    "train": "🚂🚄🚅🚆",
    "boat": "⛵🚢",
    "ship": "🚢⛵",
    "plane": "✈🛩🛫",
    "airplane": "✈🛩",
    "aircraft": "✈🛩🚁",
    "bike": "🚲🏍",
    "building": "⛪🏛🏠🏭🏰🗼🏢🏣🏤🏥🏨🏪🏫🏯🕌🛕",
    "house": "🏠🏡🏘🏚",
    "home": "🏠🏡",
    "castle": "🏰🏯",
    "church": "⛪",
    "tent": "⛺🎪",
    "mountain": "⛰🗻🌋",
    "tool": "🔨⚒🪓✂🔦🗜",
    "weapon": "🏹⚔🔪🔫🔱",
    "instrument": "🎷🎸🎹🎺🎻🥁🪗🪘🪇",
    "musical instrument": "🎷🎸🎹🎺🎻🥁🪗🪘🪇",
    "drum": "🥁🪘",
    "toy": "🧸🪁🪆🧩🪅",
    "game": "🎮🎯🎱🎲🎳🃏🎰🕹",
    "ball": "⚽⚾🎾🏀🏈🎱🏉🥎",
    "hat": "🎩👒🧢🎓",
    "shoe": "👟👠👡👢🥾🩰",
    "clothes": "👔👕👖👗👘👙🧥🥼",
    "glasses": "👓🕶🥽",
    "bag": "🎒👜💼🛍👝👛",
    "jewel": "💎💍👑",
    "heart": "❤💓💕💘💜💞🖤🤍",
    "star": "⭐🌠",
    "moon": "🌕🌙🌒🌓🌔🌖🌗🌘🌛🌜",
    "planet": "🪐🌎🌍",
    "cloud": "☁🌧🌤🌦⛅",
    "clock": "⏰🕰⌚",
    "book": "📕📚📘📒",
    "phone": "☎📱📞",
    "computer": "💻🖥",
    "camera": "📷🎥",
    "light": "💡🔦🕯",
    "lamp": "🛋🪔💡",
    "umbrella": "☂🌂⛱",
    "balloon": "🎈",
    "knife": "🔪🍴",
    "chair": "🪑💺",
    "furniture": "🪑🛋🛏",
    "letter": "✉📩",
    "money": "💰💵💸",
    "flag": "🏁🏴🚩🏳🎌",
    "medal": "🎖",
    "man": "👨👴🤵🕺🎅🤴",
    "woman": "👩👵💃👸🤶👰",
    "boy": "👦",
    "girl": "👧",
    "kid": "👦👧👶",
    "child": "👦👧👶",
    "person": "👨👩👦👧👴👵👮👷🏃🚶🏄🚴",
    "grandma": "👵",
    "grandmother": "👵",
    "grandpa": "👴",
    "grandfather": "👴",
    "cop": "👮",
    "king": "🤴",
    "queen": "👸",
    "wizard": "🧙",
    "mermaid": "🧜",
    "dancer": "💃🕺",
    "runner": "🏃",
    "face": "😀😍😎😡😭😈🤠🤡🤢🥶😇😤😱😷🤗🤣🤧🤪🥰🥳🥵🫠",
    "smiley": "😀😍😎😇🤗🤣🥰🥳🤪",
    "smiley face": "😀😍😎😇🤗🤣🥰🥳🤪",
    "happy face": "😀😍😎😇🤗🤣🥰🥳",
    "smiling face": "😀😍😎😇🤗🥰",
    "sad face": "😭",
    "crying face": "😭",
    "angry face": "😡😤",
    "laughing face": "🤣😀",
    "cool face": "😎",
    "scared face": "😱",
    "sick face": "🤢😷🤧",
    "silly face": "🤪🤡",
    "love": "❤😍🥰💘💕",
    # Plain words for things that the CLDR names otherwise.
    "pumpkin": "🎃",
    "cheese": "🧀",
    "soup": "🍜",
    "noodles": "🍜🍝",
    "salad": "🥗",
    "toast": "🍞",
    "chocolate": "🍫",
    "honey": "🍯",
    "corn": "🌽",
    "coffee": "☕",
    "tea": "🫖",
    "juice": "🧃🥤",
    "wine": "🍷🍾",
    "cocktail": "🍸🍹",
    "mug": "☕🍺",
    "grape": "🍇",
    "cherry": "🍒",
    "blueberry": "🫐",
    "kiwi": "🥝",
    "peanut": "🥜",
    "pepper": "🌶",
    "chili": "🌶",
    "hotdog": "🌭",
    "squirrel": "🐿",
    "tortoise": "🐢",
    "alligator": "🐊",
    "bull": "🐂",
    "trex": "🦖",
    "earth": "🌍🌎",
    "globe": "🌍🌎",
    "saturn": "🪐",
    "lightning": "⚡",
    "sunset": "🌅",
    "beach": "🏖🏝",
    "bridge": "🌉",
    "tower": "🗼",
    "temple": "🛕🏛",
    "carousel": "🎠",
    "circus": "🎪",
    "spaceship": "🚀🛸",
    "rocket ship": "🚀",
    "shirt": "👕👔",
    "jacket": "🧥",
    "sandal": "👡",
    "diamond ring": "💍",
    "keyboard": "🎹",
    "puzzle": "🧩",
    "teddy": "🧸",
    "firework": "🎇",
    "fireworks": "🎇",
    "confetti": "🎊",
    "sword": "⚔",
    "gun": "🔫",
    "lock": "🔒",
    "map": "🗺",
    "newspaper": "🗞",
    "mailbox": "📪📬",
    "pen": "✒",
    "ruler": "📐",
    "chart": "📈📊",
    "dollar": "💵",
    "kiss": "💋",
    "poop": "💩",
    "angel": "👼",
    "santa": "🎅",
    "surfer": "🏄",
    "swimmer": "🏊",
    "cyclist": "🚴",
    "bride": "👰",
    "doctor": ("🧑\u200d⚕",),
    "nurse": ("🧑\u200d⚕",),
    "chef": ("🧑\u200d🍳",),
    "scientist": ("🧑\u200d🔬",),
}


@dataclass(frozen=True)
class Word:
    """A noun phrase in the singular, and the things that it may be."""

    text: str
    things: tuple[Emoji, ...]
    counted: bool


class Lexicon:
    """The words of some things.

    Attributes:
        emoji: the things, in their order.
        general: nouns for several things, or for one that has another name.
        keywords: the CLDR's other words of the things, said alone: "halloween".

    Args:
        annotations: characters -> (name, keywords), as `read_annotations` gives them.
        emoji: `things()` if None.
    """

    def __init__(self, annotations: dict[str, tuple[str, list[str]]], emoji: Sequence[Emoji] | None = None):
        self.emoji = tuple(things() if emoji is None else emoji)
        by_character = {one.characters.replace("\ufe0f", ""): one for one in self.emoji}
        self.general: dict[str, Word] = {}
        for text, characters in GENERAL.items():
            if found := tuple(by_character[one] for one in characters if one in by_character):
                self.general[text] = Word(text, found, is_counted(text))
        self.names = {one: _names(one) for one in self.emoji}
        nouns = set(self.general).union(*self.names.values())
        keywords: dict[str, list[Emoji]] = {}
        for plain, one in by_character.items():
            for keyword in annotations.get(plain, ("", []))[1]:
                text = keyword.lower().replace("’", "'")
                if text not in nouns and not UNSAID & set(text.split()) and _LETTERS.fullmatch(text):
                    keywords.setdefault(text, []).append(one)
        self.keywords = {
            text: Word(text, tuple(found), False) for text, found in keywords.items() if len(found) <= COMMON
        }
        self._of: dict[Emoji, tuple[list[Word], list[Word]]] = {one: ([], []) for one in self.emoji}
        for place, table in enumerate((self.general, self.keywords)):
            for word in table.values():
                for one in word.things:
                    self._of[one][place].append(word)

    def general_words(self, emoji: Emoji) -> list[Word]:
        """The general words that the thing may be asked for by."""
        return self._of[emoji][0]

    def keywords_of(self, emoji: Emoji) -> list[Word]:
        return self._of[emoji][1]

    def relatives(self, text: str) -> list[str]:
        """Names of the things of a keyword, or of of those that share a general word with a noun's things.

        The nearest come first. Words of very many things ("animal") say too little.
        """
        meant = self.meant_by(text)
        shared: Counter[Emoji] = Counter({one: 1 for one in meant if text in self.keywords})
        for one in meant:
            for word in self.general_words(one):
                if len(word.things) <= 2 * COMMON:
                    shared.update({other: 1 / len(word.things) for other in word.things if other not in meant})
        kin = [one for one, _ in shared.most_common()]
        return [min(self.names[one], key=lambda name: (" " in name, name not in one.name)) for one in kin]

    def meant_by(self, text: str) -> tuple[Emoji, ...]:
        """The things that a word in the singular may ask for; none if it is no word of the world."""
        named = [one for one, names in self.names.items() if text in names]
        for table in (self.general, self.keywords):
            if text in table:
                named += [one for one in table[text].things if one not in named]
        return tuple(named)


def _names(one: Emoji) -> tuple[str, ...]:
    """The names of one thing alone, the usual one first."""
    names = [spoken(one.name), *EVERYDAY_NAMES.get(one.name, ()), one.name]
    return tuple(dict.fromkeys(names))


def write_annotations(package: Path, path: Path, emoji: Iterable[str]) -> None:
    """Keep the English names and keywords of some emoji, given by their characters, from the CLDR's package."""
    (content,) = read_members(package, "annotations/en/annotations.json")
    table = json.loads(content)["annotations"]["annotations"]
    kept = {}
    for characters in emoji:
        plain = characters.replace("\ufe0f", "")
        if entry := table.get(plain) or table.get(characters):
            kept[plain] = [entry["tts"][0], entry["default"]]
    write_whole(path, json.dumps(kept, ensure_ascii=False, indent=0))


def read_annotations(folder: str | Path | None = None) -> dict[str, tuple[str, list[str]]]:
    """Characters without variation selectors -> (name, keywords). Raises UserError if the file is missing."""
    path = Path(folder if folder is not None else default_folder()) / ANNOTATIONS
    try:
        return {one: (name, keywords) for one, (name, keywords) in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: names and keywords are not there; fetch them with: {FETCH}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, then run: {FETCH}") from None


@lru_cache(maxsize=4)
def lexicon(folder: str | Path | None = None) -> Lexicon:
    """The words of all `things()`."""
    return Lexicon(read_annotations(folder))
