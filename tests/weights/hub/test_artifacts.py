"""wandb artifacts, from a stand-in for wandb."""

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dalle_mini import UserError
from dalle_mini.weights.hub.repository import resolve

MINI = Path(__file__).parents[2] / "golden" / "dallebart" / "a_normformer_glu_scan"


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """wandb as far as it is used. `calls` are the artifacts asked for; `broken` lets downloads fail half way."""
    module = ModuleType("wandb")
    module.calls, module.broken, module.has_key = [], False, True

    def download(root):
        (Path(root) / "half").touch()
        if module.broken:
            raise ConnectionError("reset by peer")
        shutil.copytree(MINI, root, dirs_exist_ok=True)
        return root

    class Api:
        def __init__(self):
            if not module.has_key and (sys.stdin.isatty() and os.environ.get("TERM") != "dumb"):
                pytest.fail("the user is asked for a key")
            if not module.has_key:
                raise ValueError("No API key configured.\nUse `wandb login` to log in.")

        def artifact(self, name):
            module.calls.append(name)
            if "/nothing:" in name:
                raise ValueError(f"artifact {name} not found")
            return SimpleNamespace(
                version="v3" if name.endswith(":latest") else name.partition(":")[2], download=download
            )

    module.Api = Api
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return module


def test_an_artifact_is_downloaded_once(wandb, tmp_path):
    folder = resolve("acme/project/mini-1:v3")
    assert (folder / "flax_model.msgpack").read_bytes() == (MINI / "flax_model.msgpack").read_bytes()
    assert tmp_path / "cache" / "dalle-mini" in folder.parents
    assert resolve("acme/project/mini-1:v3") == folder
    assert wandb.calls == ["acme/project/mini-1:v3"]
    assert resolve("acme/project/mini-1:latest") == folder  # asked for its version, and that is there
    assert resolve("acme/project/mini-1:v3", local_files_only=True) == folder
    assert wandb.calls[1:] == ["acme/project/mini-1:latest"]
    assert tmp_path / "mine" in resolve("acme/project/mini-1:v3", cache_dir=tmp_path / "mine").parents


def test_half_an_artifact_is_not_kept(wandb, tmp_path):
    wandb.broken = True
    with pytest.raises(UserError, match="reset by peer"):
        resolve("acme/project/mini-1:v3")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    wandb.broken = False
    assert (resolve("acme/project/mini-1:v3") / "config.json").is_file()


def test_nobody_is_asked_for_a_key(wandb, monkeypatch):
    wandb.has_key = False
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(UserError, match="set WANDB_API_KEY") as error:
        resolve("acme/project/mini-1:v3")
    assert "\n" not in str(error.value)
    assert os.environ["TERM"] == "xterm" and sys.stdin.isatty()


def test_what_is_not_there_is_named(wandb, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"acme/project/nothing:v1 .*not found"):
        resolve("acme/project/nothing:v1")
    with pytest.raises(UserError, match=r"acme/project/mini-1:latest is not in .* no request is allowed"):
        resolve("acme/project/mini-1:latest", local_files_only=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"acme/project/mini-1:v3 is a wandb artifact .*pip install .*\[wandb\]"):
        resolve("acme/project/mini-1:v3")
    (tmp_path / "a" / "b" / "c:v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("a/b/c:v1") == Path("a/b/c:v1")


def test_of_two_that_download_one_keeps_its_copy(wandb, monkeypatch):
    copytree, others = shutil.copytree, []

    def while_another_does(*args, **options):
        if not others:
            others.append("on its way")
            others.append(resolve("acme/project/mini-1:v3"))
            (others[1] / "theirs").touch()
        return copytree(*args, **options)

    monkeypatch.setattr(shutil, "copytree", while_another_does)
    folder = resolve("acme/project/mini-1:v3")
    assert folder == others[1] and (folder / "theirs").exists() and os.listdir(folder.parent) == ["v3"]
