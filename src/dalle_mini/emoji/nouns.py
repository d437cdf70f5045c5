"""Names of emoji in a sentence: everyday names, plurals, and people's gender, hair and skin.

The names are the Unicode CLDR's, which are not always what one would say: "automobile" is also "car" here, "locked" is
only "padlock", "woman firefighter medium-dark skin tone" is "woman firefighter with medium-dark skin".
"""

import re
from functools import lru_cache

from dalle_mini.emoji.captions import has_article, with_article

# CLDR names that are no nouns, or that hold a size word, and what stands for them in every sentence.
RENAMED = {
    "airplane arrival": "landing airplane",
    "airplane departure": "departing airplane",
    "badminton": "badminton racket",
    "black large square": "black square",
    "bowling": "bowling ball",
    "building construction": "construction site",
    "camping": "campsite",
    "chart decreasing": "falling chart",
    "chart increasing": "rising chart",
    "chart increasing with yen": "rising chart with a yen sign",
    "construction": "construction barrier",
    "cooking": "frying pan",
    "cricket game": "cricket bat",
    "face holding back tears": "tearful face",
    "field hockey": "hockey stick",
    "flag in hole": "golf flag",
    "fleur-de-lis": "royal lily",
    "headphone": "headphones",
    "high voltage": "lightning bolt",
    "globe showing americas": "globe with the americas",
    "globe showing asia-australia": "globe with asia and australia",
    "globe showing europe-africa": "globe with europe and africa",
    "breast-feeding": "breast-feeding mother",
    "horse racing": "jockey on a horse",
    "hourglass done": "hourglass",
    "hourglass not done": "running hourglass",
    "ice hockey": "ice hockey stick",
    "lacrosse": "lacrosse stick",
    "large blue diamond": "blue diamond",
    "large orange diamond": "orange diamond",
    "light rail": "light rail train",
    "locked": "padlock",
    "luggage": "suitcase",
    "magnifying glass tilted left": "magnifying glass",
    "mate": "mate drink",
    "meat on bone": "piece of meat on a bone",
    "money with wings": "flying banknote",
    "moon viewing ceremony": "moon viewing scene",
    "performing arts": "theater masks",
    "person in suit levitating": "levitating person in a suit",
    "ping pong": "ping pong paddle",
    "red triangle pointed up": "red triangle",
    "rolling on the floor laughing": "face rolling with laughter",
    "small airplane": "light aircraft",
    "speaker high volume": "loud speaker",
    "speaker low volume": "quiet speaker",
    "speaker medium volume": "speaker",
    "star-struck": "star-struck face",
    "tennis": "tennis ball",
    "thread": "spool of thread",
    "two hearts": "pair of hearts",
    "umbrella on ground": "beach umbrella",
    "unlocked": "open padlock",
    "warning": "warning sign",
    "white large square": "white square",
    "yarn": "ball of yarn",
}

# Other words for the same thing; each belongs to one emoji alone and is nobody's CLDR name.
EVERYDAY_NAMES: dict[str, tuple[str, ...]] = {
    "airplane": ("plane",),
    "alien monster": ("space invader",),
    "artist palette": ("palette",),
    "automobile": ("car", "red car"),
    "baby chick": ("chick",),
    "beer mug": ("beer", "mug of beer"),
    "billed cap": ("cap", "baseball cap"),
    "birthday cake": ("cake",),
    "bouquet": ("bunch of flowers",),
    "bug": ("caterpillar",),
    "classical building": ("greek temple",),
    "closed book": ("red book",),
    "cloud with rain": ("rain cloud",),
    "clown face": ("clown",),
    "cooked rice": ("bowl of rice",),
    "couch and lamp": ("sofa", "couch"),
    "cowboy hat face": ("cowboy",),
    "crescent moon": ("moon",),
    "crossed swords": ("swords",),
    "deciduous tree": ("tree",),
    "delivery truck": ("truck",),
    "desert island": ("island",),
    "desktop computer": ("computer",),
    "bullseye": ("dartboard", "target"),
    "doughnut": ("donut",),
    "droplet": ("drop of water",),
    "ear of corn": ("corncob",),
    "envelope": ("letter",),
    "evergreen tree": ("fir tree", "pine tree"),
    "ewe": ("sheep",),
    "fire": ("flame",),
    "fire engine": ("fire truck",),
    "flying saucer": ("ufo",),
    "four leaf clover": ("clover",),
    "french fries": ("fries",),
    "game die": ("die",),
    "gem stone": ("diamond", "gem"),
    "glass of milk": ("milk glass",),
    "hamburger": ("burger",),
    "high-heeled shoe": ("high heel",),
    "hippopotamus": ("hippo",),
    "honeybee": ("bee",),
    "hot beverage": ("cup of coffee", "coffee cup"),
    "jack-o-lantern": ("halloween pumpkin",),
    "kitchen knife": ("knife",),
    "lady beetle": ("ladybird", "ladybug"),
    "light bulb": ("lightbulb",),
    "locomotive": ("steam engine", "steam train"),
    "mobile phone": ("smartphone",),
    "motor scooter": ("scooter",),
    "motorcycle": ("motorbike",),
    "musical keyboard": ("piano",),
    "necktie": ("tie",),
    "package": ("box", "parcel"),
    "pickup truck": ("pickup",),
    "pool 8 ball": ("billiard ball",),
    "potted plant": ("house plant",),
    "puzzle piece": ("jigsaw piece",),
    "racing car": ("race car",),
    "red heart": ("heart",),
    "rhinoceros": ("rhino",),
    "ringed planet": ("planet",),
    "running shoe": ("sneaker",),
    "sailboat": ("sailing boat",),
    "sauropod": ("dinosaur",),
    "shortcake": ("piece of cake",),
    "snow-capped mountain": ("snowy mountain",),
    "soccer ball": ("football",),
    "soft ice cream": ("ice cream cone",),
    "spiral shell": ("shell", "seashell"),
    "t-rex": ("tyrannosaurus",),
    "telephone": ("phone",),
    "television": ("tv",),
    "top hat": ("magician's hat",),
    "video game": ("game controller", "gamepad"),
    "watch": ("wristwatch",),
    "water wave": ("wave",),
    "wine glass": ("glass of wine",),
    "woman's boot": ("boot",),
    "woman's hat": ("sun hat",),
    "wrapped gift": ("gift", "present"),
}

SKIN = ("light", "medium-light", "medium", "medium-dark", "dark")

# Stuff, and things of which there is only one, are never counted.
UNCOUNTED = frozenset({"coral", "custard", "fondue", "dango", "ice cream", "national park"})
_STUFF = frozenset({"bubble tea", "flatbread", "leafy green", "oden", "sake", "shaved ice", "stuffed flatbread"}) | {
    *("cheese", "soup", "salad", "toast", "chocolate", "honey", "corn", "coffee", "tea", "juice", "wine", "lightning"),
    *("confetti", "furniture", "saturn", "santa", "santa claus", "mrs claus", "mx claus"),
}
_PERSONS = ("man", "woman", "person")
_THE = frozenset({"earth", "kaaba", "statue of liberty", "tokyo tower"})

_SKIN_TONE = re.compile(rf" ({'|'.join(sorted(SKIN, key=len, reverse=True))}) skin tone")
_GENDER = re.compile(r"\b(wo)?man\b|\b(wo)?men\b")
_HAIR = re.compile(r"^(person|man|woman) (red hair|curly hair|white hair|blond hair|bald|beard)")
_AFTER_HEAD = re.compile(r" (?:of|with|without|in|on|over|behind|from|at|to|showing) ")

_PLURALS = {
    "child": "children",
    "die": "dice",
    "elf": "elves",
    "foot": "feet",
    "goose": "geese",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "tooth": "teeth",
    "wolf": "wolves",
}
_SAME_IN_PLURAL = ("aircraft", "bison", "deer", "fish", "moose", "sheep", "shrimp", "squid")
_ES_AFTER_O = ("buffalo", "hero", "mango", "mosquito", "potato", "tomato", "tornado", "volcano")


def without_skin(name: str) -> str:
    """The CLDR name of the same emoji in yellow: "woman firefighter dark skin tone" -> "woman firefighter"."""
    return _SKIN_TONE.sub("", name)


def variant(name: str) -> str | None:
    """The gender and skin that a CLDR name says, such as "woman, dark skin", "man" or "medium skin", or None."""
    gender, skin = _GENDER.search(name.replace("man's", "")), _SKIN_TONE.search(name)
    parts = []
    if gender and not name.startswith(("men ", "women ")):
        parts.append(gender.group())
    if skin:
        parts.append(f"{skin.group(1)} skin")
    return ", ".join(parts) or None


@lru_cache(maxsize=8192)
def spoken(name: str) -> str:
    """The noun phrase, without an article, for a CLDR name: most are their own."""
    skin = _SKIN_TONE.search(name)
    phrase = without_skin(name)
    phrase = RENAMED.get(phrase, phrase)
    if hair := _HAIR.match(phrase):
        person, looks = hair.groups()
        phrase = f"bald {person}" if looks == "bald" else f"{person} with {'a ' * (looks == 'beard')}{looks}"
    if skin:
        phrase += f"{' and ' if ' with ' in phrase else ' with '}{skin.group(1)} skin"
    return phrase


def takes_article(phrase: str) -> bool:
    """Whether a spoken name is a single thing, as `has_article` for names."""
    if phrase in _STUFF | _THE:
        return False
    return phrase.startswith(tuple(f"{person} " for person in _PERSONS)) or has_article(phrase)


def is_plural(phrase: str) -> bool:
    """Whether a spoken name is a plural by itself: "grapes are", but "bread is"."""
    head = _AFTER_HEAD.split(phrase, maxsplit=1)[0]
    return not takes_article(phrase) and head.endswith("s") and not head.endswith(("ss", "us"))


def is_counted(phrase: str) -> bool:
    """Whether there can be two of it: no stuff, nothing unique, no pair of things ("bow and arrow")."""
    head = _AFTER_HEAD.split(phrase, maxsplit=1)[0]
    return takes_article(phrase) and not {phrase, head} & UNCOUNTED and " and " not in head


def plural(phrase: str) -> str:
    """The plural of a spoken name: "two mice", "sheaves of rice", "women firefighters", "people running"."""
    tail = _AFTER_HEAD.search(phrase)
    head, rest = (phrase[: tail.start()], phrase[tail.start() :]) if tail else (phrase, "")
    words = [word.replace("man's", "men's") for word in head.split(" ")]
    doing = any(word.endswith("ing") for word in words[1:])  # "person running", "face screaming"
    if words[0] in _PERSONS or (words[0] == "face" and doing):
        words[0] = _plural_word(words[0])
        if doing or len(words) == 1:
            return " ".join(words) + rest
    words[-1] = _plural_word(words[-1])
    return " ".join(words) + rest


def _plural_word(word: str) -> str:
    stem, dash, last = word.rpartition("-")
    if last in _PLURALS:
        return stem + dash + _PLURALS[last]
    if word.endswith(_SAME_IN_PLURAL):
        return word
    if re.search(r"(?:^|wo|snow|mer|police)man$", word):
        return word[:-3] + "men"
    if word.endswith(_ES_AFTER_O) or re.search(r"(?:s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if word.endswith("scarf"):
        return word[:-1] + "ves"
    return word + "s"


def noun_phrase(phrase: str, count: int = 1, adjective: str | None = None) -> str:
    """A spoken name with its article or number: "an octopus", "two small octopuses", "grapes"."""
    if count > 1:
        words = [{2: "two", 3: "three"}[count], *([adjective] if adjective else []), plural(phrase)]
        return " ".join(words)
    noun = f"{adjective} {phrase}" if adjective else phrase
    if phrase in _THE:
        return f"the {noun}"
    return with_article(noun) if takes_article(phrase) else noun
