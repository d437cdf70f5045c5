"""The things that no training scene shows, so that a model can be asked for them: one in ten, decided by names alone.

Four kinds of things are kept out: an emoji on a background colour, two emoji together, a fact about two emoji ("a snail
left of a car"), and a combination of attributes that no emoji has in training ("small, on purple"). Scenes of several
styles keep out the first three, an emoji in a style, and an emoji painted in a colour.
"""

from dalle_mini.emoji.art import HELD_OUT_SHARE, Emoji
from dalle_mini.emoji.nouns import without_skin
from dalle_mini.runtime.hashing import hash_64, in_share, is_chosen

COLOR, PAIR, RELATION, ATTRIBUTES = HELD_OUT_KINDS = ("color", "pair", "relation", "attributes")

STYLE, PAINT = "style", "paint"
STYLED_KINDS = STYLE, COLOR, PAIR, RELATION, PAINT  # of scenes of several styles
STYLE_SHARE = 0.08  # of the things, in each style


def is_style_held_out(emoji: Emoji, style: str) -> bool:
    """Whether no training picture shows the emoji in this style, a key of `styles.STYLES`: about one in twelve.

    Microsoft drew flat and 3D art after one design. Half of the held-out pairs of the two are held out together, so
    that the design is new; the others show what the same design gives away. No emoji is held out in all shipped styles.
    """
    if style in ("flat", "3d"):
        lot, half = hash_64(f"style|{emoji.name}|fluent"), STYLE_SHARE / 2
        if in_share(lot, 2 * half):
            return style == "flat" or in_share(lot, half)
        return style == "3d" and in_share(lot, 3 * half)
    chosen = is_chosen(f"style|{emoji.name}|{style}", STYLE_SHARE)
    if style != "noto" or not chosen:
        return chosen
    return not all(is_style_held_out(emoji, other) for other in ("3d", "flat", "twemoji"))


def is_paint_held_out(emoji: Emoji, color: str) -> bool:
    """Whether no training picture shows the emoji painted in this colour, a key of `recolor.COLORS`."""
    return _is_held_out("paint", emoji.name, color)


def is_pair_held_out(first: Emoji, second: Emoji) -> bool:
    """Whether two different emoji are never together in a training picture, in whatever order, size and number.

    The answer is one for all skin tones of a person.
    """
    names = sorted((without_skin(first.name), without_skin(second.name)))
    return names[0] != names[1] and _is_held_out("pair", *names)


def is_fact_held_out(first: Emoji, fact: str, second: Emoji) -> bool:
    """Whether no training picture shows `first` in this relation to `second`; `fact` is one of `layout.FACTS`.

    The image counts and not the wording: "b to the right of a" and "a next to b" go with "a left of b".
    """
    names = without_skin(first.name), without_skin(second.name)
    return names[0] != names[1] and _is_held_out("relation", names[0], fact, names[1])


def is_combination_held_out(size: str | None, background: str, variant: str | None) -> bool:
    """Whether no emoji at all has these attributes together in training.

    Args:
        size: the size word's key, "small" or "large"; None where no size is said.
        background: `Background.name`; "white" is no attribute, for it is what a caption without a colour means.
        variant: gender and skin, as `nouns.variant` tells them, or None.
    A single attribute is no combination and never held out.
    """
    said = [size, None if background == "white" else background, variant]
    return sum(one is not None for one in said) >= 2 and _is_held_out("attributes", *(one or "-" for one in said))


def _is_held_out(*names: str) -> bool:
    return is_chosen("|".join(names), HELD_OUT_SHARE)
