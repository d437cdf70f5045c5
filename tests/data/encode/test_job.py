"""Pictures to shards of tokens: what is written, runs that are killed, several at once, folders that are refused."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import psutil
import pyarrow as pa
import pytest
from flax import nnx

import noise_dataset
from dalle_mini.data.encode.encoders import Weights
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.job import encode
from dalle_mini.data.encode.launchers import Share
from dalle_mini.data.encode.workers import ReadingFailed
from dalle_mini.data.tokens.shards import Manifest, read_table, schema
from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import decode_image
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.runtime.folders import LocalFolder
from noise_dataset import DROPPED, FILTERS, PARTS, SEEN, NoiseDataset, content, make_vqgan, options

SCRIPT = Path(noise_dataset.__file__)


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("vqgan"))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Reading a VQGAN takes longer than encoding with it here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Weights, "load", functools.cache(Weights.load))
        yield


def run(vqgan, out, dataset=None, changes=None, workers=0, **more):
    """Without processes that read, which take a second to start, where the test is not of them."""
    return encode(
        dataset or NoiseDataset(), Weights(vqgan), str(out), options(**(changes or {})), workers=workers, **more
    )


@pytest.fixture(scope="module")
def whole(vqgan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "new"
    run(vqgan, folder, workers=2)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def rows_of(folder: Path) -> list[dict]:
    shards = [shard.file for split in Manifest.read(folder).splits.values() for shard in split.shards]
    return [row for name in shards for row in read_table(folder / name).to_pylist()]


def start(vqgan: str, out: Path, *arguments, **environ) -> subprocess.Popen:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), vqgan, str(out), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def staged(out: Path) -> int:
    return len(list((out / ".work" / "parts").glob("*.parquet")))


def until(condition, process=None, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_what_is_written(vqgan, whole):
    manifest = Manifest.read(whole)
    assert manifest.seen == SEEN and manifest.dropped == DROPPED
    assert manifest.kept == manifest.rows == SEEN - sum(DROPPED.values())
    assert [path.name for path in sorted(whole.iterdir())] == [
        *("dropped.parquet", "manifest.json"),
        *(f"train-0000{n}.parquet" for n in range(3)),
        "validation-00000.parquet",
    ]
    rows = rows_of(whole)
    keys = {row["key"] for row in rows}
    assert keys == {f"noise-{n}" for n in range(SEEN)} - {"noise-3", "noise-9", "noise-16", "noise-20"}
    model = VQGAN.from_pretrained(vqgan)
    for row in rows:
        n = int(row["key"].removeprefix("noise-"))
        assert (row["caption"], row["other_captions"]) == (f"picture {n}, ünïcode 🐌", [f"caption two of {n}"])
        assert (row["width"], row["height"]) == (12, 9 + n % 4)
        assert row["crop"] == 0 and row["clip_score"] is None
        image = resize_and_crop(decode_image(noise_dataset.image(n)), 8)
        assert row["tokens"] == model.encode(jnp.asarray(image[None], jnp.float32) / 255)[0].tolist()
    use = np.bincount([token for row in rows for token in row["tokens"]], minlength=16)
    assert list(manifest.codebook_use) == use.tolist() and np.count_nonzero(use) > 1


def test_the_shards_are_as_documented(whole):
    manifest = Manifest.read(whole)
    for name, split in manifest.splits.items():
        sizes = [shard.rows for shard in split.shards]
        assert sum(sizes) == split.rows and all(size == 8 for size in sizes[:-1])
        for shard in split.shards:
            table = read_table(whole / shard.file)
            assert table.schema == schema(16, 16) and len(table) == shard.rows
            assert content(whole)[shard.file] == shard.sha256, name
    assert 0 < manifest.splits["validation"].rows < manifest.splits["train"].rows


def test_nothing_is_lost_silently(whole):
    dropped = read_table(whole / "dropped.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in dropped] == [
        ("noise-3", "picture damaged"),
        ("noise-1", "duplicate key"),
        ("noise-16", "duplicate picture"),
        ("noise-20", "caption too short"),
    ]
    assert dropped[1]["detail"] == "noise-1" and dropped[2]["detail"] == "noise-2"
    assert Manifest.read(whole).dropped_rows.rows == len(dropped)


def test_filters_say_what_came_to_them_and_what_they_dropped(whole):
    manifest, left = Manifest.read(whole), SEEN
    for count in manifest.filters:
        left -= count.dropped
        assert count.kept == left
        assert count.dropped == DROPPED.get(count.name, 0)
    assert left == manifest.kept


def test_datasets_reads_the_folder(whole, tmp_path):
    import datasets

    data = datasets.load_dataset(str(whole), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in data.items()} == {
        name: split.rows for name, split in Manifest.read(whole).splits.items()
    }


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_workers_does_not_matter(vqgan, whole, tmp_path, workers):
    run(vqgan, tmp_path / "out", workers=workers)
    assert content(tmp_path / "out") == content(whole)


def test_progress_counts_pictures_and_parts(vqgan, tmp_path):
    seen = []
    run(vqgan, tmp_path / "out", progress=lambda stage, progress: seen.append((stage, progress)))
    encoding = [progress for stage, progress in seen if stage == "encode"]
    assert dataclasses.astuple(encoding[0]) == (0, 0, 0, PARTS, SEEN)
    assert dataclasses.astuple(encoding[-1]) == (SEEN, SEEN - 2, PARTS, PARTS, SEEN)  # duplicates come to light later
    assert seen[-1][0] == "finish" and seen[-1][1].parts_done == seen[-1][1].parts


def test_killed_three_times_and_the_same_in_the_end(vqgan, whole, tmp_path):
    out = tmp_path / "out"
    for wanted in (1, 2, 3):
        process = start(vqgan, out, "--free", wanted)
        until(lambda wanted=wanted: staged(out) == wanted, process)
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert helpers
        process.send_signal(signal.SIGKILL)
        process.communicate()
        psutil.wait_procs(helpers, timeout=20)
        assert not [helper for helper in helpers if helper.is_running()]  # they notice that they are alone
        assert staged(out) == wanted and not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / ".work" / "parts").iterdir()}
    run(vqgan, out, Watched(before))
    assert content(out) == content(whole)


class Watched(NoiseDataset):
    """Parts that are staged must not be read again."""

    def __init__(self, staged):
        super().__init__()
        object.__setattr__(self, "numbers", {int(path.stem) for path in staged})

    def parts(self):
        return [Unreadable(p.number) if p.number in self.numbers else p for p in super().parts()]


class Unreadable(noise_dataset.NoisePart):
    def examples(self):
        raise AssertionError("read again")


def test_a_second_encoder_is_refused(vqgan, tmp_path):
    out, go = tmp_path / "out", tmp_path / "go"
    first = start(vqgan, out, "--hold", go)
    until(lambda: (out / ".work" / "run.json").exists(), first)
    with pytest.raises(UserError, match=r"out: another run is at work there: wait for its end, or name another folder"):
        run(vqgan, out)
    with pytest.raises(UserError, match=r"shard 1 of 2, or an unsharded run, is at work there"):
        run(vqgan, out, share=Share(1, 2))
    go.touch()
    assert first.wait() == 0, first.communicate()
    assert Manifest.read(out).seen == SEEN


@pytest.mark.slow
def test_shards_of_an_array_share_the_work(vqgan, whole, tmp_path):
    out, go = tmp_path / "out", tmp_path / "go"
    environ = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    shards = [start(vqgan, out, "--hold", go, SLURM_ARRAY_TASK_ID=n, **environ) for n in ("1", "2")]
    for number, shard in enumerate(shards):
        until((out / ".work" / f"shard-{number}-of-2.lock").exists, shard)
    with pytest.raises(UserError, match="another run is at work there"):
        run(vqgan, out)
    go.touch()
    answers = [shard.communicate() for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], answers
    assert "finished\n" in {answer for answer, _ in answers}
    assert content(out) == content(whole)


def test_the_last_shard_finishes_and_so_does_a_plain_run(vqgan, whole, tmp_path):
    for last in (Share(2, 3), Share()):
        out = tmp_path / str(last.count)
        for index in (0, 1):
            outcome = run(vqgan, out, share=Share(index, 3))
            assert (
                outcome.manifest is None
                and outcome.parts_left == len(range(index + 1, PARTS, 3)) * 0 + {0: 3, 1: 1}[index]
            )
        assert run(vqgan, out, share=last).manifest == Manifest.read(whole)
        assert content(out) == content(whole)


def test_one_shard_twice_is_refused(vqgan, tmp_path):
    folder = LocalFolder(tmp_path)
    with folder.lock("run", shared=True), folder.lock("shard-0-of-2"):
        with pytest.raises(UserError, match="shard 0 of 2, or an unsharded run, is at work there"):
            run(vqgan, tmp_path, share=Share(0, 2))
        assert run(vqgan, tmp_path, share=Share(1, 2)).parts_left == 3


def test_only_one_makes_the_shards(vqgan, tmp_path):
    with LocalFolder(tmp_path).lock("finish"):
        outcome = run(vqgan, tmp_path)
    assert outcome.manifest is None and outcome.parts_left == 0
    assert not (tmp_path / "manifest.json").exists()
    assert run(vqgan, tmp_path).manifest.seen == SEEN


def test_a_finished_folder_is_left_alone(vqgan, whole, folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    outcome = run(vqgan, folder)
    assert outcome.was_finished and outcome.manifest == Manifest.read(whole)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_what_is_of_another_run_is_refused_by_name(vqgan, other, whole, folder, tmp_path, finished):
    if not finished:
        folder = tmp_path / "begun"
        run(vqgan, folder, share=Share(0, 2))
    before = content(folder)
    for dataset, changes, model, named in (
        (NoiseDataset(seed=1), {}, vqgan, "source.seed is 0 there and 1 now"),
        (None, {"crops": "random:2"}, vqgan, 'options.crops is "center" there and "random:2" now'),
        (None, {"quick_jpeg": True}, vqgan, "options.quick_jpeg is null there and true now"),
        (None, {"validation": 0.3}, vqgan, "options.validation is 0.2 there and 0.3 now"),
        (None, {"filters": Filters(min_side=9)}, vqgan, "options.filters.min_side is null there and 9 now"),
        (None, {}, other, "vqgan is "),
    ):
        with pytest.raises(UserError) as refused:
            run(model, folder, dataset, changes)
        assert f"{folder} is of another run (" in str(refused.value) and named in str(refused.value)
        assert "\n" not in str(refused.value)
        assert content(folder) == before


def test_a_source_that_has_changed_is_refused(vqgan, tmp_path):
    run(vqgan, tmp_path, share=Share(0, 2))
    with pytest.raises(UserError, match="the source changed since the run began"):
        run(vqgan, tmp_path, NoiseDataset(parts_count=PARTS + 1))


def test_a_folder_with_strange_shards_is_refused(vqgan, tmp_path):
    (tmp_path / "train-00000.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"holds train-00000.parquet, which no run there has made"):
        run(vqgan, tmp_path)
    assert content(tmp_path) == content(tmp_path) and [path.name for path in tmp_path.iterdir()] == [
        "train-00000.parquet"
    ]


@pytest.mark.parametrize("when", ["000002.parquet", "train-00001.parquet", "manifest.json"])
def test_a_disk_that_is_full(vqgan, whole, tmp_path, monkeypatch, when):
    fsync = os.fsync

    def full(descriptor):
        if when in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=rf"{when} cannot be written \(No space left on device\)") as refused:
            run(vqgan, tmp_path)
    assert "\n" not in str(refused.value)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    assert not (tmp_path / "manifest.json").exists()
    run(vqgan, tmp_path)
    assert content(tmp_path) == content(whole)


def test_a_folder_that_cannot_be_made(vqgan, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"/file is a file: name a folder"):
        run(vqgan, tmp_path / "file" / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_manifest(vqgan, folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        Manifest.read(folder)
    with pytest.raises(UserError, match=r"manifest.json: damaged.*name another folder"):
        run(vqgan, folder)


def test_a_damaged_staged_part_is_named(vqgan, tmp_path):
    run(vqgan, tmp_path, share=Share(0, 2))
    part = tmp_path / ".work" / "parts" / "000002.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000002.parquet is damaged .*: delete it and run the same command again"):
        run(vqgan, tmp_path)
    part.unlink()
    assert run(vqgan, tmp_path).manifest.seen == SEEN


def test_a_picture_that_ends_its_process_is_dropped(vqgan, tmp_path):
    manifest = run(vqgan, tmp_path, NoiseDataset(options={"deadly": (8,)}), workers=2).manifest
    dropped = read_table(tmp_path / "dropped.parquet").to_pylist()
    assert ("noise-8", "decoding it ended the process") in {(row["key"], row["detail"]) for row in dropped}
    assert manifest.seen == SEEN and manifest.kept == SEEN - sum(DROPPED.values()) - 1


def test_a_process_that_dies_once_costs_nothing(vqgan, whole, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    run(vqgan, tmp_path / "out", NoiseDataset(options={"deadly": (8, 25), "marks": str(marks)}), workers=2)
    assert len(list(marks.iterdir())) == 2
    assert content(tmp_path / "out") == content(whole)


def test_a_source_that_fails_ends_the_run_and_what_is_staged_stays(vqgan, whole, tmp_path):
    with pytest.raises(ReadingFailed, match="AssertionError: read again"):
        run(vqgan, tmp_path, Watched([Path("000003.parquet")]), workers=1)  # with one, the parts before are done
    assert 0 < staged(tmp_path) < PARTS
    run(vqgan, tmp_path)
    assert content(tmp_path) == content(whole)


class Large(noise_dataset.NoisePart):
    def examples(self):
        raise MemoryError("no place for a picture")


def test_a_reader_without_memory_says_so_in_one_line(vqgan, tmp_path):
    dataset = NoiseDataset()
    object.__setattr__(dataset, "parts", lambda: [Large(0)])
    with pytest.raises(UserError, match=r"^the machine has too little memory \(no place for a picture\): use"):
        run(vqgan, tmp_path, dataset, workers=1)


def test_random_crops_are_rows_of_one_picture(vqgan, tmp_path):
    manifest = run(vqgan, tmp_path / "a", changes={"crops": "random:3"}).manifest
    assert manifest.kept == SEEN - sum(DROPPED.values()) and manifest.rows == 3 * manifest.kept
    assert manifest.dropped == DROPPED
    rows = rows_of(tmp_path / "a")
    for split in ("train", "validation"):
        tables = [read_table(tmp_path / "a" / shard.file) for shard in manifest.splits[split].shards]
        table = pa.concat_tables(tables)
        assert table["crop"].to_pylist() == [0, 1, 2] * (len(table) // 3)  # a picture is on one side
    of_one = [row["tokens"] for row in rows if row["key"] == "noise-0"]
    assert len(of_one) == 3 and any(tokens != of_one[0] for tokens in of_one)
    run(vqgan, tmp_path / "b", changes={"crops": "random:3", "seed": 1})
    others = {(row["key"], row["crop"]): row["tokens"] for row in rows_of(tmp_path / "b")}
    assert any(others[row["key"], row["crop"]] != row["tokens"] for row in rows)


def test_a_validation_split_of_nothing(vqgan, tmp_path):
    manifest = run(vqgan, tmp_path, changes={"validation": 0.0}).manifest
    assert manifest.splits["validation"].rows == 0 and manifest.splits["validation"].shards == ()
    assert manifest.splits["train"].rows == manifest.rows


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crops": "random:0"}, "--crops is 'random:0': it must be center, or random:N with N from 1 to 1000"),
        ({"crops": "middle"}, "--crops is 'middle'"),
        ({"validation": 1.0}, "--validation is 1.0: it must be a share"),
        ({"shard_rows": 0}, "--shard-rows is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"filters": Filters(min_clip_score=0.2)}, "--min-clip-score and --max-clip-score want --clip-scores"),
    ],
)
def test_options_that_make_no_sense(changes, says):
    with pytest.raises(UserError, match=says):
        options(**changes)


def test_an_engine_that_there_is_not(vqgan, tmp_path):
    with pytest.raises(UserError, match="--engine is 'spark': it must be local or ray"):
        run(vqgan, tmp_path, engine="spark")
    with pytest.raises(UserError, match="--engine ray shares the work itself"):
        run(vqgan, tmp_path, engine="ray", share=Share(0, 2))


def test_the_identity_is_of_what_decides_tokens(vqgan):
    model = VQGAN.from_pretrained(vqgan)

    def changed(part) -> VQGAN:
        copy = nnx.clone(model)
        parameter = part(copy)
        parameter[...] = parameter[...].at[0].add(1e-3)
        return copy

    identities = {
        fingerprint(model),
        fingerprint(changed(lambda copy: copy.encoder.conv_out.bias)),
        fingerprint(changed(lambda copy: copy.quant_conv.kernel)),
        fingerprint(changed(lambda copy: copy.codebook.embedding)),
    }
    assert len(identities) == 4
    assert fingerprint(nnx.clone(model)) == fingerprint(model)
    assert fingerprint(changed(lambda copy: copy.decoder.conv_in.bias)) == fingerprint(model)


def test_the_shipped_vqgan_is_still_called_what_its_model_calls_it():
    shipped = Path(noise_dataset.__file__).parents[2] / "src/dalle_mini/assets/emoji"
    told = [json.loads(path.read_text()) for path in shipped.rglob("tokens.json")]
    assert all(fingerprint(VQGAN.from_pretrained(shipped / "vqgan")) == one["vqgan"] for one in told)


def test_defaults_of_the_filters_are_the_documented_ones():
    assert FILTERS.duplicates == "near" and Filters().duplicates is None
