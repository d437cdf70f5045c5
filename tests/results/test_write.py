import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

import dalle_mini.results.write
from dalle_mini import UserError, __version__
from dalle_mini.pipeline import Preview, Result
from dalle_mini.results.write import Previews, check_writable, image_grid, save_previews, slug, write_result
from dalle_mini.runtime.files import remove_leftovers
from dalle_mini.settings import GenerationSettings


def result(prompt="a red apple", keep=3, side=16) -> Result:
    images = [Image.new("RGB", (side, side), (40 * number, 0, 0)) for number in range(keep)]
    return Result(
        prompt,
        images,
        scores=[9.5 - number for number in range(keep)],
        tokens=np.zeros((keep, 16), np.int32),
        indices=list(range(keep)),
        timings={"tokens": 1.23456},
        settings=GenerationSettings(candidates=keep, keep=keep, seed=5, top_k=50),
    )


PROVENANCE = {"models": {"dalle": {"folder": "dalle", "sha256": "0"}}, "dtype": "float32"}


def test_a_result_is_pictures_a_grid_and_a_report(tmp_path):
    folder = write_result(result(), tmp_path / "new" / "out", PROVENANCE)
    assert folder == tmp_path / "new" / "out" / "a-red-apple"
    assert sorted(os.listdir(folder)) == ["01.png", "02.png", "03.png", "grid.png", "results.json"]
    assert os.listdir(folder.parent) == ["a-red-apple"]
    report = json.loads((folder / "results.json").read_text())
    assert report["prompt"] == "a red apple" and report["seed"] == 5 and report["version"] == __version__
    assert report["settings"]["top_k"] == 50 and report["models"] == PROVENANCE["models"]
    assert report["pictures"][1] == {"file": "02.png", "score": 8.5, "candidate": 1}
    assert report["timings_seconds"] == {"tokens": 1.235}
    with Image.open(folder / "02.png") as image:
        assert image.size == (16, 16) and image.getpixel((0, 0)) == (40, 0, 0)


def test_an_earlier_folder_is_kept_and_the_new_one_numbered(tmp_path):
    names = [write_result(result(), tmp_path, PROVENANCE).name for _ in range(3)]
    assert names == ["a-red-apple", "a-red-apple-2", "a-red-apple-3"]


def test_a_run_that_is_quicker_keeps_its_name(tmp_path, monkeypatch):
    save, others = dalle_mini.results.write._save, []

    def save_while_another_does(*args):
        if not others:
            others.append("on its way")
            others.append(write_result(result(keep=1), tmp_path, PROVENANCE))
        save(*args)

    monkeypatch.setattr(dalle_mini.results.write, "_save", save_while_another_does)
    assert write_result(result(keep=3), tmp_path, PROVENANCE).name == "a-red-apple-2"
    assert others[1].name == "a-red-apple" and not (others[1] / "03.png").exists()
    assert sorted(os.listdir(tmp_path)) == ["a-red-apple", "a-red-apple-2"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, full_disk):
    with full_disk(100), pytest.raises(UserError, match=r"--output .+ cannot be written \(File too large\)$"):
        write_result(result(), tmp_path, PROVENANCE)
    with (
        full_disk(100),
        Previews(tmp_path) as previews,
        pytest.raises(UserError, match=r"cannot be written \(File too large"),
    ):
        previews.add(Preview("a red apple", 0, 8, 16, result(keep=4).images, np.zeros((4, 16), np.int32)))
    assert os.listdir(tmp_path) == []
    assert write_result(result(), tmp_path, PROVENANCE).name == "a-red-apple"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_in_a_prompts_place_is_kept(tmp_path, overwrite):
    (tmp_path / "a-red-apple").symlink_to(tmp_path / "missing")
    assert write_result(result(), tmp_path, PROVENANCE, overwrite=overwrite).name == "a-red-apple-2"
    assert sorted(os.listdir(tmp_path)) == ["a-red-apple", "a-red-apple-2"]


def test_a_look_of_a_living_run_stays_and_those_of_dead_ones_go(tmp_path):
    (tmp_path / f".progress-{'0' * 32}.png").write_text("of a killed run")
    with Previews(tmp_path) as previews:
        for count in (8, 16):
            previews.add(Preview("a red apple", 0, count, 16, result(keep=4).images, np.zeros((4, 16), np.int32)))
            check_writable(tmp_path)
            (name,) = os.listdir(tmp_path)
            assert name.startswith(".progress-") and "000" not in name
    assert os.listdir(tmp_path) == []


def test_overwrite_replaces_an_earlier_run_but_not_this_one(tmp_path):
    write_result(result(keep=3), tmp_path, PROVENANCE)
    taken = set()
    first = write_result(result(keep=1), tmp_path, PROVENANCE, overwrite=True, taken=taken)
    second = write_result(result(keep=1), tmp_path, PROVENANCE, overwrite=True, taken=taken)
    assert first.name == "a-red-apple" and not (first / "03.png").exists()
    assert second.name == "a-red-apple-2"
    assert sorted(os.listdir(tmp_path)) == ["a-red-apple", "a-red-apple-2"]


def test_overwrite_spares_what_is_not_a_result(tmp_path):
    (tmp_path / "a-red-apple").mkdir()
    (tmp_path / "a-red-apple" / "thesis.txt").write_text("precious")
    assert write_result(result(), tmp_path, PROVENANCE, overwrite=True).name == "a-red-apple-2"
    assert (tmp_path / "a-red-apple" / "thesis.txt").exists()


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_leaves_no_half_folder(tmp_path, monkeypatch, failure, earlier):
    if earlier:
        write_result(result(keep=3), tmp_path, PROVENANCE)
    before = sorted(tmp_path.rglob("*"))

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr("dalle_mini.results.write.image_grid", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        write_result(result(keep=1), tmp_path, PROVENANCE, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple, on a table!", "a-red-apple-on-a-table"),
        ("../../etc/passwd", "etc-passwd"),
        ("🍎 pie", "red-apple-pie"),
        ("красное яблоко", "krasnoe-iabloko"),
        ("???", "prompt"),
        ("word " * 50, "-".join(["word"] * 12)),
        ("x" * 500, "x" * 60),
    ],
)
def test_slug(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize(("count", "side", "columns", "rows"), [(1, 64, 1, 1), (4, 64, 2, 2), (5, 256, 3, 2)])
def test_small_pictures_are_enlarged_in_the_grid(count, side, columns, rows):
    grid = image_grid("a caption", [Image.new("RGB", (side, side))] * count, [1.0] * count)
    shown = max(side, 192)
    assert grid.width >= columns * shown and rows * shown < grid.height < rows * (shown + 60) + 60


def test_grid_draws_any_caption():
    images = [Image.new("RGB", (8, 8))]
    blank = image_grid("", images)
    for caption in ("an apple", "🍎", "りんご", "a\nb", "word " * 500, "w" * 500):
        assert image_grid(caption, images).tobytes() != blank.tobytes()


def test_check_writable_tries_and_leaves_nothing(tmp_path):
    assert check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path) == []


def test_check_writable_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    refused = [tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere/out", tmp_path / ("x" * 300), "a\0b"]
    for output in refused:
        with pytest.raises(UserError, match="--output"):
            check_writable(output)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [12, 5, 7, 0], [9, 3]])
def test_an_animation_shows_every_look_and_ends_with_what_was_kept(tmp_path, kept):
    tokens = np.zeros((4, 16), np.int32)
    previews = [
        Preview("a boat", 0, count, 16, [Image.new("RGB", (16, 16), (0, 0, 20 * count))] * 4, tokens)
        for count in (4, 8, 12)
    ]
    red = Image.new("RGB", (16, 16), "red")
    drawn = dataclasses.replace(result(keep=len(kept)), images=[red] * len(kept), indices=kept)
    save_previews(tmp_path, previews, drawn)
    with Image.open(tmp_path / "progress.gif") as animation:
        assert animation.n_frames == len(previews) + 1
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    tile = 192**2  # a picture of 16 pixels, enlarged
    red, blue = ([np.sum((frame[..., c] > 60) & (frame[..., 1] < 20)) for frame in frames] for c in (0, 2))
    assert red == [0, 0, 0, len(kept) * tile]
    assert blue == [4 * tile] * 3 + [0]


def test_leftovers_of_a_killed_run_are_removed_be_they_files_or_folders(tmp_path):
    (tmp_path / ".a.1.partial").mkdir()
    (tmp_path / ".results.parquet.1.partial").write_text("half")
    (tmp_path / "mine").write_text("whole")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["mine"]
