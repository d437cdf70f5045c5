"""Pictures to learn from: packed once, whatever reads them; splits, mixtures and what is drawn."""

import dataclasses
import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from dalle_mini.data.images.dataset import ImageData, MixedImages, open_images, pack_datasets
from dalle_mini.data.images.packed import PackedImages, Packing, pack
from dalle_mini.data.sources import open_source
from dalle_mini.emoji.drawn import DrawnEmoji
from dalle_mini.errors import UserError
from dalle_mini.imaging.pixels import resize_and_crop
from dalle_mini.training.run.folder import differences

SIZE = 8
PACKING = Packing(SIZE, min_side=None, captions=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Forty pictures, two without captions and one broken, over two folders."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    for i in range(40):
        place = folder / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12 + i % 5, 3), np.uint8)).save(place / f"{i:02d}.png")
        if i not in (3, 4):
            (place / f"{i:02d}.txt").write_text(f"picture {i}\nanother of {i}")
    (folder / "a" / "10.png").write_bytes(b"no picture")
    return folder


def names(source):
    return source.batch(range(len(source)))[1]


def test_rows_are_the_dataset_resized_and_cropped(dataset, tmp_path):
    pack(open_source(str(dataset)), tmp_path, Packing(SIZE, min_side=None))
    packed = PackedImages(tmp_path)
    assert len(packed) == 40 - 3
    wanted = [i for i in (*range(0, 40, 2), *range(1, 40, 2)) if i not in (3, 4, 10)]  # folder by folder
    images, captions = packed.batch(range(len(packed)))
    assert captions == [f"picture {i}" for i in wanted]
    assert packed.captions(1) == ["picture 2", "another of 2"]
    for image, i in zip(images, wanted, strict=True):
        np.testing.assert_array_equal(image, resize_and_crop(Image.open(dataset / "ab"[i % 2] / f"{i:02d}.png"), SIZE))
    np.testing.assert_array_equal(packed.batch([5, 0, 5])[0], images[[5, 0, 5]])


def test_pictures_without_captions_are_for_who_needs_none(dataset, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dalle_mini"):
        pack(open_source(str(dataset)), tmp_path, PACKING)
    assert "39 images are packed; 1 dropped: not a picture" in caplog.text
    assert "a/04" in names(PackedImages(tmp_path))  # a key stands for the caption
    small = Packing(SIZE, min_side=11, captions=False)
    with pytest.raises(UserError, match=r"no image of it can be used; 39 dropped: picture too small"):
        pack(open_source(str(dataset)), tmp_path / "small", small)


def test_an_interrupted_packing_goes_on(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini.data.sources.folder.PART", 9)
    source = open_source(str(dataset))
    pack(source, tmp_path / "whole", PACKING)
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert len(wanted) == 2 * 5 + 1

    def stop(*_):
        raise KeyboardInterrupt

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        finished = []
        from dalle_mini.data.images import packed

        whole = packed._Part.finish

        def finish(part):
            whole(part) if len(finished) < 2 else stop()
            finished.append(part)

        patch.setattr(packed._Part, "finish", finish)
        pack(source, broken, PACKING)
    with pytest.raises(UserError, match=r"packed images are damaged"):
        PackedImages(broken)
    kept = (broken / "000000.u8").stat().st_mtime_ns
    pack(source, broken, PACKING)
    assert (broken / "000000.u8").stat().st_mtime_ns == kept
    found = {file.name: file.read_bytes() for file in broken.iterdir() if not file.name.endswith(".partial")}
    assert found == wanted


def test_a_full_disk_leaves_nothing_half_written(dataset, tmp_path, full_disk):
    source, folder = open_source(str(dataset)), tmp_path / "packed"
    with full_disk(1000), pytest.raises(UserError, match=r"cannot write there \(File too large\)"):
        pack(source, folder, PACKING, processes=0)
    assert os.listdir(folder) == ["packing.json"]
    pack(source, folder, PACKING, processes=0)
    assert (folder / "000000.jsonl").exists()


def test_processes_make_no_difference(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini.data.sources.folder.PART", 9)
    source = open_source(str(dataset))
    for count in (0, 2):
        pack(source, tmp_path / str(count), PACKING, processes=count)
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / str(count)).iterdir()} for count in (0, 2))
    assert one == other


def test_another_dataset_or_size_is_refused(dataset, tmp_path):
    pack(open_source(str(dataset)), tmp_path, PACKING)
    with pytest.raises(UserError, match=r"holds the images of another dataset or size"):
        pack(open_source(str(dataset)), tmp_path, Packing(16, min_side=None, captions=False))
    with pytest.raises(UserError, match=r"holds the images of another dataset or size"):
        pack(open_source(str(dataset / "a")), tmp_path, PACKING)


def test_damage_is_noticed(dataset, tmp_path):
    pack(open_source(str(dataset)), tmp_path, PACKING)
    pixels = tmp_path / "000000.u8"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"damaged \(000000.u8 does not have the size of 39 images\); delete it"):
        PackedImages(tmp_path)


def test_what_is_held_out_is_never_trained_on(dataset, tmp_path):
    data = ImageData((str(dataset),), held_out=0.3, min_side=None)
    pack_datasets(data, SIZE, tmp_path, captions=False)
    train, held_out = open_images(data, SIZE, tmp_path, captions=False, seed=0)
    assert not {*names(train)} & {*names(held_out)}
    assert len(train) + len(held_out) == 39
    assert 3 <= len(held_out) <= 20
    assert train.origin() != held_out.origin()
    with pytest.raises(UserError, match=r"none of its 39 images is held out: data.held_out is 1e-09"):
        open_images(ImageData((str(dataset),), held_out=1e-9, min_side=None), SIZE, tmp_path, captions=False, seed=0)


def test_datasets_of_their_own_for_validation_and_a_cache(dataset, tmp_path):
    cache = tmp_path / "cache"
    data = ImageData((str(dataset / "a"),), validation=(str(dataset / "b"),), min_side=None, cache=str(cache))
    for run in ("one", "two"):
        pack_datasets(data, SIZE, tmp_path / run, captions=False)
        train, held_out = open_images(data, SIZE, tmp_path / run, captions=False, seed=0)
        assert (len(train), len(held_out)) == (19, 20)
        assert not (tmp_path / run).exists()
    assert len(list(cache.iterdir())) == 2


class Named:
    """A source of `length` pictures that are all of one value."""

    def __init__(self, value, length):
        self.value, self.length = value, length

    def __len__(self):
        return self.length

    def batch(self, indices):
        indices = list(indices)
        return np.full((len(indices), 2, 2, 3), self.value, np.uint8), [f"{self.value}.{i}" for i in indices]

    def origin(self):
        return {"value": self.value}


def test_mixtures():
    plain = MixedImages([Named(1, 3), Named(2, 5)])
    images, captions = plain.batch([7, 0, 3, 2])
    assert captions == ["2.4", "1.0", "2.0", "1.2"]
    assert images[:, 0, 0, 0].tolist() == [2, 1, 2, 1]
    weighed = MixedImages([Named(1, 3), Named(2, 500)], weights=[3, 1])
    rng = np.random.default_rng(0)
    images, captions = weighed.batch(rng.integers(0, len(weighed), 4000))
    assert np.mean(images[:, 0, 0, 0] == 1) == pytest.approx(0.75, abs=0.03)
    counts = [captions.count(f"1.{i}") for i in range(3)]
    assert min(counts) > 850
    assert json.dumps(weighed.origin()) == json.dumps({"sources": [{"value": 1}, {"value": 2}], "weights": [3, 1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0.0}, "data.held_out: 0.0 is not a share"),
        ({"train": ("a", "b"), "weights": (1.0,)}, "data.weights: 2 sources need as many weights"),
        ({"train": ("a",), "weights": (0.0,)}, "data.weights: 1 sources need as many weights"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        ImageData(**change)


def test_people_in_their_variants():
    data = ImageData(("emoji-scenes",), emoji_kinds=("sport and play",), people=True)
    with_people = DrawnEmoji("emoji-scenes", 32, 0, "train", data)
    captions = " ".join(with_people.captions(index)[0] for index in range(300))
    assert "woman" in captions and "with dark skin" in captions
    without = DrawnEmoji("emoji-scenes", 32, 0, "train", dataclasses.replace(data, people=False))
    assert " skin" not in " ".join(without.captions(index)[0] for index in range(300))


def test_datasets_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"data.train: name the images to learn from"):
        pack_datasets(ImageData(), SIZE, tmp_path, captions=False)
    with pytest.raises(UserError, match=r"there is no such file or folder"):
        pack_datasets(ImageData((str(tmp_path / "nothing"),)), SIZE, tmp_path, captions=False)


@pytest.mark.parametrize("kind", ["emoji", "emoji-scenes"])
def test_what_is_drawn(kind, tmp_path):
    data = ImageData((kind,), emoji_kinds=("food",))
    pack_datasets(data, 32, tmp_path, captions=False)  # has nothing to do
    train, held_out = open_images(data, 32, tmp_path, captions=False, seed=3)
    images, captions = train.batch([0, 9_999_999])
    assert images.shape == (2, 32, 32, 3)
    assert len(set(captions)) == 2
    again, _ = open_images(data, 32, tmp_path, captions=False, seed=3)
    np.testing.assert_array_equal(again.batch([0])[0], images[:1])
    origins = [source.origin()["sources"][0] for source in (train, held_out)]
    assert [origin["split"] for origin in origins] == ["train", "heldout"]
    assert DrawnEmoji(kind, 32, 4, "train", data).origin() != origins[0]
    every = dataclasses.replace(data, emoji_kinds=None)
    assert DrawnEmoji(kind, 32, 3, "train", every).origin()["emoji"] != origins[0]["emoji"]
    with pytest.raises(UserError, match="nonsense"):
        DrawnEmoji(kind, 32, 3, "train", dataclasses.replace(data, emoji_kinds=("nonsense",)))
    assert not (tmp_path / "pictures").exists()


def test_packed_pictures_are_found_whatever_the_dataset_is_called(dataset, tmp_path, monkeypatch):
    """As a run of an earlier version packed them, by the path that it was given; and a run that moved."""
    (tmp_path / "dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    names = ("dataset", str(tmp_path / "dataset"))
    for name in names:
        data = ImageData(train=(name,), min_side=None)
        pack_datasets(data, SIZE, tmp_path / "packed", captions=False)
        assert len(open_images(data, SIZE, tmp_path / "packed", captions=False, seed=0)[0])
    assert len(list((tmp_path / "packed").iterdir())) == 1
    pack(open_source(str(dataset)), next((tmp_path / "packed").iterdir()), PACKING)


def test_data_that_are_only_called_otherwise_are_no_difference():
    def record(name, digest="abc"):
        source = {"kind": "folder", "source": name, "digest": digest}
        return {"data": {"train": {"sources": [{"source": source, "size": 8}]}}}

    assert not list(differences(record("pictures"), record("/moved/pictures")))
    assert [name for name, _ in differences(record("pictures"), record("pictures", "abd"))] == ["data.train.sources"]
