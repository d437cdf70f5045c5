"""The examples of a dataset that are kept: captions, sides, scores, columns, languages, and the options' limits."""

from pathlib import Path

import pytest

from dalle_mini.data.encode.filters import (
    Filters,
    caption_problem,
    check_where,
    image_problem,
    keep_captions,
    may_be_english,
    score_problem,
)
from dalle_mini.data.sources import reasons
from dalle_mini.data.sources.example import Example
from dalle_mini.errors import UserError


def example(*captions, problem=None, **columns):
    return Example("key", b"picture", captions, columns, problem)


def test_every_reason_is_described_once():
    names = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert names == set(reasons.REASONS)
    assert all("\n" not in line and len(line) < 120 for line in reasons.REASONS.values())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", reasons.NO_CAPTION),
        ("ab", reasons.CAPTION_TOO_SHORT),
        ("cat", None),
        ("c" * 1000, None),
        ("c" * 1001, reasons.CAPTION_TOO_LONG),
        ("ein roter Apfel auf blauem Grund", reasons.NOT_ENGLISH),
    ],
)
def test_caption_problem(caption, expected):
    assert caption_problem(caption, Filters(english=True)) == expected
    off = Filters(min_caption=None, max_caption=None)
    assert caption_problem(caption, off) == (None if caption else reasons.NO_CAPTION)


def test_captions_are_cleaned_filtered_and_kept_once():
    kept = keep_captions(example("<b>a dog</b>", "x", "a  dog", "two dogs"), Filters())
    assert kept == (("a dog", "two dogs"), None)


def test_any_number_of_captions_takes_little_time():
    many = example(*(f"caption {i}" for i in range(200_000)))
    assert len(keep_captions(many, Filters())[0]) == 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (example(), reasons.NO_CAPTION),
        (example("\x00 <br>"), reasons.NO_CAPTION),
        (example("x", "", "y"), reasons.CAPTION_TOO_SHORT),
        (example("", "x"), reasons.NO_CAPTION),
        (example("a" * 5_000_000), reasons.CAPTION_TOO_LONG),
        (example("a dog", problem=reasons.CUT_SHORT), reasons.CUT_SHORT),
    ],
)
def test_keep_captions_gives_the_reason(given, expected):
    assert keep_captions(given, Filters()) == ((), expected)


def test_where_needs_its_columns():
    filters = Filters(where="score > 0.2")
    assert keep_captions(example("a dog", score=0.3), filters) == (("a dog",), None)
    assert keep_captions(example("a dog", score=0.1), filters) == ((), reasons.WHERE_FALSE)
    assert keep_captions(example("a dog", score=None), filters) == ((), reasons.WHERE_MISSING)
    assert keep_captions(example("a dog"), filters) == ((), reasons.WHERE_MISSING)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((256, 256), None),
        ((256, 512), None),
        ((512, 256), None),
        ((256, 513), reasons.ASPECT_RATIO),
        ((513, 256), reasons.ASPECT_RATIO),
        ((64, 64), None),
        ((63, 64), reasons.IMAGE_TOO_SMALL),
        ((1, 1), reasons.IMAGE_TOO_SMALL),
        ((30_000, 30_000), reasons.TOO_MANY_PIXELS),
    ],
)
def test_picture_problem(sides, expected):
    assert image_problem(*sides, Filters()) == expected
    if expected in (reasons.ASPECT_RATIO, reasons.IMAGE_TOO_SMALL):
        assert image_problem(*sides, Filters(max_aspect=None, min_side=None)) is None


@pytest.mark.parametrize(
    ("score", "low", "high", "expected"),
    [
        (None, None, None, None),
        (0.1, None, None, None),
        (0.28, 0.28, None, None),
        (0.27, 0.28, None, reasons.CLIP_SCORE),
        (0.5, None, 0.4, reasons.CLIP_SCORE),
        (0.3, 0.2, 0.4, None),
        (None, 0.2, None, reasons.CLIP_SCORE),
        (float("nan"), 0.2, None, reasons.CLIP_SCORE),
        (float("nan"), None, 0.2, reasons.CLIP_SCORE),
    ],
)
def test_score_problem(score, low, high, expected):
    assert score_problem(score, Filters(min_clip_score=low, max_clip_score=high)) == expected


ENGLISH = """a red apple on a blue background|two dogs|cat|sushi|green grass|a bowl of ramen|an avocado armchair
IMG_1234|Mona Lisa by Leonardo da Vinci|Santa Maria Novella, Firenze|Toyota Corolla 2015 blue
New York City skyline at night|a child
pizza margherita|Eiffel Tower, Paris|animal crossing|digital art selected for the #|bathroom interior design|2009|👩‍🚀
woman in red dress walking on the street|hand drawn vector illustration of flowers|a small snail in the corner"""
FOREIGN = """ein roter Apfel auf blauem Grund|un chat noir sur un canapé|un perro corriendo en el parque|дом у моря
赤いりんご|قطة سوداء|una casa en la playa|Schloss Neuschwanstein im Winter|pemandangan gunung di pagi hari
κόκκινο μήλο|собака
Frau mit rotem Kleid geht auf der Straße|uma mulher com um vestido vermelho|kobieta w czerwonej sukience|猫|고양이
een vrouw met een rode jurk|en kvinna i en röd klänning|kırmızı elbiseli kadın sokakta yürüyor"""


@pytest.mark.parametrize("caption", ENGLISH.replace("\n", "|").split("|"))
def test_english_captions_are_kept(caption):
    assert may_be_english(caption)


@pytest.mark.parametrize("caption", FOREIGN.replace("\n", "|").split("|"))
def test_captions_that_are_surely_foreign_are_not(caption):
    assert not may_be_english(caption)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_caption": -1}, "--min-caption is -1"),
        ({"min_caption": 10, "max_caption": 5}, "--max-caption is 5: it must be at least --min-caption, 10"),
        ({"max_aspect": 0.5}, "--max-aspect is 0.5"),
        ({"min_side": -3}, "--min-side"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"max_pixels": 10**9}, "--max-pixels"),
        ({"duplicates": "some"}, "--duplicates is 'some': it must be exact or near"),
        ({"near_distance": 9}, "--near-distance"),
        ({"min_clip_score": 0.4, "max_clip_score": 0.3}, "--max-clip-score"),
        ({"where": "a >"}, "--where"),
        ({"min_clip_score": float("nan")}, "--min-clip-score is nan: it must be a number, or off for no limit"),
        ({"max_clip_score": float("inf")}, "--max-clip-score is inf: it must be a number, or off for no limit"),
        ({"max_aspect": 1e300}, "--max-aspect is 1e[+]300: it must be at most 1e[+]06"),
        ({"min_caption": 10**5000}, "--min-caption is a value too long to show: it must be at least 0, and less than"),
        ({"max_aspect": float("nan")}, "--max-aspect is nan: it must be a number, or off for no limit"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        Filters(**options)


class Dataset:
    name, size, sparse_columns = "dataset", None, False

    def __init__(self, *examples):
        self.all = examples

    def parts(self):
        return [self]

    def examples(self):
        return iter(self.all)


def test_check_where_names_the_columns_that_there_are():
    dataset = Dataset(example("a dog", problem=reasons.CUT_SHORT), example("a dog", score=1, width=3))
    check_where(Filters(where="score > 0"), dataset)
    check_where(Filters(), dataset)
    with pytest.raises(UserError, match=r"no column 'scores'; the columns are score, width"):
        check_where(Filters(where="scores > 0"), dataset)


def test_a_column_that_may_come_later_is_a_notice(caplog):
    dataset = Dataset(*(example("a dog", width=3) for _ in range(70)), example("a dog", score=1))
    with pytest.raises(UserError, match="no column 'score'; the columns are width"):
        check_where(Filters(where="score > 0"), dataset)
    dataset.sparse_columns = True  # as of JSON beside pictures
    check_where(Filters(where="width > 0"), dataset)
    assert not caplog.messages
    check_where(Filters(where="score > 0"), dataset)
    assert caplog.messages == [
        "--where: none of the first 64 examples has 'score' (their columns are width): those without it are dropped"
    ]
    bare = Dataset(example("a dog"))
    bare.sparse_columns = True
    with pytest.raises(UserError, match="no column 'score'; it has no columns at all"):
        check_where(Filters(where="score > 0"), bare)


def test_every_reason_has_its_place_in_the_order():
    from dalle_mini.data.encode.finish import ORDER

    assert sorted(ORDER) == sorted(reasons.REASONS)


def test_the_docs_list_every_reason_and_default():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for reason, meaning in reasons.REASONS.items():
        assert f"| {reason} | {meaning} |\n" in text.replace("`", "")
    filters = Filters()
    for option, default in (
        ("--min-caption N", f"{filters.min_caption} characters"),
        ("--max-caption N", f"{filters.max_caption} characters"),
        ("--max-aspect X", f"{filters.max_aspect:g}:"),
        ("--min-side N", f"{filters.min_side} pixels"),
        ("--max-pixels N", f"{filters.max_pixels},"),
    ):
        assert f"| `{option}` | {default}" in text
    assert f"{filters.near_distance} bits of 64" in text
    assert (filters.english, filters.duplicates, filters.where, filters.min_clip_score) == (False, None, None, None)
