"""Prompts for two emoji that training never showed together, and what of them a model gets right."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle_mini.emoji.art import EVERYDAY, PALETTE, Emoji, is_held_out
from dalle_mini.emoji.captions import with_article
from dalle_mini.emoji.judge import plain_caption, shares
from dalle_mini.emoji.nouns import noun_phrase, spoken
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scene_judge import SceneJudgement
from dalle_mini.emoji.scenes import TWO, Background, Scene, arrange, draw
from dalle_mini.emoji.splits import is_pair_held_out
from dalle_mini.emoji.tidy import arrange_tidily
from dalle_mini.errors import UserError


@dataclass(frozen=True)
class ScenePrompt:
    """Two emoji that training never showed together, their relation, and the caption that asks for them.

    `relation` is a key of `RELATIONS`; `color` is the background's, None where it is not said.
    """

    first: Emoji
    relation: str
    second: Emoji
    color: str | None
    caption: str


def held_out_scenes(count: int, emoji: Sequence[Emoji], seed: int = 0) -> list[ScenePrompt]:
    """`count` different held-out pairs of the given emoji: "a snail to the left of a red apple".

    The relations take turns, and every other turn says a background colour, one on which training shows both emoji. No
    emoji stands twice before each that can has stood once. Raises UserError where there are too few pairs.
    """
    rng = random.Random(f"dalle-mini held-out scenes {seed}")
    pairs = [(a, b) for number, a in enumerate(emoji) for b in emoji[number + 1 :] if is_pair_held_out(a, b)]
    if not 1 <= count <= len(pairs):
        raise UserError(f"scene prompts {count}: 1 to {len(pairs)}, as many pairs of {len(emoji)} emoji are held out")
    pairs.sort(key=lambda pair: rng.random())
    used: Counter[Emoji] = Counter()
    chosen: list[tuple[Emoji, Emoji]] = []
    turn = 0
    while len(chosen) < count:
        later = []
        for pair in pairs:
            if len(chosen) < count and max(used[one] for one in pair) <= turn:
                used.update(pair)
                chosen.append(pair)
            else:
                later.append(pair)
        pairs, turn = later, turn + 1
    return [_prompt(rng, number, pair) for number, pair in enumerate(chosen)]


def _prompt(rng: random.Random, number: int, pair: tuple[Emoji, Emoji]) -> ScenePrompt:
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    relations = tuple(RELATIONS)
    relation = relations[number % len(relations)]
    color = None
    if number // len(relations) % 2:
        colors = [c for c in PALETTE if c != "white" and not any(is_held_out(one, c) for one in pair)]
        color = colors[int(rng.random() * len(colors))]
    return ScenePrompt(first, relation, second, color, scene_caption(first, relation, second, color))


def scene_caption(first: Emoji, relation: str, second: Emoji, color: str | None = None) -> str:
    """The commonest wording of the training captions: "a snail to the left of a red apple on a blue background"."""
    one, other = noun_phrase(spoken(first.name)), noun_phrase(spoken(second.name))
    place = f" on {with_article(color)} background" if color else ""
    return f"{one} {RELATIONS[relation].phrases[0]} {other}{place}"


def single_caption(emoji: Emoji, color: str) -> str:
    """The commonest wording for one emoji in the captions of scenes: "a padlock on a blue background".

    Those that the first edition draws go by their Unicode name, the others by the name one says, so not "locked".
    """
    if emoji.characters[0] in "".join(EVERYDAY.values()):
        return plain_caption(emoji, color)
    return f"{noun_phrase(spoken(emoji.name))} on {with_article(color)} background"


def right_image(
    prompt: ScenePrompt, size: int, font: str | Path | None = None, seed: int = 0, tidy: bool = False
) -> np.ndarray:
    """One of the pictures that answer a prompt, as training would draw it: uint8 [size, size, 3].

    `tidy`: as `TidyScenes` would and not `EmojiScenes`.
    """
    rng = random.Random(f"dalle-mini right picture {prompt.caption} {seed}")
    place = arrange_tidily if tidy else arrange
    things = place(rng, prompt.relation, [(prompt.first, None)], [(prompt.second, None)])
    return draw(Scene(prompt.caption, things, Background((prompt.color or "white",)), TWO), size, font)


@dataclass(frozen=True)
class SceneScores:
    """Shares of prompts, 0 to 1.

    `pair`: the first picture of each prompt, CLIP's pick, shows both emoji. `relation`: it shows both, and in the
    relation that was asked for. `random_...`: the same for a picture picked at random, as the mean over all candidates.
    `any_...`: at least one candidate does, what a perfect ranking would reach.
    """

    pair_accuracy: float
    relation_accuracy: float
    random_pair_accuracy: float
    random_relation_accuracy: float
    any_pair_accuracy: float
    any_relation_accuracy: float


def is_right(judgement: SceneJudgement, prompt: ScenePrompt) -> bool:
    """Both emoji are there, in their relation."""
    return judgement.both_present and judgement.is_related(prompt.relation)


def score_scenes(prompts: Sequence[ScenePrompt], judged: Sequence[Sequence[SceneJudgement]]) -> SceneScores:
    """`judged` are the judgements of each prompt's candidates, best by CLIP first."""
    pair = [[one.both_present for one in row] for row in judged]
    related = [[is_right(one, prompt) for one in row] for prompt, row in zip(prompts, judged, strict=True)]
    return SceneScores(*shares(pair, related))
