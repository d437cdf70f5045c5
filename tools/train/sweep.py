r"""Train with several settings, one run after the other, and compare them on a page. Run it again to continue.

    python tools/train/sweep.py micro --output runs/sweep \
        training.optimizer.learning_rate=0.001,0.003,0.01 loop.steps=2000
    python tools/train/sweep.py runs/my.yaml --output runs/random --random 12 --seed 0 \
        training.optimizer.learning_rate=0.0003..0.03 training.optimizer.warmup_steps=100,500,2000
    python tools/train/sweep.py mini --output runs/mini --space tools/train/sweep.yaml --tpe 20

OUTPUT/report.html has the table and the curves. Exit codes: 0 all runs are done, 1 some failed (the others are done
nevertheless), 2 the user's input is wrong, 75 or 130 stopped.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from msgspec import structs

from dalle_mini.commands.terminal import Parser, ending
from dalle_mini.errors import UserError
from dalle_mini.reports.run_page import Row
from dalle_mini.runtime import console
from dalle_mini.runtime.stopping import Stopped
from dalle_mini.training.sweep.page import table
from dalle_mini.training.sweep.search import TRAIN, Sweep
from dalle_mini.training.sweep.space import GRID, parse_settings, read_plan
from dalle_mini.training.sweep.study import is_over


def main() -> int:
    parser = Parser(prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="what `dalle-mini train` takes")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE,...", help="values to try, or one for all runs")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--space", type=Path, metavar="FILE", help="settings to try, as `wandb sweep` reads them")
    parser.add_argument("--random", type=int, metavar="N", help="so many combinations by chance, not all of them")
    parser.add_argument("--tpe", type=int, metavar="N", help="so many, each chosen by Optuna's TPE from the results")
    parser.add_argument("--seed", type=int, default=0, help="of --random and --tpe (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the devices (default: 1)")
    parser.add_argument("--command", default=shlex.join(TRAIN), help="what trains (default: dalle-mini train)")
    parser.intermixed = True
    with ending() as end:
        args = parser.parse_args()
        for name in ("random", "tpe", "jobs"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise UserError(f"--{name} {getattr(args, name)}: it must be at least 1")
        if args.random and args.tpe:
            raise UserError("--random and --tpe: leave one out")
        plan = parse_settings(args.settings, read_plan(args.space) if args.space else GRID)
        if args.random or args.tpe:
            method = "random" if args.random else "bayes"
            plan = structs.replace(plan, method=method, run_cap=args.random or args.tpe)
        sweep = Sweep(args.config, args.output, plan, args.seed, args.jobs, tuple(shlex.split(args.command)))
        try:
            trials = sweep.run(console.say)
        except Stopped as stop:
            console.say("stopped: run the same command again to continue")
            end.code = 130 if stop.number == signal.SIGINT else 75
        else:
            show(*table(trials, plan))
            console.answer(args.output / "report.html")
            end.code = 0 if all(map(is_over, trials)) else 1
    return end.code


def show(header: list[str], rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    widest = max(len(name) for name, *_ in rows)
    shown = Table(Column("run", overflow="fold", min_width=min(widest, 40)), *header)
    for name, cells, wrong in rows:
        shown.add_row(*(Text(console.one_line(cell)) for cell in (name, *(cells if wrong is None else [wrong]))))
    Console(soft_wrap=True).print(shown)


if __name__ == "__main__":
    sys.exit(main())
