"""Shared by all verbs: parsing, notices, bars, and an end in one line, also when the command is asked to stop."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files, memory, stopping
from dalle_mini.runtime.installing import install_line

# Packages of the extras that whole verbs need.
OPTIONAL = (
    "datasets", "fsspec", "optax", "orbax", "prometheus_client", "pyarrow", "python_multipart", "starlette", "uvicorn"
)  # fmt: skip
CURSOR = "\x1b[?25h"  # shows it
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}
MISSING = "the following arguments are required: "  # argparse's words


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command's function. Returns its exit code (0 for None), or 2 after a `UserError`, told in one line.

    Ctrl-C gives 130, SIGTERM 143 and SIGHUP 129; the command has tidied up by then.

    A stream that cannot be written ends no command. If the reader of its output went away early
    (`dalle-mini info ... | head`), the exit code is 141 in place of 0, as for a program that dies of SIGPIPE.
    """
    with ending() as end:
        end.code = command() or 0
    return end.code


@dataclasses.dataclass
class Ending:
    """How a command ended."""

    code: int = 0


@contextlib.contextmanager
def ending() -> Iterator[Ending]:
    """As `exit_code`, for a block. The yielded object has the exit code once the block is over."""
    end = Ending()
    with console.guarded() as (out, _), _warnings_in_one_line():
        with _told(end):
            yield end
        out.flush()
        if out.broken is None:
            return
        console.drop_unwritten(out)  # Python flushes once more at its end
        if isinstance(out.broken, BrokenPipeError):
            end.code = end.code or 141
        else:
            console.say(f"note: not all could be written to stdout ({files.reason(out.broken)})")


@contextlib.contextmanager
def _told(end: Ending) -> Iterator[None]:
    try:
        with stopping.unwinding():
            yield
    except UserError as error:
        end.code = 2
        console.say(f"error: {error}")
    except Exception as error:
        reason = memory.shortage(error)
        if reason is None:
            raise
        end.code = 2
        console.say(f"error: {memory.told(reason)}")
    except stopping.Stopped as stop:
        end.code = stop.exit_code
        console.say(stop)
    except KeyboardInterrupt:
        end.code = 130
        console.say("interrupted")


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show Python's warnings, some of which quote a file, as notices; each text once, as Python does by default."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        console.say(f"note: {category.__name__}: {message}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """For imports: Ctrl-C, SIGTERM and SIGHUP end the command on the spot.

    An import may swallow an exception, or leave a traceback. Nothing is written yet that must be tidied away.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, *(number for number in stopping.ASKED if signal.getsignal(number) != signal.SIG_IGN))
    earlier = {number: signal.signal(number, end_at_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)


def end_at_once(number: int, *_) -> None:
    """A handler that ends the process, with a line and no tidying up."""
    told = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    with contextlib.suppress(OSError):
        os.write(2, f"{CURSOR if os.isatty(2) else ''}{told}\n".encode())  # a bar has hidden the cursor
    os._exit(128 + number)


class Notes(logging.Handler):
    """Prints the library's log records on the present stderr, which rich replaces while bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        console.say(f"note: {self.format(record)}")


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Show the library's notices as `note:` lines only. Other libraries make the root logger print them as well."""
    handler, logger = Notes(), logging.getLogger("dalle_mini")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


@contextlib.contextmanager
def progress_bars(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True)  # a path that is broken over two lines cannot be copied
    told = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), told)
    bars = Progress(
        *columns,
        console=console,
        disable=not (shown and console.is_terminal),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # rich would send piped output to the terminal
    )
    with bars:
        tasks: dict[str, Any] = {}  # rich's numbers of the bars
        waiting = bars.add_task("loading", total=None, note="")

        def show(stage: str, done: int, total: int) -> None:
            if stage == "passes":  # of the decoder, for all tokens: nobody knows how many there will be
                bars.update(tasks["tokens"], note=f"{done} passes")
                return
            if stage not in tasks:
                bars.update(waiting, visible=False)
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done)

        yield show


@contextlib.contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn a device's lack of memory into a `UserError` with the way out, in place of pages of XLA's."""
    try:
        yield
    except Exception as error:  # jax is not imported here, so its JaxRuntimeError is known by what it says
        reason = memory.shortage(error)
        if reason is None or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the device has too little memory ({reason}): {advice}") from error


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn a missing package of the extras into a `UserError` with the line that installs `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        raise UserError(f"the Python package {package} is not installed: {install_line(extra)}") from None


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, and descriptions and examples as they are typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, with the nearest known name, and refuses blank paths and numbers.

    With `intermixed`, words may stand between options and behind them: `CONFIG --json key=value`.
    """

    intermixed = False
    _words: Sequence[str] = ()  # the command line, from this parser's part on
    _is_inside = False

    def parse_known_args(self, args=None, namespace=None):
        if self._is_inside:  # `parse_known_intermixed_args` calls this method, and puts words aside meanwhile
            return super().parse_known_args(args, namespace)
        self._words, self._is_inside = list(sys.argv[1:] if args is None else args), True
        try:
            parse = self.parse_known_intermixed_args if self.intermixed else super().parse_known_args
            namespace, unknown = parse(args, namespace)
        finally:
            self._is_inside = False
        if unknown:  # the parser of a verb says it itself: the one above would name another help
            self.error(
                f"there is no {_flag(unknown[0])}" if unknown[0].startswith("-") else f"unexpected: {unknown[0]}"
            )
        return namespace, unknown

    def _get_value(self, action, arg_string):
        if action.type is not None and not arg_string.strip():  # "$UNSET": the working directory is not meant
            raise argparse.ArgumentError(action, "it is blank: give a value, or leave it out")
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in NUMBERS:
                raise
            raise argparse.ArgumentError(action, f"{arg_string!r:.60} is not {NUMBERS[action.type]}") from None

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            hint = _nearest(str(value), choices)
            known = f"known are {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"there is no {value!r:.60}: {f'{hint} ' if hint else ''}{known}")

    def error(self, message: str):
        if message.startswith(MISSING):
            example = re.search(r"^ +((?:dalle-mini|python|eval) .*[^\\])$", self.epilog or "", re.MULTILINE)
            names = [name for name in message.removeprefix(MISSING).split(", ") if "=" not in name]  # settings may lack
            message = f"missing: {', '.join(names)}" + (f"; for example: {example[1]}" if example else "")
        raise UserError(f"{self._misspelled() or message} (see {self.prog} --help)")

    def _misspelled(self) -> str | None:
        """The first option that is nearly one of this parser's: argparse may complain of what it lacks instead."""
        known = [*self._option_string_actions]
        for word in self._words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                break  # captions, or another parser's words, follow
            flag = _flag(word)
            is_known = any(name.startswith(flag) for name in known)
            if flag.startswith("--") and not is_known and (hint := _nearest(flag, known)):
                return f"there is no {flag}: {hint}"
        return None


def _flag(word: str) -> str:
    return word.partition("=")[0]


def _nearest(name: str, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(name[:100], known, n=1)  # the search takes time by the product of the lengths
    return f"did you mean {near[0]}?" if near else None
