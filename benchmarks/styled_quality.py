"""How often does a model of several styles draw what was asked for, in the style that was asked for?

    python benchmarks/styled_quality.py --model runs/emoji/bundle --baseline second
    python benchmarks/styled_quality.py --model runs/emoji/bundle --prompts 20 --candidates 4 --json
    python benchmarks/styled_quality.py --only printed
    python benchmarks/styled_quality.py --judge 200 --vqgan runs/emoji/codebook

Asks for what training never showed: things on a ground, things in a style, two things together, a thing with an
unknown word; for what new users type (everyday_prompts.txt); and for each prompt that README, docs, notebook, demo and
page print. Draws candidates of each, ranks them with CLIP, and judges CLIP's pick and the others without a network,
against all things in all styles. Also measured: copies of held-out scenes in each style, CLIP's recall, how
near single things are to the right render, and how much candidates differ where a caption leaves things open. Writes
`quality.json` and a contact sheet for each kind into the output folder. A run that was ended goes on.

--baseline measures another bundle, such as the second edition, with the same prompts: without styles if it knows none.
Its picks alone are judged, which takes a third of the time.
--judge and --vqgan take no model. --judge tells how often the judge is right about that many scenes whose content is
known. --vqgan measures copies of held-out scenes in each style, and lets the judge see copies too. The VQGAN that
make_codebook.py writes decodes as plain k-means patches: its figures are the bound that a trained decoder should pass.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini.commands.terminal import exit_code
from dalle_mini.emoji.packages import default_folder
from dalle_mini.emoji.scenes import Scene
from dalle_mini.emoji.styled import StyledScenes
from dalle_mini.emoji.styled_judge import StyledJudge
from dalle_mini.emoji.styled_prompts import KINDS
from dalle_mini.emoji.styles import SHIPPED_STYLES
from dalle_mini.emoji.things import things
from dalle_mini.errors import UserError
from dalle_mini.results.write import check_writable
from dalle_mini.runtime import files, parsing
from dalle_mini.weights.bundle import PARTS
from dalle_mini.weights.editions import edition_of
from quality_options import generation_settings, quality_parser
from styled_stages import (
    CLIP,
    COPIED,
    EVERYDAY,
    OPEN,
    PRINTED,
    SIZE,
    Bundle,
    Stages,
    copies,
    measure_copies,
    scores,
    share,
)

NAMES = (COPIED, CLIP, *KINDS, EVERYDAY, PRINTED, OPEN)
PARTIAL = "partial.json"  # in the output folder: what a run that was ended had measured


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: measure(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = quality_parser(__doc__, "runs/styled_quality")
    add = parser.add_argument
    add("--judge", metavar="N", type=int, help="judge N scenes whose content is known, and draw nothing")
    add("--vqgan", metavar="FOLDER", help="measure what it copies, and draw nothing")
    add("--art", metavar="FOLDER", type=Path, help="of the drawn styles (default: the user's cache)")
    add("--only", metavar="NAME", nargs="+", choices=NAMES, default=NAMES, help=f"of {', '.join(NAMES)}")
    add("--prompts", metavar="N", type=int, default=100, help="of each kind, at most (default: 100)")
    add("--everyday", metavar="N", type=int, default=200, help="prompts in everyday words (default: 200)")
    add("--open", metavar="N", type=int, default=50, help="captions that leave things open (default: 50)")
    add("--judged", metavar="N", type=int, help="of them, CLIP's pick and others by lot (default: all)")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> None:
    args.judged = args.candidates if args.judged is None else args.judged
    for name in ("prompts", "candidates", "judged"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    folder = args.art or default_folder()
    parts = args.judge is not None or args.vqgan is not None
    figures = measure_parts(args, folder) if parts else measure_model(args, folder)
    for name, value in figures.items():
        for one in (value, *(value.values() if isinstance(value, dict) else ())):
            if isinstance(one, dict):
                one.pop("rows", None)
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    if args.json:
        print(json.dumps(figures))


def measure_parts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A VQGAN's copies, and the judge on true pictures and on copies."""
    from dalle_mini.models import VQGAN

    figures: dict[str, Any] = {}
    vqgan = VQGAN.from_pretrained(args.vqgan) if args.vqgan else None
    if vqgan is not None:
        figures["copies"] = measure_copies(vqgan, things(), SHIPPED_STYLES, folder)
    if args.judge is not None:
        figures |= judge_the_judge(args.judge, folder, args.seed, vqgan)
    return figures


def judge_the_judge(count: int, folder: Path, seed: int, vqgan: Any = None) -> dict[str, Any]:
    """How often the judge is right about true pictures, and about what a VQGAN makes of them."""
    source = StyledScenes(SIZE, seed, 10**6, folder=folder)
    scenes = [source.scene(index) for index in range(count)]
    painted = [(thing.emoji.characters, thing.color) for one in scenes for thing in one.things if thing.color]
    judge = StyledJudge(folder=folder, painted=painted)
    images, _ = source.batch(range(count))
    figures: dict[str, Any] = {
        "scenes": count,
        "drawings": len(judge.drawings),
        "exact": seen_of(judge, scenes, images),
    }
    if vqgan is not None:
        figures["copied"] = seen_of(judge, scenes, copies(vqgan, images))
    return figures


def seen_of(judge: StyledJudge, scenes: Sequence[Scene], images: np.ndarray) -> dict[str, float]:
    """The shares of the things that are seen, in their boxes, and of the pictures with a false speck."""
    started = time.process_time()
    judged = judge(images)
    seconds = (time.process_time() - started) / len(images)
    seen = []
    for scene, found in zip(scenes, judged, strict=True):
        boxes = {one.box: one for one in found.seen}
        seen += [(boxes.get(thing.box), thing) for thing in scene.things]
    return {
        "thing": share(one is not None and one.shows(thing.emoji) for one, thing in seen),
        "style": share(one is not None and one.has_style(thing.style) for one, thing in seen),
        "thing_and_style": share(one is not None and one.shows(thing.emoji, thing.style) for one, thing in seen),
        "ground": share(found.ground == scene.background for scene, found in zip(scenes, judged, strict=True)),
        "false_specks": share(found.specks > 0 for found in judged),
        "processor_seconds": round(seconds, 3),
    }


def measure_model(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = generation_settings(args)
    output = check_writable(args.output)
    world = Bundle.load(args.model, folder)
    baseline = Bundle.load(args.baseline, folder) if args.baseline else None
    stages = Stages(world, output, settings, args.judged, args.prompts, args.everyday, args.open)

    unasked = ("output", "json", "art", "only", "model", "baseline")
    asked = {name: value for name, value in vars(args).items() if name not in unasked}
    models = [one.pipe.provenance()["models"] for one in (world, baseline) if one is not None]
    before = Before(output / PARTIAL, {"asked": asked, "models": models})
    figures = before.measure(stages.of(world), args.only)
    if baseline is not None:
        picks = replace(stages, judged=1)
        found = before.measure(picks.of(baseline, "baseline_"), args.only, "baseline ")
        figures["baseline"] = found | {"name": name_of(baseline.pipe.provenance()["models"])}
    if rows := [row for name in (*KINDS, EVERYDAY) for row in figures.get(name, {}).get("rows", ())]:
        figures["ranking"] = scores(rows)  # over all prompts: whether CLIP's pick is better than a random candidate
    figures |= {"things": len(world.emoji), "styles": world.styles}
    figures |= {"candidates": args.candidates, "seed": args.seed}
    files.write_whole(output / "quality.json", json.dumps(figures, ensure_ascii=False) + "\n")
    before.forget()
    return figures


def name_of(models: dict[str, Any]) -> str:
    """ "the second edition", by its weights; "the other model" for one that never shipped."""
    edition = edition_of({part: models[part]["sha256"] for part in PARTS})
    return f"the {edition.name} edition" if edition else "the other model"


class Before:
    """The results of a run that was ended, if it asked the same of the same models."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self._path, self._about = path, json.loads(json.dumps(about))
        try:
            found = parsing.read_object(path)
            self.figures: dict[str, Any] = found["figures"] if found["about"] == self._about else {}
        except (UserError, OSError, ValueError, KeyError):
            self.figures = {}

    def measure(
        self, stages: dict[str, Callable[[], Any]], only: Sequence[str], prefix: str = ""
    ) -> dict[str, dict[str, Any]]:
        """The figures of the stages in `only`: those of before, and the others, each kept when it is measured."""
        for name, stage in stages.items():
            if name in only and prefix + name not in self.figures:
                self.figures[prefix + name] = stage()
                files.write_whole(self._path, json.dumps({"about": self._about, "figures": self.figures}) + "\n")
        return {name: self.figures[prefix + name] for name in stages if name in only}

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
