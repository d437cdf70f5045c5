"""Options of what is fetched from the Hub, which several verbs have."""

import argparse
from collections.abc import Callable

from dalle_mini.runtime.paths import expanded


def add_hub_options(add: Callable, source: str) -> None:
    add("--revision", metavar="NAME", help=f"branch, tag or commit of {source}'s repository (default: main)")
    add("--cache-dir", metavar="FOLDER", type=expanded, help="where downloads are kept (default: Hugging Face's cache)")
    add("--offline", action="store_true", help="use only what is on this machine; make no request")


def hub_options(args: argparse.Namespace) -> dict:
    return {"revision": args.revision, "cache_dir": args.cache_dir, "local_files_only": args.offline}
