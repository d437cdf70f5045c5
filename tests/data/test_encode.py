"""Pictures to shards of tokens, and shards to a data set."""

import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.data.encode import encode, identity
from dalle_mini.data.loader import TokenDataset
from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig

ROWS, SHARD_ROWS, BATCH = 10, 4, 3  # shards of 4, 4 and 2; batches of 3 and 1, and of 2


def make_vqgan() -> VQGAN:
    config = VQGANConfig(
        ch=4,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=4,
        embed_dim=4,
        n_embed=16,
        norm_groups=2,
    )
    return VQGAN(config, rngs=nnx.Rngs(0))


def changed(vqgan: VQGAN, part) -> VQGAN:
    """A copy with one parameter, `part(copy)`, moved a little in one place."""
    copy = nnx.clone(vqgan)
    parameter = part(copy)
    parameter[...] = parameter[...].at[0].add(1e-3)
    return copy


class Killed(BaseException):
    """As final as a kill, but for this process."""


class Noise:
    """A picture of noise for every index, and a caption that names it; `die_at` kills when that row is asked for."""

    def __init__(self, die_at: int | None = None):
        self.die_at, self.asked = die_at, []

    def batch(self, indices):
        rows = list(indices)
        self.asked += rows
        if self.die_at in rows:
            raise Killed
        images = [np.random.default_rng(row).integers(0, 256, (8, 8, 3)) for row in rows]
        return np.array(images, np.uint8), [f"picture {row}, ünïcode 🐌" for row in rows]


@pytest.fixture(scope="module")
def vqgan():
    return make_vqgan()


@pytest.fixture(scope="module")
def other(vqgan):
    return changed(vqgan, lambda copy: copy.encoder.conv_out.bias)


def run(vqgan, out, source=None, rows=ROWS, **options):
    encode(source or Noise(), vqgan, out, rows, shard_rows=SHARD_ROWS, batch_size=BATCH, **options)


@pytest.fixture(scope="module")
def whole(vqgan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "new"
    run(vqgan, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tokens")


def content(folder):
    """Everything in a folder of tokens, by file name."""
    found = {path.name: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}
    return found | {"manifest.json": json.loads((folder / "manifest.json").read_text())}


def assert_same(folder, other):
    ours, theirs = content(folder), content(other)
    assert list(ours) == list(theirs)
    for name, arrays in ours.items():
        for key in arrays:
            np.testing.assert_array_equal(arrays[key], theirs[name][key], err_msg=f"{name} {key}")


def test_what_is_written(vqgan, whole):
    assert sorted(path.name for path in whole.iterdir()) == ["00000.npz", "00001.npz", "00002.npz", "manifest.json"]
    data = TokenDataset(whole)
    assert len(data) == len(data.captions) == ROWS
    assert data.tokens.shape == (ROWS, 16)
    assert data.tokens.dtype == np.uint16
    assert data.vqgan == identity(vqgan)
    assert data.codebook_size == 16
    images, captions = Noise().batch(range(ROWS))
    assert data.captions == captions
    np.testing.assert_array_equal(data.tokens, vqgan.encode(jnp.asarray(images, jnp.float32) / 255))
    assert len(np.unique(data.tokens)) > 1


def test_progress(vqgan, tmp_path, folder):
    seen = []
    run(vqgan, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, ROWS) for done in (3, 4, 7, 8, 10)]
    seen.clear()
    run(vqgan, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, ROWS) for done in (4, 8, 10)]


@pytest.mark.parametrize("die_at", [0, 3, 4, 7, 9])
def test_a_killed_run_continues(vqgan, whole, tmp_path, die_at):
    with pytest.raises(Killed):
        run(vqgan, tmp_path, Noise(die_at))
    finished = die_at // SHARD_ROWS
    assert len(list(tmp_path.glob("*.npz"))) == finished  # whole shards or none
    if finished:
        with pytest.raises(UserError, match=f"{finished * SHARD_ROWS} of {ROWS} rows are there: encode again"):
            TokenDataset(tmp_path)
    source = Noise()
    run(vqgan, tmp_path, source)
    assert source.asked == list(range(finished * SHARD_ROWS, ROWS))  # nothing is encoded twice
    assert_same(tmp_path, whole)


def test_a_kill_while_a_shard_is_written(vqgan, whole, tmp_path, monkeypatch):
    def half(file, **arrays):
        file.write(b"PK half a shard")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(np, "savez_compressed", half)
        run(vqgan, tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    run(vqgan, tmp_path)
    assert_same(tmp_path, whole)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_is_full(vqgan, tmp_path, monkeypatch):
    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"00000.npz: cannot write it \(No space left on device\)"):
        run(vqgan, tmp_path)


def test_tokens_of_another_vqgan_are_refused(other, folder):
    (folder / "00001.npz").unlink()
    with pytest.raises(UserError, match=r"manifest.json: holds tokens of another run .*: use another folder"):
        run(other, folder)
    assert not (folder / "00001.npz").exists()


def test_another_number_of_rows_is_refused(vqgan, folder):
    with pytest.raises(UserError, match="holds tokens of another run"):
        run(vqgan, folder, rows=ROWS + 1)


TRAINING = {"split": "train", "seed": 0, "kinds": ("food", "plants")}


@pytest.mark.parametrize(
    ("origin", "differences"),
    [
        ({**TRAINING, "split": "heldout"}, r"\(split 'train', not 'heldout'\)"),
        ({**TRAINING, "split": "heldout", "seed": 9}, r"\(seed 0, not 9; split 'train', not 'heldout'\)"),
        (None, "split 'train', not None"),
    ],
)
def test_tokens_of_other_pictures_are_refused(vqgan, tmp_path, origin, differences):
    run(vqgan, tmp_path, origin=TRAINING)
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"manifest.json: holds tokens of another run .*{differences}") as caught:
        run(vqgan, tmp_path, origin=origin)
    assert "\n" not in str(caught.value)
    assert content(tmp_path)["manifest.json"] == before["manifest.json"]
    assert before["manifest.json"]["origin"] == {**TRAINING, "kinds": ["food", "plants"]}


def test_the_same_pictures_are_continued_and_so_is_a_folder_of_unknown_ones(vqgan, tmp_path, folder):
    run(vqgan, tmp_path / "new", origin=TRAINING)
    again, older = Noise(), Noise()
    run(vqgan, tmp_path / "new", again, origin=TRAINING)
    run(vqgan, folder, older, origin=TRAINING)  # its manifest was written without an origin
    assert again.asked == older.asked == []


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows(vqgan, tmp_path, rows):
    with pytest.raises(UserError, match=f"rows {rows}: there must be at least 1"):
        run(vqgan, tmp_path / "new", rows=rows)
    assert not (tmp_path / "new").exists()


def test_a_codebook_beyond_16_bits(tmp_path):
    large = SimpleNamespace(config=VQGANConfig(n_embed=2**16 + 1))
    with pytest.raises(UserError, match="n_embed 65537: tokens are stored in 16 bits"):
        run(large, tmp_path)


def test_a_folder_that_cannot_be_written(vqgan, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="tokens: cannot write there"):
        run(vqgan, tmp_path / "file" / "tokens")


def test_the_identity_is_of_what_decides_tokens(vqgan, other):
    identities = {
        identity(vqgan),
        identity(other),
        identity(changed(vqgan, lambda copy: copy.quant_conv.kernel)),
        identity(changed(vqgan, lambda copy: copy.codebook.embedding)),
    }
    assert len(identities) == 4
    assert identity(nnx.clone(vqgan)) == identity(vqgan)
    assert identity(changed(vqgan, lambda copy: copy.decoder.conv_in.bias)) == identity(vqgan)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"vqgan": "x"}', '{"origin": 3}'])
def test_a_damaged_manifest(vqgan, folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        TokenDataset(folder)
    with pytest.raises(UserError, match=r"manifest.json: (damaged|holds tokens of another run)"):
        run(vqgan, folder)


def test_no_manifest(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"no manifest\.json, so no encoded tokens: encode pictures first"):
            TokenDataset(folder)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 40]) + data[middle + 40 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no archive at all", flipped],
    ids=["empty", "cut short", "text", "flipped"],
)
def test_a_damaged_shard_is_named(vqgan, folder, whole, damage):
    shard = folder / "00001.npz"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=r"00001.npz: damaged .*; delete it and encode again"):
        TokenDataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match="6 of 10 rows are there: encode again to finish it"):
        TokenDataset(folder)
    run(vqgan, folder)
    assert_same(folder, whole)


def test_no_pickles_are_opened(folder):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a shard was unpickled",))

    np.savez(folder / "00001.npz", tokens=np.array([Trap()], object), captions=np.array(["x"]))
    with pytest.raises(UserError, match=r"00001.npz: damaged"):
        TokenDataset(folder)
