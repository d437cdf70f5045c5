"""Every Python snippet of README and docs/ runs as it is printed, with small models in place of the published ones."""

import contextlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

import fake_server
import token_folders
from dalle_mini import DalleMini
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.runtime import limits
from fake_drawer import FakeDrawer
from shell_lines import PAGES, ROOT, snippets

SNIPPETS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}") for page in PAGES for number, code in snippets(page)
]
PUBLISHED = {
    "dalle-mini/dalle-mini": "dalle",
    "dalle-mini/vqgan_imagenet_f16_16384": "vqgan",
    "openai/clip-vit-base-patch32": "clip",
}


def test_there_are_snippets():
    assert len(SNIPPETS) > 5


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet, golden_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    monkeypatch.setenv(limits.VARIABLE, "")  # a snippet may raise them, for all that follows
    monkeypatch.setattr("dalle_mini.pipeline.find_parts", published_or(golden_bundle))
    if "photo.jpg" in snippet:
        Image.fromarray(np.full((300, 300, 3), 99, np.uint8)).save("photo.jpg")
    if "encoded" in snippet:
        vqgan = fingerprint(VQGAN.from_pretrained(golden_bundle / "vqgan"))
        token_folders.write_tokens(tmp_path / "encoded", 300, vqgan=vqgan)
        token_folders.write_notebook(tmp_path / "notebook", 100)
    for name, part in PUBLISHED.items():
        snippet = snippet.replace(f'"{name}"', repr(str(golden_bundle / part)))
    names = {"__name__": "snippet"}
    if re.search(r"\bpipe\b(?! =)", snippet) and "pipe =" not in snippet:  # the one of README
        names["pipe"] = DalleMini.from_pretrained()
    if "jit(step" in snippet:  # "a function of your own", as the page says
        names["step"] = lambda array: array
    if "from cog import" in snippet:  # the part of Cog that it needs
        cog = types.SimpleNamespace(BasePredictor=object, Input=lambda **told: told.get("default"), Path=Path)
        monkeypatch.setitem(sys.modules, "cog", cog)
        monkeypatch.setattr(sys, "path", [*sys.path])
    with contextlib.ExitStack() as running:
        if "client" in snippet:  # of a server
            server = running.enter_context(fake_server.running(FakeDrawer(), tmp_path / "served"))
            snippet = snippet.replace("http://127.0.0.1:8000", str(server.base_url))
            names["client"] = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
        exec(compile(snippet, "snippet", "exec"), names)
    if "Predictor" in names:
        predictor = names["Predictor"]()
        predictor.setup()
        assert Image.open(predictor.predict("a red apple", candidates=2)).format == "PNG"


def published_or(bundle):
    """As `find_parts`, with a small bundle in place of the shipped one, which draws for longer."""
    from dalle_mini.weights.bundle import find_parts

    return lambda source=None, *named, **options: find_parts(source or bundle, *named, **options)
