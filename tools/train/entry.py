"""What the training entry points share: the command line, and the emoji data they train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from dalle_mini.data.emoji import EmojiPictures, everyday_emoji
from dalle_mini.errors import UserError
from dalle_mini.training.loop import Trainer, run
from dalle_mini.training.overrides import override

SIZE = 64  # pixels
EXAMPLES = 10_000_000  # enough never to come round again

# What the shipped model draws: about 220 things. The rest of everyday_emoji() waits for a larger model.
KINDS = ("animals", "plants", "food", "sky and weather", "vehicles", "places")


def pictures(split: str, seed: int, kinds: tuple[str, ...] | None = KINDS, jitter: int = 0) -> EmojiPictures:
    """Captioned emoji pictures; `split` is "train" or "heldout"."""
    return EmojiPictures(SIZE, seed, EXAMPLES, everyday_emoji(kinds=kinds), split, jitter=jitter)


def main(config: Any, build: Callable[[Any], Trainer], description: str) -> None:
    """`OUT [key=value ...]`: train into OUT, or continue what is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the run's folder; a run that is there is continued")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. loop.steps=100")
    args = parser.parse_args()
    with user_errors():
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
