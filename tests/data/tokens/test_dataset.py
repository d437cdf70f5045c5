import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_mini.data.tokens.dataset import TokenDataset
from dalle_mini.data.tokens.shards import Manifest
from dalle_mini.errors import UserError
from token_folders import VQGAN, caption, write_notebook, write_tokens


def expected_tokens(rows) -> np.ndarray:
    return np.asarray(rows)[:, None] // 64 ** np.arange(4) % 64


def refusal(source, *args, **kwargs) -> str:
    with pytest.raises(UserError) as raised:
        TokenDataset(source, *args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_rows_of_any_order_over_shards(arrow_cache, tmp_path):
    data = TokenDataset(write_tokens(tmp_path / "out", {"train": 250, "validation": 30}, others=2))
    assert (len(data), data.vqgan, data.codebook_size, data.image_length) == (250, VQGAN, 64, 4)
    asked = [249, 0, 100, 99, 0, 7]
    found = data.rows(asked, ("key", "caption", "other_captions", "tokens", "width", "clip_score"))
    assert found["key"] == [f"train/{row:06d}" for row in asked]
    assert found["caption"] == [caption(row) for row in asked]
    assert found["other_captions"] == [[f"{k} of {row}" for k in range(row % 3)] for row in asked]
    assert found["tokens"].dtype == np.uint16
    np.testing.assert_array_equal(found["tokens"], expected_tokens(asked))
    assert found["width"] == [200 + row % 100 for row in asked]
    np.testing.assert_allclose(found["clip_score"], [row % 7 / 10 for row in asked], rtol=1e-6)
    held_out = TokenDataset(tmp_path / "out", "validation")
    assert len(held_out) == 30 and held_out.name(3) == "validation/000003"
    assert data.digest != held_out.digest
    for wrong in (250, -1):
        with pytest.raises(IndexError):
            data.rows([wrong])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_mapped_pages_are_handed_back(arrow_cache, tmp_path, monkeypatch):
    def mapped() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
        return int(line.split()[1]) * 1024

    tokens = np.arange(10_000)[:, None] * np.ones(1024, int) % 64
    data = TokenDataset(write_tokens(tmp_path / "out", 10_000, shard_rows=10_000, image_length=1024, tokens=tokens))
    before = mapped()
    np.testing.assert_array_equal(data.rows(range(10_000), ("tokens",))["tokens"], tokens)
    assert mapped() - before > 0.9 * 2 * tokens.size  # far from the limit: they stay
    monkeypatch.setattr("dalle_mini.data.tokens.arrow_cache.MAPPED", 2**23)
    for some in np.random.default_rng(0).permutation(10_000)[:250].reshape(50, 5):
        np.testing.assert_array_equal(data.rows(some, ("tokens",))["tokens"], tokens[some])
    data.rows([0, 1, 2, 3, 4])  # the fifth row since, or later: handed back
    assert mapped() - before < 2**23


def test_wide_codebooks(arrow_cache, tmp_path):
    tokens = [[69_999, 0, 1, 65_536]] * 3
    data = TokenDataset(write_tokens(tmp_path / "out", 3, codebook_size=70_000, tokens=tokens))
    found = data.rows([2, 0])["tokens"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, tokens[:2])


def test_shards_of_the_originals_notebook(arrow_cache, tmp_path):
    folder = write_notebook(tmp_path / "notebook", 50)
    assert "name their VQGAN" in refusal(folder)
    data = TokenDataset(folder, vqgan=VQGAN)
    assert (len(data), data.vqgan, data.codebook_size, data.image_length) == (50, VQGAN, 16_384, 4)
    found = data.rows([49, 3])
    assert found["caption"] == [caption(49), caption(3)] and found["other_captions"] == [None, None]
    assert found["tokens"].dtype == np.uint16
    np.testing.assert_array_equal(found["tokens"], expected_tokens([49, 3]))
    assert data.name(3) == "row 3"
    assert "no manifest.json" in refusal(folder, "validation", vqgan=VQGAN)
    write_notebook(tmp_path / "split" / "validation", 8)
    assert len(TokenDataset(tmp_path / "split", "validation", vqgan=VQGAN)) == 8


def test_a_vqgan_is_known_by_its_folder(arrow_cache, tmp_path, golden_bundle):
    from dalle_mini.models import VQGAN as Model
    from dalle_mini.models.fingerprint import fingerprint

    model = Model.from_pretrained(golden_bundle / "vqgan")
    folder = write_notebook(tmp_path / "notebook", 5)
    data = TokenDataset(folder, vqgan=golden_bundle / "vqgan")
    assert (data.vqgan, data.codebook_size) == (fingerprint(model), model.config.n_embed)
    ours = write_tokens(tmp_path / "ours", 5)
    assert re.search(f"another VQGAN .{VQGAN}.*{fingerprint(model)}", refusal(ours, vqgan=model))
    assert len(TokenDataset(ours, vqgan=VQGAN)) == 5


def test_unknown_manifest_and_folder(arrow_cache, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "owner/name" in refusal("nothing")
    assert "no manifest.json" in refusal(tmp_path)
    folder = write_tokens(tmp_path / "out", {"train": 5, "validation": 0})
    assert "no validation rows" in refusal(folder, "validation")
    assert "train, validation" in refusal(folder, "test")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    for damaged in ("", "{", "[]", text[: len(text) // 2], text.replace('"identity"', '"name"')):
        manifest.write_text(damaged)
        assert "manifest.json: damaged" in refusal(folder)
    manifest.unlink()
    assert "no manifest.json" in refusal(folder)


@pytest.mark.parametrize("damage", ["gone", "short", "bit", "empty"])
def test_damaged_shards_are_named(arrow_cache, tmp_path, damage):
    folder = write_tokens(tmp_path / "out", 250)
    shard = folder / "train-00001.parquet"
    data = bytearray(shard.read_bytes())
    if damage == "gone":
        shard.unlink()
    elif damage == "bit":
        data[300] ^= 1
        shard.write_bytes(data)
    else:
        shard.write_bytes(data[: len(data) // 2] if damage == "short" else b"")
    assert str(shard) in refusal(folder)
    assert ("missing" if damage == "gone" else "damaged") in refusal(folder)


def test_damage_after_the_first_time_is_noticed_too(arrow_cache, tmp_path):
    folder = write_tokens(tmp_path / "out", 50)
    assert len(TokenDataset(folder)) == 50
    shard = folder / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 0.3, 0.97])
def test_a_damaged_cache_is_named(arrow_cache, tmp_path, kept):
    folder = write_tokens(tmp_path / "out", 500)
    TokenDataset(folder)
    (cached,) = arrow_cache.rglob("*.arrow")
    cached.write_bytes(cached.read_bytes()[: int(cached.stat().st_size * kept)])
    assert re.search(f"{cached.parent}: the cached copy of {folder} is damaged .*: delete it", refusal(folder))
    shutil.rmtree(cached.parent)
    assert len(TokenDataset(folder)) == 500


@pytest.mark.parametrize("damage", ["footer", "page", "columns", "length", "negative"])
def test_damaged_files_of_the_notebook_are_named(arrow_cache, tmp_path, damage, capfd):
    folder = write_notebook(tmp_path / "notebook", 50)
    file = folder / "002.parquet"
    data = bytearray(file.read_bytes())
    table = pq.read_table(file)
    if damage == "footer":
        file.write_bytes(data[:-20])
    elif damage == "page":
        data[20:60] = bytes(40)
        file.write_bytes(data)
    elif damage == "columns":
        pq.write_table(table.select(["caption"]), file)
    else:
        wrong = [1, 2, 3] if damage == "length" else [1, 2, 3, -1]
        pq.write_table(pa.table({"caption": ["x"] * 2, "encoding": [[1, 2, 3, 4], wrong]}), file)
    assert str(file) in refusal(folder, vqgan=VQGAN)
    assert capfd.readouterr().err == ""  # `datasets` has lines of its own about what it raises


@pytest.mark.parametrize("token", [-1, 16_384])
def test_tokens_beyond_the_codebook_of_the_notebook_are_found_at_once(arrow_cache, tmp_path, token):
    """No batch is waited for: the files themselves tell their largest number."""
    folder = write_notebook(tmp_path / "notebook", 50)
    table = pa.table({"caption": ["x"] * 2, "encoding": [[1, 2, 3, 4], [1, token, 3, 4]]})
    pq.write_table(table, folder / "002.parquet")
    said = refusal(folder, vqgan=VQGAN)
    assert f"002.parquet: it has the token {token}, and VQGAN {VQGAN} has 16384 codes" in said
    assert not arrow_cache.exists()


def test_whose_tokens_the_notebooks_are_is_asked_in_the_users_words(tmp_path):
    assert "name their VQGAN (data.vqgan of a run, vqgan= in Python)" in refusal(write_notebook(tmp_path / "x", 5))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("caption", [["x"], ["y"]], "caption must be text, and is list<"),
        ("encoding", [[0.5] * 4] * 2, "not such a shard"),
    ],
)
def test_columns_of_another_kind_are_named_and_nothing_else_is_said(arrow_cache, tmp_path, capfd, column, values, says):
    folder = write_notebook(tmp_path / "notebook", 50)
    found = {"caption": ["x"] * 2, "encoding": [[1, 2, 3, 4]] * 2} | {column: values}
    pq.write_table(pa.table(found), folder / "002.parquet")
    said = refusal(folder, vqgan=VQGAN)
    assert said.startswith(f"{folder}/002.parquet: ") and says in said
    assert "Failed to read" not in capfd.readouterr().err


def test_tokens_beyond_the_codebook_are_named_when_they_are_read(arrow_cache, tmp_path):
    tokens = np.zeros((9, 4), int)
    tokens[5, 2] = 64
    data = TokenDataset(write_tokens(tmp_path / "out", 9, tokens=tokens))
    data.rows([0, 1, 2, 3, 4])
    with pytest.raises(UserError, match=r"train/000005 has the token 64, and VQGAN .* has 64 codes"):
        data.rows([4, 5])


def test_the_digest_is_of_the_rows_wherever_they_lie(arrow_cache, tmp_path):
    one, same = (TokenDataset(write_tokens(tmp_path / name, 20)).digest for name in ("a", "b"))
    other = TokenDataset(write_tokens(tmp_path / "c", 21)).digest
    assert one == same != other
    manifest = Manifest.read(tmp_path / "b")
    theirs = dataclasses.replace(manifest, vqgan=dataclasses.replace(manifest.vqgan, identity="f" * 16))
    (tmp_path / "b" / "manifest.json").write_text(theirs.to_json())
    assert TokenDataset(tmp_path / "b").digest != one


def test_from_the_hub(arrow_cache, tmp_path, monkeypatch):
    from hub_server import serving

    folder = write_tokens(tmp_path / "out", {"train": 30, "validation": 6}, shard_rows=20)
    with serving(monkeypatch, tmp_path / "hub") as hub:
        hub.add("someone/tokens", folder, **{"dropped.parquet": b"not asked for"})
        data = TokenDataset("someone/tokens")
        assert len(data) == 30 and data.digest == TokenDataset(folder).digest
        assert sorted(hub.fetched()) == ["manifest.json", "train-00000.parquet", "train-00001.parquet"]
        hub.add("someone/notebook", write_notebook(tmp_path / "notebook", 7))
        assert len(TokenDataset("someone/notebook", vqgan=VQGAN)) == 7
        hub.add("someone/readme", **{"README.md": b"nothing here"})
        assert "neither a manifest.json nor Parquet" in refusal("someone/readme")
        assert "someone/nothing" in refusal("someone/nothing")
        hub.forget()
        assert len(TokenDataset("someone/tokens", local_files_only=True)) == 30
        assert not hub.requests


def test_notebook_shards_with_odd_values(arrow_cache, tmp_path):
    """A caption that is not UTF-8 is read, and columns that nobody asked for do not matter."""
    rows, folder = 6, tmp_path / os.fsdecode(b"caf\xe9[1]")
    folder.mkdir()
    captions = pa.array([b"a caf\xe9" if row == 2 else b"a tea" for row in range(rows)])
    days = pa.array([10**7] * rows, pa.int32()).cast(pa.date32())
    table = pa.Table.from_arrays(
        [
            pa.Array.from_buffers(pa.string(), rows, captions.buffers()),
            pa.array([[1, 2, 3, 4]] * rows),
            days,
            pa.array([1] * rows, pa.timestamp("us", tz="UTC+3")),
        ],
        ["caption", "encoding", "taken", "at"],
    )
    with (folder / "001.parquet").open("wb") as file:
        pq.write_table(table, file)
    data = TokenDataset(folder, vqgan=VQGAN)
    assert data.rows([1, 2])["caption"] == ["a tea", "a café"]
