"""Which emoji stand in scenes: those that are easy to tell apart, and a larger set with people in their variants."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import EVERYDAY, Emoji, _is_drawn, _known_emoji, find_font, sprite
from dalle_mini.errors import UserError

# Beside `EVERYDAY`: every other emoji of one code point that shows a thing, an animal, a face or a shape and has a name
# one can say. Left out: people and hands (see `people_emoji`), flags of countries, arrows, buttons, clock faces.
MORE = {
    "animals": (
        "🐀🐂🐃🐆🐏🐗🐜🐡🐥🐩🐫🐭🐮🐯🐰🐲🐳🐴🐵🐽🐾🐿🕊🕷🕸🙈🙉🙊🦂🦃🦎🦐🦑🦗🦙🦛🦟🦠🦡🦣🦤🦥🦦🦧🦨🦪🦫🦬🦭🦮"
        "🪰🪱🪲🪳🪶🪸🪹🪺🪽🪿🫎🫏"
    ),
    "plants": ("☘🌰🌼🌾🌿🍂🍃🎄🎋🎍🥀🪵🪻"),
    "food": (
        "🌯🍈🍖🍘🍚🍛🍝🍠🍡🍢🍤🍥🍧🍨🍮🍱🍲🍴🍵🍶🍻🍽🍾🥂🥃🥄🥓🥔🥖🥗🥘🥙🥛🥜🥟🥠🥢🥣🥧🥫🥬🥭🥮🥯🧂🧃🧅🧆🧇🧈"
        "🧉🧋🫑🫒🫓🫔🫕🫘🫙🫚🫛"
    ),
    "sky and weather": ("☄☔⛄⛅⛈✨🌀🌂🌍🌎🌏🌑🌒🌓🌔🌖🌗🌘🌚🌛🌜🌝🌞🌟🌠🌤🌥🌦🌨🌩🌪🌬💥💦🫧"),
    "vehicles": ("⛴⛽💺🚃🚅🚆🚇🚈🚉🚊🚋🚍🚎🚏🚐🚔🚖🚘🚙🚛🚝🚞🚟🚠🚡🚤🚥🚧🛞🛣🛤🛥🛩🛫🛬🛰🛳🛴🛶🛷🛺🦼🦽"),
    "places": ("♨⛱🌃🌄🌅🌆🌇🌉🎠🎢🎑🏔🏕🏖🏗🏘🏙🏚🏜🏞🏟🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏯💈💒🕋🕌🕍🗻🛕🛖🛝"),
    "sport and play": (
        "♟⛳🃏🀄🎆🎇🎊🎌🎎🎏🎐🎖🎗🎟🎣🎫🎬🎰🎴🎵🎶🎼🎽🎿🏁🏅🏉🏏🏐🏑🏒🏸🕹🖌🖼🚩🛼🤿🥅🥇🥈🥉🥋🥌🥍🥎🥏🧧🧨🧵"
        "🧿🪂🪃🪄🪅🪇🪈🪕🪗🪘🪢🪩"
    ),
    "clothes": ("⛑👘👙👚👛👝👞👡📿🛍🥻🥼🥽🥾🥿🦺🧤🧥🩰🩱🩲🩳🩴🪖🪭🪮"),
    "objects": (
        "⌛⌨⏱⏲⏳⚒⚖⚗⚰⚱⛏⛓✒🎙🎚🎛🎞🏮🏵🏷🏺💌💳💴💵💶💷💸💹💽💾💿📀📁📂📃📄📅📆📇📈📉📊📋📍📎📏📐📑📒"
        "📓📔📖📗📘📙📛📜📝📞📟📠📡📢📣📤📥📧📨📩📪📫📬📭📯📰📲📸📹📼📽🔇🔈🔉🔊🔌🔍🔒🔓🔕🔖🔦🔧🔩🔪🔫🔭🕎🕰🕳"
        "🖇🖊🖋🖥🖨🖱🖲🗂🗃🗄🗑🗒🗓🗜🗝🗞🗡🗳🗺🚬🚿🛁🛎🛒🛗🛠🛡🛢🦯🧪🧫🧬🧮🧰🧱🧴🧷🧺🧻🧼🧽🧾🩸🩹🩺🩻🩼🪒🪔🪙"
        "🪚🪛🪜🪝🪞🪠🪡🪤🪥🪦🪧🪨🪪🪫🪬"
    ),
    "faces and creatures": (
        "☠☹☺👀👁👄👅👣👹👺👿💋😁😂😃😄😅😆😇😉😊😋😌😏😐😑😒😓😔😕😖😗😘😙😚😛😜😝😞😟😠😢😣😤😥😦😧😨😩😪"
        "😫😬😮😯😰😱😲😳😴😵😶😷😸😹😺😻😼😽😾😿🙀🙁🙂🙃🙄🤐🤑🤒🤓🤔🤕🤗🤣🤤🤥🤧🤨🤩🤪🤫🤬🤭🤮🤯🥰🥱🥲🥳🥴🥵"
        "🥸🥹🥺🦾🦿🧌🧐🫀🫁🫠🫡🫢🫣🫤🫥🫦🫨"
    ),
    "shapes and signs": (
        "☪☮☯♠♣♦♻⚛⚜⚠⚪⚫✡❌❓❗⬛⬜⭕💓💔💕💖💗💘💙💚💛💜💝💞💟💠💬💭💯🏴🏳🔯🔱🔴🔵🔶🔷🔺🖤🗨🗯🟠🟡"
        "🟢🟣🟤🟥🟦🟧🟨🟩🟪🟫🤍🤎🧡🩵🩶🩷"
    ),
}

# Twins are nearer than this. The nearest two of `EVERYDAY`, which was chosen by eye, are 0.161 apart (basketball and
# stop sign), so whatever is added is at least as easy to tell from the rest.
TWIN_DISTANCE = 0.16
THINNEST = 0.14  # of the box is drawn at least; the thinnest of `EVERYDAY`, the Tokyo Tower, fills 0.142
TWIN_WIDTH = 28  # pixels: an emoji of a scene of two in a picture of 64

# First code points of the emoji that show one person.
PEOPLE = (
    "👦👧👨👩👮👰👱👲👳👴👵👶👷👸👼🎅💁💂💃💆💇🏂🏃🏄🏇🏊🏋🏌🕴🕵🕺🙅🙆🙇🙋🙍🙎🚣🚴🚵🚶🛀🛌⛷⛹"
    "🤦🤰🤱🤴🤵🤶🤷🤸🤹🤺🤽🤾🥷🦸🦹🧍🧎🧏🧑🧒🧓🧔🧕🧖🧗🧘🧙🧚🧛🧜🧝🧞🧟🫃🫄🫅"
)
_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
_PERSONS = frozenset("👨👩🧑👦👧🧒👶")
_FACING_RIGHT = "\u27a1"


def scene_emoji(
    font: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    people: bool = False,
    distance: float = TWIN_DISTANCE,
) -> list[Emoji]:
    """The emoji of `EVERYDAY` and `MORE` that are neither near twins nor hair-thin: 906, in the order written there.

    Two are twins if the root mean square difference of their renders, 28 pixels wide, over a black and a white
    background is below `distance`; colours run from 0 to 1. The first of twins stays, and `EVERYDAY` comes first, so
    that all of it stays. An emoji is thin that fills less than `THINNEST` of its box.

    Args:
        kinds: keys of `MORE` (those of `EVERYDAY` are among them); all of them if None.
        people: add `people_emoji`, in which each gender and skin tone is an emoji of its own.
    """
    path = find_font(font)
    kept = [Emoji(*one) for one in _scene_emoji(path, tuple(kinds) if kinds is not None else None, distance)]
    return kept + (people_emoji(path) if people else [])


def scene_candidates(kinds: Sequence[str] | None = None) -> list[Emoji]:
    """`EVERYDAY`, then `MORE`, of the given kinds, twins included, whether or not a font has them."""
    unknown = sorted(set(kinds or ()) - set(MORE))
    if unknown:
        raise UserError(f"no such kind of emoji: {', '.join(unknown)}; there are {', '.join(MORE)}")
    by_base = {characters.replace("\ufe0f", ""): Emoji(characters, name) for characters, name in _known_emoji()}
    chosen = kinds or tuple(MORE)
    text = "".join(table.get(kind, "") for table in (EVERYDAY, MORE) for kind in chosen)
    return [by_base[character] for character in text if character in by_base]


def people_emoji(font: str | Path | None = None) -> list[Emoji]:
    """Emoji of one person each, with every gender, hair and skin tone that the font draws: about 1,300.

    Only those that look the same to a pixel are dropped: a skin tone is a variant and not a twin.
    """
    path = find_font(font)
    found, looks = [], set()
    for characters, name in _known_emoji():
        if not _is_one_person(characters) or not _is_drawn(path, characters):
            continue
        look = sprite(path, characters, TWIN_WIDTH)[0].tobytes()
        if look not in looks:
            looks.add(look)
            found.append(Emoji(characters, name))
    return found


def _is_one_person(characters: str) -> bool:
    persons = sum(character in _PERSONS for character in characters)
    return (
        characters[0] in PEOPLE
        and persons <= 1
        and sum(character in _TONES for character in characters) <= 1
        and _FACING_RIGHT not in characters
    )


@lru_cache(maxsize=8)
def _scene_emoji(font: Path, kinds: tuple[str, ...] | None, distance: float) -> tuple[tuple[str, str], ...]:
    drawn = [one for one in scene_candidates(kinds) if _is_drawn(font, one.characters)]
    drawn = [one for one in drawn if _ink(font, one) >= THINNEST]
    apart = pixel_distances(font, drawn)
    everyday = set("".join(EVERYDAY.values()))
    kept: list[int] = []
    for index, one in enumerate(drawn):
        if one.characters[0] in everyday or np.all(apart[index, kept] >= distance):
            kept.append(index)
    return tuple((drawn[index].characters, drawn[index].name) for index in kept)


def pixel_distances(font: Path, emoji: Sequence[Emoji]) -> np.ndarray:
    """How far the emoji's renders are apart, as `scene_emoji` has it: root mean squares, [emoji, emoji]."""
    pixels = np.stack([_on_black_and_white(font, one) for one in emoji])  # [emoji, values]
    squares = np.sum(pixels**2, axis=1)
    means = (squares[:, None] + squares - 2 * pixels @ pixels.T) / pixels.shape[1]
    return np.sqrt(np.maximum(means, 0))


def _ink(font: Path, emoji: Emoji) -> float:
    """The share of the emoji's box that is drawn."""
    return 1 - float(np.mean(sprite(font, emoji.characters, TWIN_WIDTH)[1])) / 255


def _on_black_and_white(font: Path, emoji: Emoji) -> np.ndarray:
    colors, background = sprite(font, emoji.characters, TWIN_WIDTH)
    return np.concatenate([colors.ravel(), (colors + background).ravel()]).astype(np.float32) / 255
