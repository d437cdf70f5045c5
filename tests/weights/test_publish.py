"""Uploads by the real client to a server on this machine."""

import json

import pytest

from dalle_mini import DalleMini, UserError
from dalle_mini.models import VQGAN
from dalle_mini.weights.bundle import find_parts


@pytest.fixture
def writable(hub, monkeypatch):
    from hub_server import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def files(hub, repo_id: str, branch: str = "main") -> dict[str, bytes]:
    return hub.commits[hub.repositories[repo_id][branch]]


def test_a_bundle_goes_up_and_comes_down(writable, pipe):
    address = pipe.push_to_hub("acme/pack", private=True, commit_message="First")
    assert address.endswith(writable.repositories["acme/pack"]["main"])
    assert writable.messages == ["First"] and "acme/pack" in writable.private
    card = files(writable, "acme/pack")["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: dalle-mini\npipeline_tag: text-to-image\n")
    assert 'DalleMini.from_pretrained("acme/pack")' in card
    down = DalleMini.from_pretrained("acme/pack")
    request = {"prompts": ["a #bluesky"], "candidates": 1, "top_k": 1}
    assert down.generate(**request)[0].scores == pipe.generate(**request)[0].scores


def test_a_card_that_is_there_is_kept(writable, pipe):
    writable.add("acme/vqgan", **{"README.md": b"# Written by hand"})
    pipe.vqgan.push_to_hub("acme/vqgan", revision="half", license="mit")
    assert files(writable, "acme/vqgan", "half")["README.md"] == b"# Written by hand"
    assert "config.json" not in files(writable, "acme/vqgan")
    assert VQGAN.from_pretrained("acme/vqgan@half").config == pipe.vqgan.config


def test_without_access_nothing_is_saved_or_sent(hub, pipe, monkeypatch):
    monkeypatch.setattr(pipe.vqgan, "save_pretrained", lambda folder: pytest.fail("saved"))
    with pytest.raises(UserError, match=r"acme/vqgan.*401.*HF_TOKEN"):
        pipe.vqgan.push_to_hub("acme/vqgan")
    assert hub.repositories == {}
    with pytest.raises(UserError, match="acme--vqgan"):
        pipe.vqgan.push_to_hub("acme--vqgan")


def test_the_shipped_model_keeps_its_card(writable):
    DalleMini.from_pretrained().push_to_hub("acme/emoji")
    shipped = find_parts()["dalle"].parent / "README.md"
    assert files(writable, "acme/emoji")["README.md"] == shipped.read_bytes()
    assert json.loads(files(writable, "acme/emoji")["dalle/config.json"])["model_type"] == "dallebart"
