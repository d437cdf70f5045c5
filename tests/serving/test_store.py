"""Jobs and images on disk."""

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.serving.drawing import Start
from dalle_mini.serving.orders import Order
from dalle_mini.serving.problems import Problem
from dalle_mini.serving.store import Image, Store
from dalle_mini.settings import GenerationSettings

SETTINGS = GenerationSettings(candidates=4, keep=2, guidance=1.0, temperature=1.0, top_k=50)
TOKENS = np.arange(16, dtype=np.int32)


def image(candidate, score=0.0):
    return Image(candidate, None, score, TOKENS), b"PNG" * 100


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "served")
    yield store
    store.close()


def add(store, id="a", **fields):
    store.add(id, "owner", "client", Order("a <b>fox</b>\x1b[31m", SETTINGS, **fields))


def test_an_order_comes_back_whole(store):
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    start = Start(pixels, None, (1, 5), 0.5, 0.25)
    add(store, first=3, stay=True, start=start)
    (found,) = store.unfinished()
    assert (found.order.prompt, found.order.settings) == ("a <b>fox</b>\x1b[31m", SETTINGS)
    assert (found.order.first, found.order.stay, found.order.start.cells) == (3, True, (1, 5))
    assert (found.order.start.pixels == pixels).all() and found.state == "queued"


def test_the_best_images_are_kept(store):
    add(store)
    store.add_images("a", [image(0, 1.0), image(1, 3.0)], None)
    store.add_images("a", [image(2, 3.0), image(3, 2.0)], None)
    assert [(one.candidate, one.number) for one in store.finish("a", 2)] == [(1, 1), (2, 2)]
    assert [(one.candidate, one.number) for one in store.images("a")] == [(1, 1), (2, 2)]
    assert (store.images("a")[0].tokens == TOKENS).all()
    files = sorted(path.name for path in store.image_file("a", 0).parent.iterdir())
    assert files == ["0001.png", "0002.png"] and store.bytes() == 600
    assert store.find("a").state == "done" and not store.unfinished()


def test_old_and_many_images_are_deleted_with_a_trace(store, monkeypatch):
    import time

    for number, id in enumerate("abcd"):
        monkeypatch.setattr(time, "time", lambda number=number: 1e9 + 100 * number)
        add(store, id)
        store.add_images(id, [image(0)], None)
        store.finish(id, 1)
    monkeypatch.setattr(time, "time", lambda: 1e9 + 3600 + 50)
    assert store.delete_old(1.0, 10_000) == 1
    assert store.delete_old(1.0, 700) == 1  # the oldest of three that have 300 bytes each
    states = {id: store.find(id).state for id in "abcd"}
    assert states == {"a": "deleted", "b": "deleted", "c": "done", "d": "done"}
    assert not store.image_file("a", 0).exists() and store.image_file("d", 0).exists()
    monkeypatch.setattr(time, "time", lambda: 1e9 + 60 * 24 * 3600)
    store.delete_old(1e6, 10_000)
    assert store.find("a") is None and store.find("d") is not None


def test_a_full_disk_is_told_and_changes_nothing(store, full_disk):
    add(store)
    with full_disk(1 << 12), pytest.raises(Problem) as caught:
        for number in range(100):
            add(store, f"more {number}", start=Start(_noise()))
    assert caught.value.status == 503 and caught.value.code == "disk_full" and caught.value.headers["Retry-After"]
    assert str(store.folder) not in caught.value.message
    with full_disk(100), pytest.raises(Problem):
        store.add_images("a", [image(0)], None)
    assert store.images("a") == [] and not list(store.image_file("a", 0).parent.glob("*"))
    add(store, "afterwards")
    assert "afterwards" in {record.id for record in store.unfinished()}


def _noise():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_one_server_has_a_folder(store):
    with pytest.raises(UserError, match="another server uses this folder"):
        Store(store.folder)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--folder"):
        Store(tmp_path / "file" / "below")
    (tmp_path / "served").mkdir(0o700)
    (tmp_path / "served" / "jobs.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path / "served")
