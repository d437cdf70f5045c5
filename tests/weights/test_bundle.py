"""A pipeline put together from folders and repositories."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_mini import DalleMini, UserError
from dalle_mini.cli import main
from dalle_mini.conversion.convert import convert
from dalle_mini.text.known_words import KnownWords
from dalle_mini.weights.bundle import COMPANIONS, LICENCES, SHIPPED_TOKENS, copy_companion, find_parts

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = GOLDEN / "text_normalizer" / "enwiki-words-frequency.txt"
PUBLISHED_CLIP = COMPANIONS["clip"]
NETWORK = ["config.json", "flax_model.msgpack"]
SETTINGS = ["special_tokens_map.json", "tokenizer_config.json"]


@pytest.fixture
def published(hub):
    """The three repositories that the published model is in, and their commits."""
    return {
        "dalle": hub.add("acme/mini", GOLDEN / "dallebart" / "a_normformer_glu_scan", GOLDEN / "tokenizer"),
        "vqgan": hub.add("acme/vqgan", GOLDEN / "vqgan" / "tiny_f4_64"),
        "clip": hub.add("acme/clip", GOLDEN / "clip"),
        "words": hub.add("dalle-mini/dalle-mini", **{WORDS.name: WORDS.read_bytes(), "flax_model.msgpack": b"0"}),
    }


@pytest.mark.slow
def test_three_repositories_to_a_picture(hub, published, pipe):
    sources = {"source": "acme/mini", "vqgan": f"acme/vqgan@{published['vqgan']}", "clip": "acme/clip"}
    drawn = DalleMini.from_pretrained(**sources)
    assert hub.fetched() == [
        *("config.json", *SETTINGS, "tokenizer.json", "flax_model.msgpack"),
        *NETWORK,
        *("config.json", "preprocessor_config.json", *SETTINGS, "tokenizer.json", "flax_model.msgpack"),
        WORDS.name,
    ]
    request = {"prompts": ["a #bluesky over a boat"], "candidates": 1, "top_k": 1}
    result, expected = drawn.generate(**request)[0], pipe.generate(**request)[0]
    assert result.tokens.tolist() == expected.tokens.tolist()
    assert result.scores == expected.scores
    for part in ("dalle", "vqgan", "clip"):
        identity = drawn.provenance()["models"][part]
        assert identity["commit"] == published[part] and identity["weights"] == ["flax_model.msgpack"]
    assert identity["repository"] == "acme/clip"

    hub.close()
    again = DalleMini.from_pretrained(**sources, local_files_only=True)
    assert again.generate(**request)[0].scores == expected.scores


def test_a_bundle_is_one_repository(hub, golden_bundle):
    commit = hub.add("acme/pack", golden_bundle)
    parts = find_parts("acme/pack", revision=commit)
    assert {part: folder.name for part, folder in parts.items()} == {
        **{"dalle": "dalle", "vqgan": "vqgan", "clip": "clip"},
        "words": "words.txt",
    }
    assert len(hub.fetched()) == len(set(hub.fetched())) == 14
    hub.forget()
    assert find_parts(f"acme/pack@{commit}") == parts
    assert find_parts("acme/pack/", revision=commit) == parts
    assert hub.requests == []
    hub.add("acme/vqgan", golden_bundle / "vqgan")
    assert find_parts("acme/pack", vqgan="acme/vqgan")["vqgan"] != parts["vqgan"]


def test_what_lies_beside_the_networks_goes_with_them(hub, golden_bundle, tmp_path, capsys):
    """The words that a model has seen, and the licences of its pictures: by saving, converting and fetching."""
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    KnownWords(["boat"]).save(bundle / "dalle")
    for name in LICENCES:
        (bundle / name).write_text(name)
    DalleMini.from_pretrained(bundle).save_pretrained(tmp_path / "saved")
    convert(bundle, tmp_path / "converted")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        assert KnownWords.load(folder / "dalle").words == ("boat",)
        assert [(folder / name).read_text() for name in LICENCES] == [*LICENCES]
    hub.add("acme/seen", bundle)
    assert KnownWords.load(find_parts("acme/seen")["dalle"]).words == ("boat",)
    assert main(["info", "acme/seen", "--words"]) == 0 and capsys.readouterr().out == "boat\n"


def test_the_word_list_is_fetched_once_whatever_the_model(hub, published, golden_bundle, tmp_path, caplog):
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    (bundle / "dalle" / "words.txt").unlink()
    words = find_parts(bundle)["words"]
    assert words.read_bytes() == WORDS.read_bytes() and hub.fetched() == [WORDS.name]
    hub.forget()
    assert find_parts(bundle)["words"] == words
    assert find_parts(bundle, local_files_only=True)["words"] == words
    assert find_parts(golden_bundle)["words"] == golden_bundle / "dalle" / "words.txt"
    assert hub.requests == []
    with caplog.at_level(logging.WARNING, "dalle_mini"):
        assert "words" not in find_parts(bundle, local_files_only=True, cache_dir=tmp_path / "empty")
    assert "hashtags are not split into words" in caplog.text


def test_a_model_alone_is_refused_before_anything_large_is_fetched(hub, published):
    with pytest.raises(UserError, match="--vqgan and --clip") as error:
        find_parts("acme/mini", clip="acme/clip")
    assert "dalle-mini/vqgan_imagenet_f16_16384@e93a26e" in str(error.value)
    assert "openai/clip-vit-base-patch32" in str(error.value)
    assert hub.fetched() == []


def test_a_repository_without_a_model_is_named(hub):
    hub.add("acme/data", **{"README.md": b"#"})
    with pytest.raises(UserError, match="acme/data holds no model"):
        find_parts("acme/data")
    with pytest.raises(UserError, match=r"acme/data.*no request is allowed"):
        find_parts("acme/data", local_files_only=True)


def test_a_bundle_is_saved_whole(pipe, golden_bundle, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    parts = find_parts(tmp_path / "saved")
    assert parts["words"].read_bytes() == WORDS.read_bytes()
    saved = DalleMini.from_parts(parts)
    request = {"prompts": ["a boat"], "candidates": 1, "top_k": 1}
    assert saved.generate(**request)[0].scores == pipe.generate(**request)[0].scores
    assert saved.provenance()["models"]["clip"]["weights"] == ["model.safetensors"]
    clip = {path.name for path in (tmp_path / "saved" / "clip").iterdir()}
    assert clip == {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", *SETTINGS}


@pytest.mark.slow
def test_the_command_draws_from_repositories(hub, published, tmp_path):
    """In a process of its own, whose client reads the environment as everybody's does."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    model = ["--model", "acme/mini", "--revision", published["dalle"], "--clip", "acme/clip"]
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", "a boat", "--candidates", "1", *model]

    def run(*arguments):
        done = subprocess.run([*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, message = run()
    assert code == 2 and message.startswith("error: acme/mini") and "--vqgan" in message and message.count("\n") == 1
    vqgan = ["--vqgan", "acme/vqgan"]
    assert run(*vqgan, "--cache-dir", "kept") == (0, "")
    report = json.loads((tmp_path / "pictures" / "a-boat" / "results.json").read_text())
    assert report["models"]["vqgan"]["repository"] == "acme/vqgan"
    assert report["models"]["dalle"]["commit"] == published["dalle"]
    assert (tmp_path / "kept" / "models--acme--mini").is_dir()
    hub.close()
    assert run(*vqgan, "--cache-dir", "kept", "--offline") == (0, "")
    code, message = run(*vqgan)
    assert code == 2 and message.startswith("error: ") and hub.url in message and message.count("\n") == 1


def test_a_word_list_without_end_is_not_copied(tmp_path):
    with (tmp_path / "words.txt").open("wb") as file:
        file.truncate(20 << 30)  # it takes no room on the disk
    with pytest.raises(UserError, match=r"words\.txt cannot be read \(it is larger than 256 MiB; limit words_bytes"):
        copy_companion(tmp_path / "words.txt", tmp_path / "copy.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or a device"):
        copy_companion(tmp_path / "pipe", tmp_path / "copy.txt")
    assert not (tmp_path / "copy.txt").exists()


@pytest.mark.parametrize(
    ("tokens", "settings", "advised"),
    [
        (SHIPPED_TOKENS, None, "--vqgan shipped --clip shipped"),
        ("another", {"samples": {"vqgan": "/my/vqgan", "clip": "/my/clip"}}, "--vqgan /my/vqgan --clip /my/clip"),
        (
            "another",
            {"samples": {"vqgan": None}, "sources": {"vqgan": "a/b"}},
            f"--vqgan a/b --clip {COMPANIONS['clip']}",
        ),
        ("another", {"samples": 3}, "--vqgan dalle-mini/vqgan_imagenet_f16_16384"),
        (None, None, "--vqgan dalle-mini/vqgan_imagenet_f16_16384"),
    ],
)
def test_the_networks_to_name_are_those_of_the_run(tmp_path, tokens, settings, advised):
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / "config.json").write_text("{}")
    if tokens is not None:
        (final / "tokens.json").write_text(json.dumps({"vqgan": tokens}))
    if settings is not None:
        (final.parent / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is DalleBart alone") as error:
        find_parts(final)
    assert f"such as {advised}" in str(error.value)
