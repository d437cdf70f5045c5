"""Shared by the training entry points: the command line, and the emoji data they train on."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dalle_mini.commands.terminal import Parser, ending
from dalle_mini.emoji.art import Emoji, find_font
from dalle_mini.emoji.tidy import TWINS_APART, TidyScenes
from dalle_mini.emoji.vocabulary import scene_emoji
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.training.config.config_file import override
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.preemption import Preemption

SIZE = 128  # pixels
EXAMPLES = 10_000_000  # enough never to come round again


@dataclass(frozen=True)
class Pictures:
    """Captioned emoji scenes, yet to be drawn; `split` is one of `emoji_scenes.SPLITS`.

    `distance` sets how easy the emoji are to tell apart, and so how many there are (`scene_emoji`).
    """

    split: str
    seed: int
    distance: float = TWINS_APART

    def emoji(self) -> list[Emoji]:
        return scene_emoji(distance=self.distance)

    def source(self) -> TidyScenes:
        return TidyScenes(SIZE, self.seed, EXAMPLES, self.emoji(), self.split)

    def origin(self) -> dict[str, Any]:
        """The properties that decide which pictures these are; they are kept with everything made from them."""
        emoji = [(one.characters, one.name) for one in self.emoji()]
        return {
            "scenes": "tidy",
            "split": self.split,
            "seed": self.seed,
            "size": SIZE,
            "emoji": short_hash(json.dumps(emoji).encode()),
            "font": short_hash(find_font().read_bytes()),
        }


def parser(description: str) -> Parser:
    """A parser that reports mistakes as a `UserError`: parse within `user_errors`."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def main(
    config: Any, build: Callable[[Any], Any], description: str, sampler: Callable[[Any, Any], Any] | None = None
) -> None:
    """`OUT [key=value ...] [--allow-changes]`: train into OUT, or continue what is there.

    `sampler(config, trainer)` makes an object that draws pictures on the way, into OUT/samples.
    """
    options = parser(description)
    options.add_argument("out", help="the run's folder; a run that is there is continued")
    options.add_argument(
        "--allow-changes", action="store_true", help="continue even with settings that change what is learned"
    )
    options.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. loop.steps=100")
    with user_errors(), Preemption(grace_without_work=0.0):
        args = options.parse_args()
        config = override(config, args.overrides)
        trainer = build(config)
        draws = None if sampler is None else sampler(config, trainer)
        run(trainer, config.loop, args.out, allow_changes=args.allow_changes, sampler=draws)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake becomes one line and exit code 2, as in `terminal.exit_code`."""
    with ending() as end:
        yield
    if end.code:
        sys.exit(end.code)
