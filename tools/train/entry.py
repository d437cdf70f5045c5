"""What the training entry points share: the command line, and the emoji data they train on."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dalle_mini.commands.terminal import Parser
from dalle_mini.data.emoji import EmojiPictures, everyday_emoji, find_font
from dalle_mini.errors import UserError
from dalle_mini.training.config_file import override
from dalle_mini.training.loop import run

SIZE = 64  # pixels
EXAMPLES = 10_000_000  # enough never to come round again

# What the shipped model draws. The rest of everyday_emoji() waits for a larger model.
KINDS = ("animals", "plants", "food", "sky and weather", "vehicles", "places")


@dataclass(frozen=True)
class Pictures:
    """Captioned emoji pictures, yet to be drawn; `split` is "train" or "heldout"."""

    split: str
    seed: int
    kinds: tuple[str, ...] | None = KINDS
    jitter: int = 0

    def source(self) -> EmojiPictures:
        return EmojiPictures(
            SIZE, self.seed, EXAMPLES, everyday_emoji(kinds=self.kinds), self.split, jitter=self.jitter
        )

    def origin(self) -> dict[str, Any]:
        """What decides which pictures these are: it is kept with what is made of them."""
        emoji = [(one.characters, one.name) for one in everyday_emoji(kinds=self.kinds)]
        return {
            "split": self.split,
            "seed": self.seed,
            "size": SIZE,
            "jitter": self.jitter,
            "emoji": short_hash(json.dumps(emoji).encode()),
            "font": short_hash(find_font().read_bytes()),
        }


def short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def parser(description: str) -> Parser:
    """One whose complaints are a `UserError`: parse within `user_errors`."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def main(config: Any, build: Callable[[Any], Any], description: str) -> None:
    """`OUT [key=value ...]`: train into OUT, or continue what is there."""
    options = parser(description)
    options.add_argument("out", help="the run's folder; a run that is there is continued")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. loop.steps=100")
    with user_errors():
        args = options.parse_args()
        config = override(config, args.overrides)
        run(build(config), config.loop, args.out)


class user_errors:
    """A user's mistake becomes one line and exit code 2; an interruption, a line and 130."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, KeyboardInterrupt):
            print("\ninterrupted: run the same command again to continue", file=sys.stderr)
            sys.exit(130)
