"""Everything that is ever wrong with a pile: counted by reason, nothing lost of the rest, no crash, bounded memory."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from dalle_mini.data.filters import Filters, keep_captions, picture_problem
from dalle_mini.data.images import BadPicture, decode_picture
from dalle_mini.data.sources import open_source

sys.path.insert(0, str(Path(__file__).parent))
import bad_pile

MAKERS = {"folder": bad_pile.make_folder, "tars": bad_pile.make_tars, "parquet": bad_pile.make_parquet}


def become(source, filters):
    """(captions of each key that is kept, how many are dropped for each reason): the stages as encoding runs them."""
    kept, dropped = {}, Counter()
    for part in source.parts():
        for example in part.examples():
            captions, reason = keep_captions(example, filters)
            if reason is None:
                try:
                    image = decode_picture(
                        example.picture, filters.max_pixels, lambda w, h: picture_problem(w, h, filters)
                    )
                    assert image.mode == "RGB"
                except BadPicture as error:
                    reason = error.reason
            if reason is None:
                assert example.key not in kept
                kept[example.key] = captions
            else:
                dropped[reason] += 1
    return kept, dropped


@pytest.mark.parametrize("kind", MAKERS)
def test_everything_is_kept_or_counted(tmp_path, kind):
    pile = MAKERS[kind](tmp_path / "pile")
    kept, dropped = become(open_source(pile.source), Filters())
    assert dropped == pile.dropped
    assert kept == pile.kept
    assert kept == become(open_source(pile.source), Filters())[0]
