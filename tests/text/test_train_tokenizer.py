import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.text import CaptionTokenizer
from dalle_mini.text.train_tokenizer import train_caption_tokenizer, train_clip_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
THINGS, COLOURS = ("apple", "snail", "fox", "umbrella", "rocket"), ("red", "blue", "green", "yellow")
CAPTIONS = [
    f" a {size} {thing} on a {colour} background"
    for size, thing, colour in itertools.product(("big", "small"), THINGS, COLOURS)
]
TRAINERS = pytest.mark.parametrize("train", [train_caption_tokenizer, train_clip_tokenizer])


def test_caption_tokenizer_is_of_the_published_kind(tmp_path):
    trained = train_caption_tokenizer(CAPTIONS, 330, tmp_path)
    assert 300 < trained.vocab_size <= 330
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    golden = json.loads((GOLDEN / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert list(content["model"]["vocab"])[:261] == list(golden["model"]["vocab"])[:261]
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        assert content[part] == golden[part]
    assert trained([""], max_length=4)[0].tolist() == [[0, 2, 1, 1]]
    assert trained.count(" a red apple on a blue background") < 15


def test_clip_tokenizer_is_of_the_published_kind(tmp_path):
    trained = train_clip_tokenizer(CAPTIONS, 580, tmp_path)
    assert 540 < trained.vocab_size <= 580
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    golden = json.loads((GOLDEN / "clip" / "tokenizer.json").read_text(encoding="utf-8"))
    assert list(content["model"]["vocab"])[:512] == list(golden["model"]["vocab"])[:512]
    assert list(content["model"]["vocab"])[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert content["model"]["end_of_word_suffix"] == "</w>"
    assert content["normalizer"] == golden["normalizer"]
    assert content["pre_tokenizer"] == golden["pre_tokenizer"]
    start, end = trained.vocab_size - 2, trained.vocab_size - 1
    assert trained([""], max_length=4)[0].tolist() == [[start, end, end, end]]
    assert trained.pad_id == end
    np.testing.assert_array_equal(trained(["A RED\n Apple"])[0], trained([" a red apple "])[0])
    assert trained.count("a red apple") <= 6


@TRAINERS
def test_reading_gives_what_training_gave(tmp_path, train):
    trained, read = train(CAPTIONS, 600, tmp_path), CaptionTokenizer.from_pretrained(tmp_path)
    captions = ["", CAPTIONS[0], "日本語 😀 café", "<s> <|endoftext|> 123", "\0\ud800"]
    for ours, again in zip(trained(captions), read(captions), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert trained.vocab_size == read.vocab_size


@TRAINERS
def test_unseen_bytes_are_known(tmp_path, train):
    trained = train(CAPTIONS, 600, tmp_path)
    assert 3 not in trained(["Ж 日 😀"])[0]
    assert trained.count("日") == trained.count("") + 3


@TRAINERS
def test_the_same_captions_give_the_same_files(tmp_path, train):
    code = (
        f"from dalle_mini.text.train_tokenizer import {train.__name__} as train; import sys\n"
        f"train({CAPTIONS!r}, 560, sys.argv[1])"
    )
    for folder in ("first", "second"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / folder)], check=True)
    files = [{path.name: path.read_bytes() for path in (tmp_path / f).iterdir()} for f in ("first", "second")]
    assert files[0] == files[1]
    assert len(files[0]) == 3


@TRAINERS
def test_smallest_vocabulary_has_bytes_and_specials(tmp_path, train):
    smallest = {"train_caption_tokenizer": 261, "train_clip_tokenizer": 514}[train.__name__]
    assert train(CAPTIONS, smallest, tmp_path).vocab_size == smallest


@TRAINERS
def test_bad_requests(tmp_path, train):
    with pytest.raises(UserError, match="vocab_size=100"):
        train(CAPTIONS, 100, tmp_path)
    with pytest.raises(UserError, match="captions"):
        train([], 600, tmp_path)
    assert not list(tmp_path.iterdir())
