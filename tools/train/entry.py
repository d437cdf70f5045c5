"""What the training entry points share: the command line, and the emoji data they train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from dalle_mini.data.emoji import EmojiPictures
from dalle_mini.errors import UserError
from dalle_mini.training.loop import Trainer, run
from dalle_mini.training.overrides import override

EXAMPLES = 10_000_000  # enough never to come round again


def emoji_sources(size: int, seed: int, jitter: int = 1) -> tuple[EmojiPictures, EmojiPictures]:
    """(training, held-out) pictures of `size` pixels."""
    return (
        EmojiPictures(size, seed=seed, length=EXAMPLES, split="train", jitter=jitter),
        EmojiPictures(size, seed=seed, length=EXAMPLES, split="heldout", jitter=jitter),
    )


def main(config: Any, build: Callable[[Any], Trainer], description: str) -> None:
    """`OUT [key=value ...]`: train into OUT, or continue what is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the run's folder; a run that is there is continued")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. loop.steps=100")
    args = parser.parse_args()
    try:
        config = override(config, args.overrides)
        run(build(config), config.loop, args.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        sys.exit(130)
