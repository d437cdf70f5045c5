"""Whose a folder is: finished ones, those of other runs and sources, damaged ones, and options that make no sense."""

import json
from pathlib import Path

import pytest
from flax import nnx

import noise_dataset
from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.encode.launchers import Share
from dalle_mini.data.tokens.shards import Manifest
from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.runtime.folders import LocalFolder
from noise_dataset import FILTERS, PARTS, SEEN, NoiseDataset, content, options
from noise_dataset import run_encode as run

pytestmark = pytest.mark.usefixtures("loaded_once")


def staged(out: Path) -> int:
    return len(list((out / ".work" / "parts").glob("*.parquet")))


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


def test_a_record_that_another_shard_took_away_while_it_was_made(vqgan, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalFolder, "write", lambda *_: None)
    with pytest.raises(UserError, match=r"\.work/run\.json is gone: run the same command again"):
        run(vqgan, tmp_path)


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crops": "random:0"}, "--crops is 'random:0': it must be center, or random:N with N from 1 to 1000"),
        ({"crops": "middle"}, "--crops is 'middle'"),
        ({"validation": 1.0}, "--validation is 1.0: it must be a share"),
        ({"shard_rows": 0}, "--shard-rows is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"filters": Filters(min_clip_score=0.2)}, "--min-clip-score and --max-clip-score need --clip-scores"),
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


def test_a_validation_split_of_nothing(vqgan, tmp_path):
    manifest = run(vqgan, tmp_path, changes={"validation": 0.0}).manifest
    assert manifest.splits["validation"].rows == 0 and manifest.splits["validation"].shards == ()
    assert manifest.splits["train"].rows == manifest.rows


def test_defaults_of_the_filters_are_the_documented_ones():
    assert FILTERS.duplicates == "near" and Filters().duplicates is None


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
