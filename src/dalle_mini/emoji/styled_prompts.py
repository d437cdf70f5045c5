"""Prompts for what training never showed in scenes of styles, and what of them a picture gets right."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dalle_mini.emoji.art import PALETTE, Emoji, is_held_out
from dalle_mini.emoji.captions import pick, with_article
from dalle_mini.emoji.everyday import EverydayPrompt
from dalle_mini.emoji.layout import ABOVE, IN_FRONT_OF, LEFT_OF, Box, fact, touches
from dalle_mini.emoji.nouns import spoken
from dalle_mini.emoji.phrases import STYLE_WORDS, UNSEEN, one_of
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scenes import SINGLE, TWO, Background, Scene, Thing
from dalle_mini.emoji.splits import is_pair_held_out, is_style_held_out
from dalle_mini.emoji.styled_judge import Seen, StyledJudgement
from dalle_mini.emoji.styled_layout import USUAL, alone, grid, most_scale, pair, row
from dalle_mini.errors import UserError

GROUND, STYLE, PAIR, UNKNOWN = KINDS = ("ground", "style", "pair", "unknown word")
LEFT = 0.5  # of a picture may be unexplained where it shows what was asked for, and nothing else


@dataclass(frozen=True)
class StyledPrompt:
    """A caption, and what its picture must show.

    Attributes:
        kind: one of `KINDS`: what training never showed with the thing.
        style: of all things, a key of `styles.STYLES`; None if any will do.
        ground: a name of `PALETTE`; None if any will do.
        relation: of two things, a key of `RELATIONS`.
    """

    caption: str
    kind: str
    things: tuple[Emoji, ...]
    style: str | None = None
    ground: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Which parts of a prompt a picture gets right: all things and nothing else; style; ground; relation; no specks."""

    things: bool
    style: bool
    ground: bool
    relation: bool
    clean: bool

    @property
    def all_right(self) -> bool:
        return self.things and self.style and self.ground and self.relation


def held_out_prompts(
    kind: str, count: int, emoji: Sequence[Emoji], styles: Sequence[str], seed: int = 0
) -> list[StyledPrompt]:
    """`count` prompts of a kind, of different things as far as there are.

    - ground: a thing on a colour never seen with it, in a style: "a 3d fox on a blue background".
    - style: a thing in a style never seen with it: "a flat fox".
    - pair: two things never seen together, in a relation; every other one says a style.
    - unknown word: a thing with a word that training never says: "a feral fox".

    Raises UserError where there are too few.
    """
    rng = random.Random(f"dalle-mini styled prompts {kind} {seed}")
    known = set(emoji)
    if kind == GROUND:
        found = [
            StyledPrompt(_caption([one], style, ground), kind, (one,), style, ground)
            for one in emoji
            for ground in PALETTE
            if is_held_out(one, ground)
            for style in [pick(rng, [style for style in styles if not is_style_held_out(one, style)] or styles)]
        ]
    elif kind == STYLE:
        pairs = [(one, style) for one in emoji for style in styles if is_style_held_out(one, style)]
        found = [StyledPrompt(_caption([one], style), kind, (one,), style) for one, style in pairs]
    elif kind == PAIR:
        found = _pairs(rng, count, emoji, styles)
    elif kind == UNKNOWN:
        found = [StyledPrompt(_with_unknown(rng, one), kind, (one,)) for one in emoji]
    else:
        raise ValueError(f"{kind!r} is none of {KINDS}")
    if not 1 <= count <= len(found):
        raise UserError(f"{count} prompts of the kind {kind!r}: there are 1 to {len(found)} for {len(known)} things")
    if kind == PAIR:
        return found
    found.sort(key=lambda one: rng.random())
    seen: dict[Emoji, int] = {}
    turns = []
    for one in found:
        turns.append(seen.setdefault(one.things[0], 0))
        seen[one.things[0]] += 1
    return [found[index] for index in sorted(range(len(found)), key=turns.__getitem__)[:count]]


def _pairs(rng: random.Random, count: int, emoji: Sequence[Emoji], styles: Sequence[str]) -> list[StyledPrompt]:
    """At most `count`: one for each thing that has a partner, in any order, then again. Relations take turns."""
    made: list[StyledPrompt] = []
    relations = tuple(RELATIONS)
    waiting = sorted(emoji, key=lambda _: rng.random())
    partners: dict[Emoji, list[Emoji]] = {}
    while waiting and len(made) < count:
        one = waiting.pop(0)
        if one not in partners:
            others = [other for other in emoji if is_pair_held_out(one, other)]
            partners[one] = sorted(others, key=lambda _: rng.random())
        if not partners[one]:
            continue
        waiting.append(one)
        things = one, partners[one].pop()
        relation = relations[len(made) % len(relations)]
        # A style that neither thing lacks in training.
        free = [style for style in styles if not any(is_style_held_out(each, style) for each in things)]
        style = pick(rng, free) if len(made) // len(relations) % 2 and free else None
        made.append(StyledPrompt(_caption(things, style, relation=relation), PAIR, things, style, None, relation))
    return made


def without_style(prompt: StyledPrompt) -> StyledPrompt:
    """The same, for a model that knows no styles."""
    if prompt.style is None:
        return prompt
    return replace(prompt, caption=_caption(prompt.things, None, prompt.ground, prompt.relation), style=None)


def with_names_exchanged(prompt: StyledPrompt) -> StyledPrompt:
    """The same with the names of its two things exchanged."""
    things = prompt.things[::-1]
    return replace(prompt, caption=_caption(things, prompt.style, prompt.ground, prompt.relation), things=things)


def _caption(
    things: Sequence[Emoji],
    style: str | None,
    ground: str | None = None,
    relation: str | None = None,
) -> str:
    words = f"{STYLE_WORDS[style][0][0]} " if style else ""
    phrases = [one_of(spoken(one.name), words) for one in things]
    scene = phrases[0] if relation is None else f" {RELATIONS[relation].phrases[0]} ".join(phrases)
    return f"{scene} on {with_article(ground)} background" if ground else scene


def _with_unknown(rng: random.Random, emoji: Emoji) -> str:
    word, noun = pick(rng, UNSEEN), spoken(emoji.name)
    return one_of(noun, f"{word} ") if rng.random() < 0.5 else f"{one_of(noun)}, {word}"


def right_scene(prompt: StyledPrompt, styles: Sequence[str], seed: int = 0) -> Scene:
    """One of the scenes that answer a prompt, as training would arrange it."""
    rng = random.Random(f"dalle-mini right scene {prompt.caption} {seed}")
    style = prompt.style or pick(rng, styles)
    if prompt.relation is None:
        boxes: tuple[Box, ...] = (alone(rng, USUAL, (1, 1)),)
        things = prompt.things
    else:
        relation = RELATIONS[prompt.relation]
        forward = rng.random() < 0.5 if relation.forward is None else relation.forward
        touching = rng.random() < 0.5 if relation.touching is None else relation.touching
        boxes = pair(rng, relation.fact, (USUAL, USUAL), touching)[::-1]
        things = prompt.things[::-1] if forward else prompt.things
    placed = tuple(Thing(one, box, None, style) for one, box in zip(things, boxes, strict=True))
    return Scene(prompt.caption, placed, Background((prompt.ground or "white",)), TWO if prompt.relation else SINGLE)


def right_everyday_scene(prompt: EverydayPrompt, emoji: Sequence[Emoji], style: str) -> Scene | None:
    """A scene on white that answers a prompt, of the given things; None for one that no kind of scene answers."""
    by_character = {one.characters.replace("\ufe0f", ""): one for one in emoji}
    chosen = [
        next((by_character[one] for one in wanted.things if one in by_character), None) for wanted in prompt.wanted
    ]
    counts = [wanted.least for wanted in prompt.wanted]
    rng = random.Random(f"dalle-mini right scene {prompt.text}")
    if len(chosen) == 1:
        boxes: Sequence[Box] = grid(rng, counts[0], most_scale(counts[0]))
        chosen *= counts[0]
    elif set(counts) == {1} and len(chosen) in (2, 3):
        boxes = pair(rng, LEFT_OF, (USUAL, USUAL), False) if len(chosen) == 2 else row(rng)
    else:
        return None
    placed = tuple(Thing(one, box, None, style) for one, box in zip(chosen, boxes, strict=True) if one is not None)
    return Scene(prompt.text, placed, Background(("white",)), SINGLE) if len(placed) == len(boxes) else None


def verdict(prompt: StyledPrompt, found: StyledJudgement) -> Verdict:
    """The judge's findings against what was asked for."""
    left = list(found.seen)
    order: list[Seen] = []
    for one in prompt.things:
        there = [seen for seen in left if seen.shows(one)]
        if there:
            order.append(there[0])
            left.remove(there[0])
    things = len(order) == len(prompt.things) and not left and found.unexplained < LEFT
    style = prompt.style is None or (bool(found.seen) and all(one.has_style(prompt.style) for one in found.seen))
    ground = prompt.ground is None or found.ground == Background((prompt.ground,))
    related = prompt.relation is None or (things and is_related(found, order[0], order[1], prompt.relation))
    return Verdict(things, style, ground, related, found.specks == 0)


def is_related(found: StyledJudgement, first: Seen, second: Seen, relation: str) -> bool:
    """Whether two things of a picture are in the relation, a key of `RELATIONS`.

    On top of is above without a gap; under and above are with one or without.
    """
    wanted = RELATIONS[relation]
    in_front = found.seen.index(first) > found.seen.index(second)
    behind, front = (second.box, first.box) if in_front else (first.box, second.box)
    name, forward = fact(behind, front)
    stated_of_first = forward != in_front
    if name != wanted.fact or (wanted.forward is not None and stated_of_first != wanted.forward):
        return False
    if name == IN_FRONT_OF or name != ABOVE or relation != "on top of":
        return True
    upper, lower = (first.box, second.box) if stated_of_first else (second.box, first.box)
    return touches(upper, lower)
