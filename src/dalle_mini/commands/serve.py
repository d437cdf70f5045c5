"""`dalle-mini serve`: the pipeline behind HTTP."""

import argparse
import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle_mini.commands.sources import add_hub_options, hub_options
from dalle_mini.commands.terminal import Help, starting
from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.paths import expanded
from dalle_mini.settings import DTYPES

if TYPE_CHECKING:
    from dalle_mini.serving.drawing import Drawer

KEYS = "DALLE_MINI_KEYS"  # in the environment: keys with commas between


def add_serve(verbs) -> None:
    parser = verbs.add_parser(
        "serve",
        help="answer requests over HTTP: OpenAI's Images API, jobs, and a page to draw in",
        description="Load the model once and answer requests over HTTP: OpenAI's Images API, jobs of its own,\n"
        f"and a page at /. API keys come from --keys or from the environment variable {KEYS}.",
        epilog="example:\n"
        "  dalle-mini serve\n"
        "let others in:\n"
        "  dalle-mini serve --host 0.0.0.0 --port 8000 --keys keys.txt",
        formatter_class=Help,
    )
    parser.set_defaults(run=run_serve, extra="serve")
    add = parser.add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen; 0.0.0.0 is everywhere")
    add("--port", metavar="N", type=int, default=8000, help="where to listen; 0 is any free port")
    add("--root-path", metavar="PREFIX", default="", help="where a proxy shows the server, such as /draw")
    add(
        "--keys",
        metavar="FILE",
        type=expanded,
        help="API keys, one a line (default: none, or those of the environment)",
    )
    add(
        "--cors", metavar="ORIGIN", action="append", default=[], help="let pages of this site call the server, or * all"
    )
    add(
        "--frame", metavar="ORIGIN", action="append", default=[], help="let pages of this site show the page in a frame"
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name by which a proxy calls the server, or * any; without keys and on this machine alone, it answers\n"
        "only to localhost and to these",
    )

    add = parser.add_argument_group("models").add_argument
    add("--model", metavar="SOURCE", type=expanded, help="as in dalle-mini generate (default: the shipped model)")
    add("--vqgan", metavar="SOURCE", type=expanded, help="VQGAN's source (default: the bundle's)")
    add("--clip", metavar="SOURCE", type=expanded, help="CLIP's source (default: the bundle's)")
    add_hub_options(add, "--model")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of the computation; int8: decoder weights in 8 bits")
    add("--batch-size", metavar="N", type=int, help="images drawn together (default: what fits in memory; 16 on a CPU)")
    add("--ray", action="store_true", help="draw in replicas of Ray Serve, on this machine or a cluster (RAY_ADDRESS)")
    add("--replicas", metavar="N", type=int, help="of the model, with --ray; one takes one GPU, if any (default: 1)")

    add = parser.add_argument_group("limits").add_argument
    add("--folder", metavar="FOLDER", type=expanded, help="of the queue and the images (default: in the user's data)")
    add("--queue", metavar="N", type=int, default=256, help="jobs that may wait; one client may have half of them")
    add("--pictures", metavar="N", type=int, default=64, help="candidates that a request may ask for")
    add("--body-bytes", metavar="N", type=int, default=32 << 20, help="of a request")
    add("--pixels", metavar="N", type=int, default=16_000_000, help="of an uploaded image")
    add("--per-minute", metavar="N", type=int, default=600, help="requests of one key or address; 0 is no limit")
    add("--keep-hours", metavar="X", type=float, default=24.0, help="how long the images of a job are kept")
    add("--keep-bytes", metavar="N", type=int, default=2 << 30, help="of images that are kept, the newest ones")
    add(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="cancel a job whose client gave no sign for so long, unless it was asked to stay",
    )
    add("--log-prompts", action="store_true", help="write prompts into the log")


def run_serve(args: argparse.Namespace) -> int:
    with starting():
        import platformdirs

        from dalle_mini.serving.settings import ServerSettings, is_this_machine

    if not 0 <= args.port < 65536:
        raise UserError(f"--port is {args.port}: it is a number from 0 to 65535")
    if args.root_path and not (args.root_path.startswith("/") and args.root_path.isprintable()):
        raise UserError(f"--root-path is {args.root_path!r}: it begins with /, such as /draw")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: it must be at least 1")
    if args.replicas is not None and not args.ray:
        raise UserError("--replicas needs --ray: without it one process draws")
    if args.replicas is not None and args.replicas < 1:
        raise UserError(f"--replicas is {args.replicas}: it must be at least 1")
    folder = Path(args.folder) if args.folder else Path(platformdirs.user_data_dir("dalle-mini")) / "serve"
    names = ("queue", "pictures", "body_bytes", "pixels", "per_minute", "keep_hours", "keep_bytes", "patience")
    keys, is_local = _keys(args.keys), is_this_machine(args.host)
    settings = ServerSettings(
        folder=folder,
        keys=keys,
        origins=tuple(args.cors),
        hosts=tuple(args.allow_host) if args.allow_host or (is_local and not keys) else None,
        frames=tuple(args.frame),
        log_prompts=args.log_prompts,
        **{name: getattr(args, name) for name in names},
    )
    with starting():
        from dalle_mini.serving.app import application
        from dalle_mini.serving.server import listening, serve
        from dalle_mini.weights.bundle import find_parts

    at = listening(args.host, args.port)
    find_parts(args.model, args.vqgan, args.clip, **hub_options(args))  # so that a mistake is told at once
    if not is_local and not keys:
        console.say(f"warning: everybody who reaches {args.host} may draw: name API keys with --keys or {KEYS}")
    with _drawers(args, folder) as drawers:
        app = application(drawers, settings)
        host = f"[{args.host}]" if ":" in args.host else args.host
        console.say(f"dalle-mini listens at http://{host}:{at.getsockname()[1]}/")
        serve(app, at, args.root_path)
    return 0


def _drawers(args: argparse.Namespace, folder: Path) -> "contextlib.AbstractContextManager[Sequence[Drawer]]":
    """The drawer of this process, or those of Ray's replicas.

    Raises:
        UserError: Ray is not installed, or its cluster is too small.
    """
    make = functools.partial(_drawer, argparse.Namespace(**{**vars(args), "run": None, "meanwhile": None}))
    if not args.ray:
        return contextlib.nullcontext([make()])
    with starting():
        try:
            from dalle_mini.serving.replicas import replicas
        except ImportError:
            raise UserError(f"--ray needs Ray Serve: {install_line('serve', 'ray')}") from None
    return replicas(args.replicas or 1, make, folder)


def _drawer(args: argparse.Namespace) -> "Drawer":
    """The drawer of the flags' model; a replica makes it in its own process."""
    from dalle_mini.serving.pipeline import PipelineDrawer

    return PipelineDrawer(lambda: _load(args), _name(args.model), args.batch_size)


def _name(model: str | None) -> str:
    """The model's name for clients, who are told no paths of this machine."""
    return "shipped" if model is None else Path(model).name if Path(model).exists() else str(model)


def _load(args: argparse.Namespace):
    from dalle_mini.pipeline import DalleMini
    from dalle_mini.runtime.compilation import keep_compiled
    from dalle_mini.weights.bundle import find_parts

    keep_compiled()
    parts = find_parts(args.model, args.vqgan, args.clip, **hub_options(args))
    return DalleMini.from_parts(parts, dtype=args.dtype)


def _keys(file: str | None) -> tuple[str, ...]:
    """The API keys of the file, or of the environment.

    Raises:
        UserError: the file cannot be read, or has none.
    """
    from dalle_mini.runtime import files

    if file is None:
        return tuple(key for key in (one.strip() for one in os.environ.get(KEYS, "").split(",")) if key)
    try:
        text = files.read_bytes(file, 1 << 20).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--keys {file} cannot be read ({files.reason(error)})") from None
    keys = [line.strip() for line in text.splitlines()]
    found = tuple(key for key in keys if key and not key.startswith("#"))
    if not found:
        raise UserError(f"--keys {file} has no key: write one a line")
    return found
