"""The things of the world of styles: 704 that are easy to tell apart, and people. All of `STYLES` draw all of them.

They are written down, so that they depend on no font: the first are what `vocabulary.scene_emoji(distance=0.22)` found.
"""

from functools import lru_cache

from dalle_mini.emoji.art import Emoji, _known_emoji
from dalle_mini.emoji.vocabulary import PEOPLE, scene_candidates

THINGS = (
    "🐁🐄🐅🐇🐈🐉🐊🐋🐌🐍🐎🐐🐑🐒🐓🐔🐕🐖🐘🐙🐚🐛🐝🐞🐟🐠🐢🐣🐤🐦🐧🐨🐪🐬🐱🐶🐷🐸🐹🐺🐻🐼🦀🦁🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦏🦒"
    "🦓🦔🦕🦖🦘🦚🦜🦝🦞🦢🦩🪼🌱🌲🌳🌴🌵🌷🌸🌹🌺🌻🌽🍀🍁🍄💐🪴🪷🌭🌮🌶🍅🍆🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🍔🍕🍗🍙🍜🍞🍟🍣🍦🍩"
    "🍪🍫🍬🍭🍯🍰🍳🍷🍸🍹🍺🍼🍿🥐🥑🥒🥕🥚🥝🥞🥡🥤🥥🥦🥨🥩🥪🧀🧁🧄🧊🫐🫖☕☀☁☂☃⚡⭐❄🌈🌊🌋🌕🌙🌡🌧🔥💧🪐✈⛵🚀🚁🚂"
    "🚄🚌🚑🚒🚓🚕🚗🚚🚜🚢🚦🚨🚲🛟🛵🛸🛹🛻🏍🏎⛩⛪⛰⛲⛺🎡🎪🏛🏝🏠🏭🏰🗼🗽🗿⚽⚾⛸🎈🎉🎁🎂🎃🎨🎭🎮🎯🎱🎲🎳🎷🎸🎹🎺🎻🎾"
    "🏀🏆🏈🏓🏹🥁🥊🧩🧸🪁🪆🎀🎒🎓🎩👑👒👓👔👕👖👗👜👟👠👢💄💍💎🕶🧢🧣🧦☎⌚⏰⚓⚔⚙✂✉✏🎤🎥🎧💉💊💡💣💰💻💼📌📕📚📦"
    "📮📱📷📺📻🔋🔑🔔🔨🔬🔮🕯🖍🚪🚽🛋🛏🛑🧭🧯🧲🧳🧶🧹🪑🪓🪟🪣😀😍😎😡😭😈🤖🤠🤡🤢🥶👻👽👾💀💩❤🧠🦴🦷🐂🐜🐥🐩🐮🐯🐲🐴"
    "🐾🐿🕊🕷🕸🙈🦂🦃🦎🦐🦑🦙🦠🦡🦤🦥🦧🦨🦪🦫🦭🦮🪱🪲🪶🪸🪽🫎🌾🌿🍂🍃🎋🥀🌯🍖🍘🍛🍝🍠🍡🍢🍤🍧🍨🍮🍱🍴🍶🍻🍽🍾🥂🥃🥗🥜"
    "🥠🥣🥧🥬🥭🥯🧃🧈🧉🫒🫔🫕🫘🫚🫛⛅✨🌀🌂🌍🌎🌒🌓🌔🌖🌗🌘🌛🌜🌠🌤🌦🌪🌬💥💦🫧⛽💺🚃🚅🚆🚇🚈🚉🚊🚋🚍🚎🚏🚐🚔🚖🚘🚙🚛"
    "🚝🚞🚟🚠🚡🚧🛞🛣🛤🛩🛫🛰🛴🛷🛺🦽♨⛱🌃🌄🌅🌉🎠🎢🎑🏕🏖🏗🏘🏙🏚🏜🏞🏟🏡🏢🏣🏤🏥🏨🏪🏫🏯💈💒🕌🗻🛕🛝⛳🃏🀄🎇🎊🎌🎎"
    "🎏🎐🎖🎗🎣🎫🎬🎰🎴🎵🎶🎽🎿🏁🏉🏑🏒🏸🕹🖼🚩🛼🤿🥅🥈🥋🥌🥎🥏🧧🧨🧵🧿🪂🪃🪄🪅🪇🪗🪘🪢⛑👘👙👛👝👡📿🛍🥻🥼🥽🥾🦺🧤🧥"
    "🩰🩱🩲🩳🪖🪭⌛⚒⚗⚰⛓✒🎙🎛💵💸💹💽💾📃📅📇📈📊📋📎📐📒📓📘📛📜📝📞📟📠📡📢📣📩📪📬📯📲📼📽🔇🔈🔒🔖🔦🔪🔫🔭🕎🕰"
    "🕳🖇🖥🖨🖲🗂🗃🗄🗑🗓🗜🗞🗳🗺🚬🚿🛁🛒🛗🧫🧬🧮🧰🧱🧷🧺🩺🩻🪔🪜🪡🪤🪧🪪☠👀👁👄👅👣👹👺💋😇😤😱😷🙀🤗🤣🤧🤪🤯🥰🥳🥵"
    "🥸🦾🦿🧌🫁🫠🫦♣♻⚜⚠❌❓⭕💓💕💘💜💞💠💬💭💯🏴🏳🔱🖤🗯🟣🟦🟧🤍"
)
# One of a kind: others differ from these in gender and skin alone.
PERSONS = "👦👧👨👩👴👵👶👮👷💂🕵👸🤴👰🤵👼🎅🤶🦸🧙🧚🧛🧜🧝🧞🧟🥷💃🕺🏃🚶🏄🏊🚴🤹🧘🏇🧗👯"
_JOINED = (
    "\U0001f680",
    "\U0001f373",
    "\U0001f33e",
    "\U0001f692",
    "\U0001f52c",
    "\U0001f3a8",
    "\U0001f3a4",
    "\U0001f3eb",
    "\u2695\ufe0f",
)
WORKERS = tuple(f"\U0001f9d1\u200d{tool}" for tool in _JOINED)  # astronaut, cook, farmer, firefighter, ...

# Things that are drawn from one side, so that they face one way; the mirror image is the same thing. Left out is what
# bears writing, and what has a side by its meaning (a crescent moon, a left arrow).
FACING = frozenset(
    "🐁🐄🐅🐇🐈🐉🐊🐋🐌🐍🐎🐐🐑🐒🐓🐔🐕🐖🐘🐛🐝🐟🐠🐢🐤🐦🐧🐨🐪🐬🦀🦄🦅🦆🦈🦋🦌🦍🦏🦒🦓🦔🦕🦖🦘🦚🦜🦝🦢🦩✈⛵🚀🚁🚂🚗🚚🚜🚢🚲🛵🛸🛹🛻"
    "🏍🏎🚌🚑🚒🚕🐂🐩🐿🕊🦂🦎🦐🦑🦙🦡🦤🦥🦨🦫🦭🪲🫎🚙🛩🛴🛺🚛👟👠👡👢🥾🩰🏃🚶🏄🚴🏇🍌🌶🥕🐚🎷🎸🎺🎻"
)


@lru_cache(maxsize=1)
def things() -> tuple[Emoji, ...]:
    """All that scenes show, in the order written here."""
    names = {characters.replace("\ufe0f", ""): (characters, name) for characters, name in _known_emoji()}
    chosen = [*"".join(THINGS), *PERSONS, *(worker.replace("\ufe0f", "") for worker in WORKERS)]
    return tuple(Emoji(*names[one]) for one in chosen)


def is_person(emoji: Emoji) -> bool:
    """Whether it shows a human being, whose skin no word paints."""
    return emoji.characters[0] in f"{PERSONS}\U0001f9d1" or emoji.name == "wind face"


def drawn_things() -> list[str]:
    """The characters of all that is drawn of a style: the things, their near twins, and people of one code point.

    A judge compares with all of them.
    """
    twins = [one.characters for one in scene_candidates()]
    return list(dict.fromkeys([*(one.characters for one in things()), *twins, *PEOPLE]))
