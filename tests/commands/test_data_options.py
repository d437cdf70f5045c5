"""The options of a dataset and of its filters: what they turn into, and what is said of mistakes."""

import argparse

import pytest

from dalle_mini.commands.data_options import add_filter_options, add_source_options, filter_options, source_options
from dalle_mini.data.encode.filters import Filters
from dalle_mini.errors import UserError
from dalle_mini.runtime.limits import limits


def parser():
    made = argparse.ArgumentParser()
    add_source_options(made)
    add_filter_options(made)
    return made


def test_nothing_said_is_the_defaults():
    args = parser().parse_args([])
    assert filter_options(args) == Filters()
    assert source_options(args) == {
        "image_column": None,
        "caption_column": None,
        "split": None,
        "subset": None,
        "image_root": None,
        "streaming": True,
    }


def test_all_that_can_be_said():
    line = (
        "--image-column jpg --caption-column title+description --split train --subset en --no-streaming "
        "--image-root /pictures --min-caption 5 --max-caption off --english --max-aspect 3.5 --min-side off "
        "--max-pixels 1000000 --duplicates near --near-distance 2 --min-clip-score 0.2 --max-clip-score 0.4"
    )
    args = parser().parse_args([*line.split(), "--where", "watermark < 0.5"])
    assert source_options(args) == {
        "image_column": "jpg",
        "caption_column": "title+description",
        "split": "train",
        "subset": "en",
        "image_root": "/pictures",
        "streaming": False,
    }
    assert filter_options(args) == Filters(
        min_caption=5,
        max_caption=None,
        english=True,
        max_aspect=3.5,
        min_side=None,
        max_pixels=1_000_000,
        duplicates="near",
        near_distance=2,
        min_clip_score=0.2,
        max_clip_score=0.4,
        where="watermark < 0.5",
    )


def test_help_states_every_default():
    text = " ".join(parser().format_help().split())
    for option, default in (
        ("--min-caption", "3"),
        ("--max-caption", "1000"),
        ("--max-aspect", "2"),
        ("--min-side", "64"),
        ("--max-pixels", str(limits().pixels)),
        ("--near-distance", "3"),
        ("--min-clip-score", "off"),
    ):
        rest = text[text.rindex(option + " ") :]
        assert rest[rest.index("(default: ") :].startswith(f"(default: {default})")


def test_mistakes(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--min-side", "many"])
    assert "--min-side: 'many' is neither a whole number nor 'off'" in capsys.readouterr().err
    with pytest.raises(UserError, match="--where"):
        filter_options(parser().parse_args(["--where", "a >"]))


def test_the_options_import_nothing_heavy():
    import subprocess
    import sys

    check = (
        "import sys, dalle_mini.commands.data_options; "
        "print([name for name in ('numpy', 'PIL', 'pyarrow', 'fsspec', 'datasets', 'ftfy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
