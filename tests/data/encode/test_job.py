"""Images to shards of tokens: what is written, runs that are killed or share the work, and what fails on the way."""

import dataclasses
import errno
import os
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

import noise_dataset
from dalle_mini.data.encode.launchers import Share
from dalle_mini.data.encode.workers import ReadingFailed
from dalle_mini.data.tokens.shards import Manifest, read_table, schema
from dalle_mini.errors import UserError
from dalle_mini.imaging.decoding import decode_image
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.models import VQGAN
from dalle_mini.runtime.folders import LocalFolder
from noise_dataset import DROPPED, PARTS, SEEN, NoiseDataset, content
from noise_dataset import run_encode as run

SCRIPT = Path(noise_dataset.__file__)

pytestmark = pytest.mark.usefixtures("loaded_once")


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


@pytest.mark.slow
def test_killed_three_times_and_the_same_in_the_end(vqgan, whole, tmp_path):
    out = tmp_path / "out"
    for wanted in (1, 2, 3):
        process = start(vqgan, out, "--free", wanted)
        until(lambda wanted=wanted: staged(out) == wanted, process)
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert helpers
        process.send_signal(signal.SIGKILL)
        process.communicate()
        psutil.wait_procs(helpers, timeout=300)
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
