"""Options of verbs that read a dataset of captioned images: which it is, and which examples are kept."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from dalle_mini.commands.terminal import NUMBERS
from dalle_mini.data.encode.filters import DUPLICATES, Filters
from dalle_mini.runtime.paths import expanded

OFF = "off"
SOURCES = (
    "a folder of images (with a .txt beside each, one caption per line, or with a metadata.csv or .jsonl), WebDataset "
    "tars as img2dataset writes them, Parquet, or a Hugging Face dataset (owner/name, hf://owner/name@revision, or a "
    "folder that save_to_disk wrote); local, gs://, s3:// or any fsspec URL"
)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `source_options` reads; the dataset itself is the verb's own argument, see `SOURCES`."""
    add = parser.add_argument_group("the dataset").add_argument
    add(
        "--image-column",
        metavar="NAME",
        help="column of the images, or their suffix in tars (default: the usual names)",
    )
    add(
        "--caption-column",
        metavar="NAME",
        help="column of the captions; NAME,NAME takes both, NAME+NAME joins them, such as title+description (default: "
        "the usual names)",
    )
    add(
        "--split",
        metavar="NAME",
        help="split of a Hugging Face dataset, or files with this name (default: train, or all)",
    )
    add("--subset", metavar="NAME", help="configuration of a Hugging Face dataset that has several")
    add("--no-streaming", action="store_true", help="download a dataset from the Hub before reading it")
    add(
        "--image-root",
        metavar="FOLDER",
        type=expanded,
        help="the folder with the files that tables name; no other place is read (default: the dataset's folder)",
    )


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """The source's options as keywords of `dalle_mini.data.sources.open_source`."""
    names = ("image_column", "caption_column", "split", "subset", "image_root")
    return {name: getattr(args, name) for name in names} | {"streaming": not args.no_streaming}


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `filter_options` reads."""
    defaults = Filters()
    group = parser.add_argument_group(
        "filters", f"Each dropped image is counted with its reason. '{OFF}' turns a limit off."
    )

    def add(option: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        value = getattr(defaults, _field(option))
        default = OFF if value is None else f"{value:g}" if isinstance(value, float) else value
        group.add_argument(option, type=_or_off(kind), metavar=metavar, help=f"{text} (default: {default})")

    add("--min-caption", int, "N", "least characters of a caption")
    add("--max-caption", int, "N", "most characters of a caption")
    group.add_argument(
        "--english", action="store_true", help="drop captions that are surely not English (default: keep all languages)"
    )
    add("--max-aspect", float, "X", "highest ratio of the longer side to the shorter")
    add("--min-side", int, "N", "least pixels of the shorter side")
    group.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=f"most pixels, width times height; larger images are not decoded (default: {defaults.max_pixels})",
    )
    group.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        help="drop images with the same pixels as an earlier one (exact), or also those that look like one (near) "
        "(default: keep all)",
    )
    group.add_argument(
        "--near-distance",
        type=int,
        metavar="BITS",
        help="bits of 64 in which the perceptual hashes of similar images may differ (default: "
        f"{defaults.near_distance})",
    )
    add("--min-clip-score", float, "X", "lowest CLIP score (cosine of image and caption)")
    add("--max-clip-score", float, "X", "highest CLIP score")
    group.add_argument(
        "--where",
        metavar="CONDITION",
        help='condition on the source\'s columns, such as "clip_score > 0.28 and watermark < 0.5"; rows without a '
        "value are dropped (default: keep all)",
    )


def filter_options(args: argparse.Namespace) -> Filters:
    """The options of filters as `Filters`.

    Raises:
        UserError: a value makes no sense.
    """
    given = ((field.name, getattr(args, field.name)) for field in dataclasses.fields(Filters))
    chosen: dict[str, Any] = {name: None if value == OFF else value for name, value in given if value is not None}
    return Filters(**chosen)


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _or_off(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return OFF if text == OFF else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.60} is neither {NUMBERS[kind]} nor '{OFF}'") from None

    return read
