"""The real client of the Hub against a server on this machine."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_mini import UserError
from dalle_mini.weights.folder import load_config, load_tensors
from dalle_mini.weights.hub.repository import SHIPPED, Needs, blaming_cache, open_source, origin, resolve
from hub_repositories import GOLDEN, MINI, publish, refused

SHARDED = GOLDEN / "dallebart" / "f_sharded_of_e"
EVERYTHING = Needs(tokenizer=True)
SHARDS = [f"flax_model-0000{i}-of-00003.msgpack" for i in (1, 2, 3)]


def test_only_the_files_needed_are_fetched_and_each_once(hub):
    commit = publish(hub)
    folder = resolve("acme/mini", EVERYTHING)
    first = ["config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json", "flax_model.msgpack"]
    assert hub.fetched() == first
    assert (folder / "flax_model.msgpack").read_bytes() == (MINI / "flax_model.msgpack").read_bytes()
    assert load_config(folder)["d_model"] == 32
    assert origin(folder) == {"repository": "acme/mini", "commit": commit}
    hub.forget()
    assert resolve("acme/mini", EVERYTHING) == folder
    assert hub.requests == [("GET", "/api/models/acme/mini/revision/main")]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"], ["model.safetensors"]),
        (["flax_model.msgpack", "pytorch_model.bin"], ["flax_model.msgpack"]),
    ],
)
def test_one_format_of_weights_is_chosen(hub, there, taken):
    hub.add("acme/mini", **dict.fromkeys(["config.json", *there], b"{}"))
    resolve("acme/mini")
    assert hub.fetched() == ["config.json", *taken]


def test_shards_are_fetched_and_load(hub):
    publish(hub, folder=SHARDED)
    folder = resolve("acme/mini")
    assert hub.fetched() == ["config.json", "flax_model.msgpack.index.json", *SHARDS]
    assert set(load_tensors(folder)) == set(load_tensors(SHARDED))
    (folder / SHARDS[1]).unlink()
    assert "no whole copy" in refused("acme/mini", local_files_only=True)


def test_a_commit_in_the_cache_needs_no_request(hub):
    commit = publish(hub)
    folder = resolve(f"acme/mini@{commit}", EVERYTHING)
    hub.forget()
    assert resolve("acme/mini", EVERYTHING, revision=commit) == folder
    assert resolve("acme/mini", revision=commit) == folder
    assert hub.requests == []


def test_a_moved_branch_is_read_again_and_what_did_not_change_is_kept(hub):
    publish(hub)
    before = resolve("acme/mini")
    publish(hub, **{"config.json": b'{"d_model": 64}'})
    hub.forget()
    after = resolve("acme/mini")
    assert hub.fetched() == ["config.json"]
    assert load_config(before)["d_model"] == 32 and load_config(after)["d_model"] == 64
    assert (after / "flax_model.msgpack").is_file()


def test_a_cut_first_load_is_not_taken_as_whole(hub, impatient):
    publish(hub)
    hub.cut["flax_model.msgpack"] = 1000
    message = refused("acme/mini", EVERYTHING)
    assert "flax_model.msgpack of acme/mini" in message and "run again" in message
    assert "no whole copy" in refused("acme/mini", EVERYTHING, local_files_only=True)
    hub.cut.clear()
    hub.forget()
    folder = resolve("acme/mini", EVERYTHING)
    assert hub.fetched() == ["flax_model.msgpack"]
    assert (folder / "flax_model.msgpack").read_bytes() == (MINI / "flax_model.msgpack").read_bytes()


def test_a_dropped_connection_is_taken_up_again(hub, impatient):
    publish(hub)
    hub.cut["flax_model.msgpack"] = 1
    folder = resolve("acme/mini")
    assert hub.fetched().count("flax_model.msgpack") == 2
    assert (folder / "flax_model.msgpack").read_bytes() == (MINI / "flax_model.msgpack").read_bytes()


@pytest.mark.parametrize("fault", ["spoiled", "short"])
def test_a_download_that_arrives_damaged_is_refused_and_not_kept(hub, impatient, fault):
    publish(hub)
    getattr(hub, fault)["flax_model.msgpack"] = 1000
    message = refused("acme/mini")
    assert "flax_model.msgpack of acme/mini" in message and "run again" in message
    assert "no whole copy" in refused("acme/mini", local_files_only=True)
    getattr(hub, fault)["flax_model.msgpack"] = 1  # and once is made good
    folder = resolve("acme/mini")
    assert (folder / "flax_model.msgpack").read_bytes() == (MINI / "flax_model.msgpack").read_bytes()


@pytest.mark.parametrize("name", ["flax_model.msgpack", "config.json"])
def test_a_file_damaged_in_the_cache_is_named(hub, name):
    publish(hub)
    folder = resolve("acme/mini")
    blob = (folder / name).resolve()
    blob.write_bytes(blob.read_bytes()[:100])
    with pytest.raises(UserError) as error, blaming_cache(folder):
        load_config(folder)
        dict(load_tensors(folder))
    assert "damaged" in str(error.value) and f"delete {blob} and run again" in str(error.value)
    blob.unlink()
    assert load_config(resolve("acme/mini")) == load_config(MINI)


def test_what_is_wrong_with_a_whole_file_is_not_blamed_on_the_cache(hub, tmp_path):
    publish(hub)
    folder = resolve("acme/mini")
    blob = (folder / "flax_model.msgpack").resolve()
    shared = blob.rename(blob.with_name("ab" * 32))  # as newer clients keep what is in several repositories
    blob.symlink_to(shared.name)
    for place in (folder, MINI):
        with pytest.raises(UserError, match=r"does not fit$"), blaming_cache(place):
            raise UserError(f"{place / 'flax_model.msgpack'} does not fit")


def test_offline_the_cache_answers(hub, monkeypatch):
    from huggingface_hub import constants

    publish(hub)
    folder = resolve("acme/mini", EVERYTHING)
    hub.forget()
    assert resolve("acme/mini", EVERYTHING, local_files_only=True) == folder
    assert resolve("acme/mini", local_files_only=True) == folder
    assert "no request is allowed" in refused("acme/other", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("acme/mini", EVERYTHING) == folder
    assert "HF_HUB_OFFLINE" in refused("acme/other")
    assert hub.requests == []


@pytest.mark.parametrize("trouble", ["down", "busy", "captive"])
def test_without_a_connection_the_cache_answers_with_a_notice(hub, caplog, trouble):
    publish(hub)
    folder = resolve("acme/mini", EVERYTHING)
    if trouble == "down":
        hub.close()
    else:
        hub.status = {"busy": 503, "captive": 200}[trouble]
    with caplog.at_level(logging.WARNING, "dalle_mini"):
        assert resolve("acme/mini", EVERYTHING) == folder
    assert "using the copy in the cache" in caplog.text
    message = refused("acme/other")
    assert hub.url in message and "acme/other" in message and "check the connection" in message


def test_a_cache_of_ones_own(hub, tmp_path):
    publish(hub)
    folder = resolve("acme/mini", cache_dir=tmp_path / "mine")
    assert tmp_path / "mine" in folder.parents and not (tmp_path / "hf" / "hub").exists()
    hub.forget()
    assert resolve("acme/mini", cache_dir=str(tmp_path / "mine"), local_files_only=True) == folder
    assert hub.requests == []


def test_private_and_gated_repositories(hub, monkeypatch):
    from hub_server import TOKEN

    publish(hub)
    hub.private.add("acme/mini")
    message = refused("acme/mini")
    assert "acme/mini" in message and "401" in message and "HF_TOKEN" in message and "token=" in message
    assert resolve("acme/mini", token=TOKEN).is_dir()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("acme/mini").is_dir()
    hub.gated.add("acme/mini")
    assert "gated" in refused("acme/mini") and "terms" in refused("acme/mini")


def test_what_is_not_there_is_named(hub, monkeypatch, tmp_path):
    from hub_server import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    publish(hub)
    message = refused("acme/nothing")
    assert "acme/nothing" in message and "check" in message
    message = refused("acme/mini@v9")
    assert "acme/mini at v9" in message and "revision" in message
    hub.add("acme/empty", **{"README.md": b"#", "config.json": b"{}"})
    message = refused("acme/empty")
    assert "acme/empty has no weights" in message and "README.md" in message
    hub.add("acme/weights", **{"model.safetensors": b""})
    assert "acme/weights has no config.json" in refused("acme/weights")
    assert "acme/weights has no tokenizer.json" in refused("acme/weights", Needs(weights=False, tokenizer=True))
    hub.add("acme/pack", **{"dalle/config.json": b"{}"})
    assert "name a part of it: acme/pack/dalle" in refused("acme/pack")


def test_a_tokenizer_may_be_in_parts(hub):
    hub.add("acme/clip", **{"vocab.json": b"1", "merges.txt": b"2", "tokenizer_config.json": b"3"})
    resolve("acme/clip", Needs(weights=False, tokenizer=True))
    assert hub.fetched() == ["tokenizer_config.json", "vocab.json", "merges.txt"]


def test_a_folder_of_a_repository(hub):
    files = {f"dalle/{path.name}": path.read_bytes() for path in MINI.iterdir()}
    commit = hub.add("acme/pack", **files)
    folder = resolve("acme/pack/dalle")
    assert folder.name == "dalle" and load_config(folder) == load_config(MINI)
    assert hub.fetched() == ["dalle/config.json", "dalle/flax_model.msgpack"]
    assert origin(folder) == {"repository": "acme/pack", "commit": commit}
    assert open_source(f"acme/pack/dalle@{commit}").first("nothing", "config.json") == "config.json"


def test_a_full_disk_and_a_cache_that_cannot_be_written(hub, monkeypatch, tmp_path):
    publish(hub)
    (tmp_path / "file").touch()
    message = refused("acme/mini", cache_dir=tmp_path / "file")
    assert "config.json of acme/mini" in message and "--cache-dir" in message

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "No space left" in refused("acme/mini") and "--cache-dir" in refused("acme/mini")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("/dev/null/nowhere", "no such folder: /dev/null/nowhere"),
        ("./nowhere", "no such folder: ./nowhere"),
        ("../acme/mini", "no such folder"),
        ("~/no/such/folder", "no such folder"),
        (Path("acme/mini"), "no such folder: acme/mini"),
        ("~nobody-of-this-name/folder", "no such folder"),
        ("nowhere", "owner/name"),
        ("shiped", "no such folder: shiped (did you mean shipped?)"),
        ("acme/mini:v1", "entity/project/name:version"),
        ("https://huggingface.co/acme/mini", "owner/name"),
        ("acme/--mini", "acme/--mini"),
        ("acme/mini@a", "give one of them"),
    ],
)
def test_what_cannot_be_a_repository_is_refused_without_a_request(hub, monkeypatch, tmp_path, source, named):
    monkeypatch.chdir(tmp_path)
    assert named in refused(source, revision="b" if "@" in str(source) else None)
    assert hub.requests == []


def test_a_path_with_a_slip_is_told_as_a_path_first(hub, monkeypatch, tmp_path):
    (tmp_path / "runs" / "mine" / "final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert refused("runs/mine/finall") == "no such folder: runs/mine/finall (did you mean runs/mine/final?)"
    assert hub.requests == []
    for offline in (False, True):
        message = refused("runs/mime", local_files_only=offline)
        assert message.startswith(
            "no such folder: runs/mime (did you mean runs/mine?); nor, as a repository of the Hub"
        )
    assert refused("rums/mine/final").startswith("no such folder: rums/mine/final (did you mean runs/mine/final?); nor")
    publish(hub)
    (tmp_path / "acme").mkdir()  # the folder of a clone may be called as the owner of a repository
    assert resolve("acme/mini").is_dir()
    hub.close()
    assert refused("acme/other").startswith("no such folder: acme/other; nor, as a repository of the Hub: ")


def test_the_shipped_model_has_a_name(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("shipped") == SHIPPED and hub.requests == []
    (tmp_path / "shipped").mkdir()
    assert resolve("shipped") == Path("shipped")


def test_a_folder_that_exists_wins(hub, monkeypatch, tmp_path):
    (tmp_path / "acme" / "mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("acme/mini") == Path("acme/mini")
    assert resolve("~/acme/mini") == tmp_path / "acme" / "mini"
    assert hub.requests == []


def test_a_local_folder_needs_no_client():
    code = f"""import sys; from dalle_mini.weights.hub.repository import resolve; resolve({str(MINI)!r})
sys.exit("huggingface_hub" in sys.modules or "jax" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_server_tells_the_truth(hub):
    """The tests above lean on this: the client checks sizes, and the cache is named by SHA-256."""
    publish(hub)
    blob = (resolve("acme/mini") / "flax_model.msgpack").resolve()
    assert blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()


def test_whoever_reads_a_folder_reads_a_repository(hub):
    from dalle_mini.generation.ranking import ClipRanker
    from dalle_mini.models import DalleBart
    from dalle_mini.text import CaptionTokenizer

    commit = publish(hub, folder=SHARDED)
    hub.add("acme/clip", GOLDEN / "clip")
    assert DalleBart.from_pretrained("acme/mini", revision=commit).config == DalleBart.from_pretrained(SHARDED).config
    assert hub.fetched() == ["config.json", "flax_model.msgpack.index.json", *SHARDS]
    hub.forget()
    assert CaptionTokenizer.from_pretrained("acme/mini", revision=commit).vocab_size == 420
    assert hub.fetched() == ["special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"]
    hub.forget()
    assert ClipRanker.from_pretrained("acme/clip").chunk == 8
    assert hub.fetched()[1] == "preprocessor_config.json" and hub.fetched()[-1] == "flax_model.msgpack"

    shard = (resolve("acme/mini") / SHARDS[1]).resolve()
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError) as error:
        DalleBart.from_pretrained("acme/mini", local_files_only=True)
    assert SHARDS[1] in str(error.value) and f"the cached copy is damaged: delete {shard}" in str(error.value)
    assert "\n" not in str(error.value)
    tokenizer = (resolve("acme/mini") / "tokenizer.json").resolve()
    tokenizer.write_bytes(b"{")
    with pytest.raises(UserError, match=f"delete {tokenizer}"):
        CaptionTokenizer.from_pretrained("acme/mini")
