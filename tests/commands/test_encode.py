"""`dalle-mini encode`: bad datasets from one end to the other, what it says, and its mistakes."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bad_dataset
from dalle_mini.cli import main
from dalle_mini.commands.encode import describe
from dalle_mini.data.encode.stage import Progress
from dalle_mini.data.tokens.shards import Manifest, read_table
from noise_dataset import image, make_vqgan

MAKERS = {"folder": bad_dataset.make_folder, "tars": bad_dataset.make_tars, "parquet": bad_dataset.make_parquet}


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> str:
    return make_vqgan(tmp_path_factory.mktemp("vqgan"))


@pytest.fixture
def encode(vqgan, capsys):
    """Run the command; (exit code, output, errors)."""

    def run(*arguments):
        code = main(["encode", *map(str, arguments), "--vqgan", vqgan])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures of noise, with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.png").write_bytes(image(n))
        (folder / f"{n}.txt").write_text(f"picture {n}")
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_dataset_is_kept_or_counted_to_the_last_picture(encode, tmp_path, kind):
    dataset, out = MAKERS[kind](tmp_path / "dataset"), tmp_path / "out"
    code, shown, errors = encode(dataset.source, out, "--workers", 2 * (kind == "tars"))
    assert code == 0, errors
    manifest = Manifest.read(out)
    assert manifest.dropped == dataset.dropped
    assert manifest.seen == dataset.seen == manifest.kept + sum(manifest.dropped.values())
    rows = [row for path in out.glob("[tv]*.parquet") for row in read_table(path).to_pylist()]
    assert {row["key"]: (row["caption"], *row["other_captions"]) for row in rows} == dataset.kept
    assert len(rows) == len(dataset.kept) == manifest.rows
    dropped = read_table(out / "dropped.parquet").to_pylist()
    assert Counter(row["reason"] for row in dropped) == dataset.dropped
    for reason, count in dataset.dropped.items():
        assert re.search(rf"^ +{count} dropped: {re.escape(reason)}$", shown, re.MULTILINE)
    assert f"{len(dataset.kept)} of {dataset.seen} images" in shown


# Runs a command and prints the most memory that one of its processes had, KB. This process has had other children.
LARGEST = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def test_memory_is_bounded_and_no_process_is_left(vqgan, tmp_path):
    """One decoded bomb would be 2.7 GB; XLA's compiler and the libraries take most of what is allowed."""
    dataset = bad_dataset.make_tars(tmp_path / "dataset")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    encode = [sys.executable, "-m", "dalle_mini.cli", "encode", dataset.source, str(tmp_path / "out"), "--vqgan", vqgan]
    run = [sys.executable, "-c", LARGEST, *encode]
    done = subprocess.run(run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 1_500_000
    assert "Traceback" not in done.stderr


def test_again_and_with_something_else(encode, folder, tmp_path):
    command = (folder, tmp_path / "out", "--min-side", "off", "--workers", 0)
    code, shown, _ = encode(*command)
    assert code == 0 and "6 rows" in shown and "6 of 6 images" in shown
    code, shown, _ = encode(*command)
    assert code == 0 and shown.startswith(f"{tmp_path / 'out'} is finished already: nothing to do\n")
    code, shown, errors = encode(*command, "--crops", "random:2")
    assert (code, shown) == (2, "")
    assert errors.startswith("error: ") and 'options.crops is "center" there and "random:2" now' in errors
    assert errors.count("\n") == 1
    code, _, errors = encode(*command, "--quick-jpeg")
    assert code == 2 and "options.quick_jpeg is null there and true now" in errors


def test_a_dataset_that_has_changed_is_refused_and_the_same_by_another_name_is_not(
    encode, folder, tmp_path, monkeypatch
):
    more = ("--min-side", "off", "--workers", 0)
    assert encode(folder, tmp_path / "begun", *more, "--shard-index", 1, "--shard-count", 2)[0] == 0
    assert encode(folder, tmp_path / "out", *more)[0] == 0
    monkeypatch.chdir(folder.rename(tmp_path / "moved"))
    code, shown, _ = encode("../moved/", tmp_path / "out", *more)
    assert code == 0 and "is finished already" in shown
    os.utime("0.txt", (1, 1))
    assert "the times of files are not: copy with `cp -a`" in encode("../moved/", tmp_path / "out", *more)[2]
    Path("0.txt").write_text("quite another picture")
    out, begun = tmp_path / "out", tmp_path / "begun"
    wanted = f"error: {out} was made of other content than the source has now: name another folder\n"
    assert encode(".", out, *more) == (2, "", wanted)
    wanted = f"error: {begun}: the source changed since the run began: delete {begun}/.work to start again\n"
    assert encode(".", begun, *more) == (2, "", wanted)


def test_nothing_kept_is_no_end(encode, folder, tmp_path):
    out = tmp_path / "out"
    (folder / "0.txt").write_text("x")
    (folder / "1.txt").write_text("y")
    wanted = (
        f"error: {out}: nothing was kept: all 6 images were dropped (4 picture too small, 2 caption too short): "
        "dropped.parquet there lists them\n"
    )
    for _ in range(2):  # and again: it is not finished
        assert encode(folder, out, "--workers", 0) == (2, "", wanted)
        assert [path.name for path in out.iterdir()] == ["dropped.parquet"]
    code, shown, _ = encode(folder, out, "--workers", 0, "--min-side", "off")
    assert code == 0 and "4 of 6 images" in shown and Manifest.read(out).rows == 4


def test_what_is_wrong_is_said_before_networks_are_loaded(encode, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini.data.encode.encoders.Weights.load", None)
    (tmp_path / "afile").write_text("")
    for out in ("afile", "afile/out"):
        assert encode(folder, tmp_path / out) == (2, "", f"error: {tmp_path}/afile is a file: name a folder\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.csv").write_text("file_name,text\n")
    wanted = f"error: {tmp_path}/empty: there are no images in it\n"
    assert encode(tmp_path / "empty", tmp_path / "out") == (2, "", wanted)


def test_a_share_of_the_work(encode, folder, tmp_path, monkeypatch):
    command = (folder, tmp_path / "out", "--min-side", "off", "--workers", 0)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert encode(*command)[0] == 2
    monkeypatch.setenv("DALLE_MINI_SHARD_COUNT", "2")
    code, shown, errors = encode(*command)
    assert code == 0 and "shard 1 of 2, as JOB_COMPLETION_INDEX and DALLE_MINI_SHARD_COUNT say" in errors
    assert "1 parts are left to other shards" in shown
    code, shown, _ = encode(*command, "--shard-index", 0, "--shard-count", 2)
    assert code == 0 and "6 of 6 images" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "out"), "nowhere: there is no such file or folder"),
        (("SOURCE", "out", "--crops", "some"), "--crops is 'some': it must be center, or random:N"),
        (("SOURCE", "out", "--validation", "2"), "--validation is 2.0: it must be a share"),
        (("SOURCE", "out", "--min-clip-score", "0.3"), "--min-clip-score and --max-clip-score need --clip-scores"),
        (("SOURCE", "out", "--clip", "x"), "--clip would do nothing without --clip-scores"),
        (("SOURCE", "out", "--workers", "-1"), "--workers is -1: it must be at least 0"),
        (("SOURCE", "out", "--shard-index", "1"), "--shard-index and --shard-count go together"),
        (("SOURCE", "out", "--where", "score > 1"), "--where: the source has no column 'score'"),
        (("SOURCE", "/proc/out"), "/proc/out"),
        (("SOURCE", " "), "argument OUT: it is blank: give a value, or leave it out"),
        (("", "out"), "argument SOURCE: it is blank"),
        (("SOURCE", "out", "--vqgan", ""), "argument --vqgan: it is blank"),
    ],
)
def test_mistakes_are_one_line(encode, folder, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, shown, errors = encode(*(folder if argument == "SOURCE" else argument for argument in arguments))
    assert (code, shown) == (2, "")
    assert errors.startswith(f"error: {says}") and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_vqgan_that_there_is_not(capsys, folder, tmp_path):
    assert main(["encode", str(folder), str(tmp_path / "out"), "--vqgan", str(tmp_path / "no")]) == 2
    assert "error: " in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "now", "seconds", "text"),
    [
        ("encode", Progress(0, 0, 0, 9, 1000), 0, "0 images, 0.0 a second, part 0 of 9"),
        ("encode", Progress(1200, 9, 3, 9, 4800), 4, "1,200 images, 300 a second, part 3 of 9, 0:00:12 left"),
        ("encode", Progress(10, 9, 0, 9, 40_000), 4, "10 images, 2.5 a second, part 0 of 9, 4:26:36 left"),
        ("encode", Progress(10, 9, 0, 9), 4, "10 images, 2.5 a second, part 0 of 9"),
        ("finish", Progress(0, 0, 3, 12), 4, "shards 25%"),
    ],
)
def test_progress_tells_speed_and_time_left(stage, now, seconds, text):
    assert describe(stage, now, seconds) == text


def test_without_a_terminal_progress_is_told_in_lines(encode, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini.commands.encode.EVERY", 0)
    code, _, errors = encode(folder, tmp_path / "out", "--min-side", "off", "--workers", 0)
    assert code == 0, errors
    assert "encode: 6 images, " in errors and "finish: shards " in errors, errors


def test_the_manifest_is_json_that_anyone_reads(encode, folder, tmp_path):
    encode(folder, tmp_path / "out", "--min-side", "off", "--workers", 0)
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert found["rows"] == found["kept"] == found["seen"] == 6 and found["dropped"] == {}
    assert found["vqgan"]["codebook_size"] == len(found["codebook_use"]) == 16
    assert found["vqgan"]["image_length"] == 16 and found["vqgan"]["resolution"] == 8
    assert sum(found["codebook_use"]) == 6 * 16
    assert found["options"]["filters"]["min_side"] is None
