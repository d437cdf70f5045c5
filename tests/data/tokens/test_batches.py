import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, chi2

from dalle_mini.data.tokens.batches import TokenBatches, check_compatible
from dalle_mini.data.tokens.dataset import TokenDataset
from dalle_mini.errors import UserError
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from token_folders import caption, write_notebook, write_tokens

TESTS = Path(__file__).parents[2]
TEXT = 16


@pytest.fixture(scope="module")
def words():
    golden = TESTS / "golden"
    return CaptionTokenizer.from_pretrained(golden / "tokenizer"), CaptionNormalizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two data sets, of 250 and 90 rows; those of the first have up to 3 captions."""
    import datasets

    folder = tmp_path_factory.mktemp("tokens")
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "arrow"
    one = TokenDataset(write_tokens(folder / "one", 250, others=2))
    two = TokenDataset(write_tokens(folder / "two", 90, prefix="two "))
    datasets.config.HF_DATASETS_CACHE = kept
    return one, two


def make(data, words, **changes) -> TokenBatches:
    settings = {"batch_size": 32, "seed": 5, "text_length": TEXT, "process_index": 0, "process_count": 1}
    return TokenBatches(data, *words, **settings | changes)


def row_numbers(batch) -> np.ndarray:
    return (batch["labels"].astype(int) * 64 ** np.arange(4)).sum(1)


def same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def text(words, captions) -> dict:
    tokenizer, normalizer = words
    ids, mask = tokenizer([normalizer(one) for one in captions], TEXT)
    return {"input_ids": ids, "attention_mask": mask}


def test_a_batch_holds_what_its_rows_hold(data, words):
    batches = make(data[1], words)
    batch = batches.at(1)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "input_ids": ((32, TEXT), np.int32),
        "attention_mask": ((32, TEXT), np.int32),
        "labels": ((32, 4), np.uint16),
    }
    rows = row_numbers(batch)
    same(text(words, [f"two {caption(row)}" for row in rows]), {k: v for k, v in batch.items() if k != "labels"})
    assert batches.rows(1) == [f"{data[1].folder}: two train/{row:06d}" for row in rows]


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_global_batches_are_the_same_for_1_2_4_and_8_hosts(data, words, weights):
    settings = {"weights": weights, "caption_dropout": 0.2}
    alone = make(data, words, **settings)
    for hosts in (2, 4, 8):
        parts = [make(data, words, process_index=host, process_count=hosts, **settings) for host in range(hosts)]
        for step in (0, 3, 10, 11, 10**6):  # within an epoch, over its edge, far away
            batch = alone.at(step)
            shares = [part.at(step) for part in parts]
            same(batch, {name: np.concatenate([share[name] for share in shares]) for name in batch})
            assert {len(share["labels"]) for share in shares} == {32 // hosts}
            assert {tuple(part.rows(step)) for part in parts} == {tuple(alone.rows(step))}


def test_each_host_reads_only_its_rows(data, words, monkeypatch):
    read = []
    rows = TokenDataset.rows
    monkeypatch.setattr(TokenDataset, "rows", lambda self, asked, *rest: read.extend(asked) or rows(self, asked, *rest))
    batch = make(data[0], words, process_index=1, process_count=4).at(7)
    assert sorted(read) == sorted(row_numbers(batch)) and len(read) == 8


def test_a_run_that_stops_at_any_step_continues_with_the_same_batches(data, words):
    whole = [make(data, words, caption_dropout=0.1).at(step) for step in range(24)]
    for stop in range(24):
        same(make(data, words, caption_dropout=0.1).at(stop), whole[stop])  # nothing of the steps before is known


def test_every_row_exactly_once_an_epoch_whatever_the_batch(data, words):
    batches = make(data[0], words, batch_size=48)
    steps = 48  # 48 * 48 = 9 epochs of 250 rows and 54 rows
    rows = np.concatenate([row_numbers(batches.at(step)) for step in range(steps)])
    for epoch in range(9):
        assert sorted(rows[epoch * 250 : (epoch + 1) * 250]) == list(range(250))
    assert batches.epoch(steps) == pytest.approx(steps * 48 / 250)


def test_without_weights_data_sets_are_one(data, words):
    batches = make(data, words, batch_size=34)
    names = [name for step in range(10) for name in batches.rows(step)]
    expected = [f"{data[0].folder}: {data[0].name(row)}" for row in range(250)]
    assert sorted(names) == sorted(expected + [f"{data[1].folder}: {data[1].name(row)}" for row in range(90)])


def test_another_seed_another_order(data, words):
    assert make(data, words).rows(0) != make(data, words, seed=6).rows(0)


def test_one_of_many_captions_is_drawn_evenly_and_anew_each_epoch(data, words):
    batches = make(data[0], words, batch_size=250)
    counts = np.zeros(3, int)
    first = {}
    for epoch in range(12):
        batch = batches.at(epoch)
        for row, ids in zip(row_numbers(batch), batch["input_ids"], strict=True):
            own = [caption(row), *(f"{k} of {row}" for k in range(row % 3))]
            known = text(words, own)["input_ids"].tolist()
            choice = known.index(ids.tolist())
            if len(own) == 3:
                counts[choice] += 1
                first.setdefault(row, []).append(choice)
    assert sum((counts - counts.mean()) ** 2 / counts.mean()) < chi2.isf(1e-6, 2)
    assert len(set(map(tuple, first.values()))) > 70  # of 83 rows: 3**12 histories are possible


def test_caption_dropout(data, words):
    blank = words[0]([""], TEXT)
    everything, nothing = (make(data[1], words, caption_dropout=share).at(0) for share in (1.0, 0.0))
    assert (everything["input_ids"] == blank[0]).all() and (everything["attention_mask"] == blank[1]).all()
    assert not (nothing["input_ids"] == blank[0]).all(1).any()
    batches = make(data[1], words, caption_dropout=0.2, batch_size=90)
    dropped = [(batches.at(step)["input_ids"] == blank[0]).all(1) for step in range(20)]
    assert abs(np.sum(dropped) - 360) <= binom.isf(5e-7, 1800, 0.2) - 360
    assert np.any(dropped[0] != dropped[1])
    same({"labels": batches.at(3)["labels"]}, {"labels": make(data[1], words, batch_size=90).at(3)["labels"]})


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 32, 400])
def test_evaluation_covers_every_row_once(data, words, hosts, batch_size):
    parts = [make(data, words, process_index=host, process_count=hosts) for host in range(hosts)]
    shares = [list(part.evaluation(batch_size)) for part in parts]
    assert {len(share) for share in shares} == {-(-340 // batch_size)}
    seen = []
    for together in zip(*shares, strict=True):
        batch = {name: np.concatenate([share[name] for share in together]) for name in together[0]}
        assert batch["labels"].shape == (batch_size, 4) and batch["label_mask"].dtype == np.float32
        assert set(batch["label_mask"]) <= {0.0, 1.0}
        seen += row_numbers(batch)[batch["label_mask"] > 0].tolist()
    assert seen == [*range(250), *range(90)]
    ids = np.concatenate([share["input_ids"] for share in shares[0]])[: min(batch_size // hosts, 250)]
    np.testing.assert_array_equal(ids, text(words, map(caption, range(len(ids))))["input_ids"])  # the first caption


def test_origin_tells_data_and_settings_apart(data, words):
    origin = make(data, words).origin()
    assert json.loads(json.dumps(origin)) == origin
    assert not any(isinstance(value, dict | list) for value in origin.values())
    assert make(data, words, batch_size=64, process_index=1, process_count=2).origin() == origin
    others = [
        make(data[0], words),
        make(data[::-1], words),
        make(data, words, weights=[1, 2]),
        make(data, words, caption_dropout=0.5),
        make(data, words, text_length=8),
        make(data, (words[0], None)),
    ]
    assert len({json.dumps(one.origin()) for one in [make(data, words), *others]}) == 7


def test_data_sets_that_do_not_go_together(data, words, arrow_cache, tmp_path):
    theirs = TokenDataset(write_tokens(tmp_path / "theirs", 4, vqgan="f" * 16))
    with pytest.raises(UserError, match=r"theirs: tokens of another VQGAN \(f{16}\)"):
        make([*data, theirs], words)
    longer = TokenDataset(write_tokens(tmp_path / "longer", 4, image_length=9))
    with pytest.raises(UserError, match="longer: its image_length is 9"):
        check_compatible([data[0], longer])
    with pytest.raises(UserError, match="no data set"):
        make([], words)
    named = TokenDataset(write_notebook(tmp_path / "notebook", 6), vqgan=data[0].vqgan)
    with pytest.raises(UserError, match="codebook_size is 16384"):
        make([data[0], named], words)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 30, "process_count": 4}, "batch_size 30"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"caption_dropout": 1.5}, "caption_dropout 1.5"),
        ({"seed": -1}, "seed -1"),
        ({"weights": [1]}, "weights: 1 of them for 2"),
    ],
)
def test_bad_settings(data, words, changes, message):
    with pytest.raises(UserError, match=message):
        make(data, words, **changes)
    with pytest.raises(UserError, match="no multiple of the 2 processes"):
        make(data, words, process_count=2).evaluation(5)
