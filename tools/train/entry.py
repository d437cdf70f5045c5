"""Shared by the training entry points: the command line, and the emoji data they train on."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle_mini.commands.terminal import Parser, ending
from dalle_mini.emoji.art import Emoji
from dalle_mini.emoji.packages import default_folder
from dalle_mini.emoji.styled import Shares, StyledScenes
from dalle_mini.emoji.styles import SHIPPED_STYLES, find_style, open_style
from dalle_mini.emoji.things import things
from dalle_mini.emoji.words import Lexicon, read_annotations
from dalle_mini.errors import UserError
from dalle_mini.runtime import files, parsing
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.training.config.config_file import override
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.preemption import Preemption

SIZE = 256  # pixels
USUAL = Shares()
EXAMPLES = 10_000_000  # enough never to come round again
WORLD = "world.json"  # in the folder of the runs: what they learn


@dataclass(frozen=True)
class World:
    """The world that a model learns to draw. `emoji.sh` writes it once, and every stage reads it.

    Attributes:
        things: how many, spread evenly over all kinds; 0 is all.
        styles: keys of `styles.STYLES`.
        art: the folder of the drawn styles; "" is the user's cache.
    """

    things: int = 0
    styles: tuple[str, ...] = SHIPPED_STYLES
    art: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.things <= len(things()):
            raise UserError(f"things {self.things}: 0, which is all, to {len(things())}")
        for style in self.styles:
            find_style(style)

    @property
    def folder(self) -> Path:
        return Path(self.art) if self.art else default_folder()

    def emoji(self) -> list[Emoji]:
        everything = things()
        return [everything[number * len(everything) // self.things] for number in range(self.things)] or [*everything]

    def words(self) -> Lexicon:
        return Lexicon(read_annotations(self.folder), self.emoji())

    def save(self, path: Path) -> None:
        """Keep it. Raises UserError if the file tells of another world: what was made of that one would be mixed up."""
        if path.exists():
            if World.load(path) != self:
                raise UserError(f"{path}: there is a run of another world: name another folder")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> World:
        """The world of a file; the whole one if `path` is ""."""
        if not str(path):
            return cls()
        try:
            found = parsing.read_object(path)
            return cls(int(found["things"]), tuple(found["styles"]), str(found["art"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a world that tools/train/emoji.sh wrote ({error})") from None


@dataclass(frozen=True)
class Pictures:
    """Captioned scenes, yet to be drawn; `split` is one of `styled.STYLED_SPLITS`."""

    split: str
    seed: int
    world: World = World()
    shares: Shares = USUAL

    def source(self) -> StyledScenes:
        world = self.world
        words = world.words()
        return StyledScenes(
            SIZE, self.seed, EXAMPLES, world.styles, words.emoji, self.split, world.folder, words, self.shares
        )

    def origin(self) -> dict[str, Any]:
        """The properties that decide which pictures these are; they are kept with everything made from them."""
        world = self.world
        emoji = [(one.characters, one.name) for one in world.emoji()]
        art = {name: open_style(name, world.folder).fingerprint() for name in world.styles}
        return {
            "scenes": "styled",
            "split": self.split,
            "seed": self.seed,
            "size": SIZE,
            "shares": short_hash(json.dumps(asdict(self.shares)).encode()),
            "emoji": short_hash(json.dumps(emoji).encode()),
            "art": short_hash(json.dumps(art).encode()),
        }


def parser(description: str, world: bool = False) -> Parser:
    """A parser that reports mistakes as a `UserError`: parse within `user_errors`. `world` adds --world."""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if world:
        made.add_argument("--world", metavar="FILE", default="", help=f"{WORLD} of the runs (default: all things)")
    return made


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
