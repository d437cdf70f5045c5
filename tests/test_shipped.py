"""The model that ships with the package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.data.emoji import DEBIAN_FONT, everyday_emoji
from dalle_mini.evaluation.emoji import EmojiJudge
from dalle_mini.pipeline import SHIPPED, DalleMini

REPOSITORY = Path(__file__).parent.parent

needs_font = pytest.mark.skipif(not DEBIAN_FONT.exists(), reason="needs Debian's package fonts-noto-color-emoji")


def test_is_small_complete_and_described():
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size <= 30e6
    names = json.loads((SHIPPED / "emoji.json").read_text())
    assert len(set(names)) == len(names) >= 200
    lines = (SHIPPED / "README.md").read_text("utf-8").splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    expected = ["Networks", "Data", "Licence", "Recipe and training time", "Scores", "Limits", "This edition"]
    assert headings == expected


@pytest.fixture(scope="module")
def pipe():
    return DalleMini.from_pretrained()


def test_the_background_is_what_is_asked_for(pipe):
    blue, green = pipe.generate(
        ["a lion on a blue background", "a lion on a green background"], candidates=8, keep=1, seed=0
    )
    assert blue.images[0].size == (64, 64)
    corner_blue, corner_green = (np.asarray(r.images[0], np.float32)[:6, :6].mean((0, 1)) for r in (blue, green))
    assert corner_blue.argmax() == 2
    assert corner_green.argmax() == 1


@needs_font
def test_draws_what_is_asked_for(pipe):
    """Told from every other emoji that the model knows."""
    asked = {"strawberry": "gray", "panda": "pink", "lion": "blue"}
    by_name = {one.name: one for one in everyday_emoji()}
    judge = EmojiJudge(emoji=[by_name[name] for name in json.loads((SHIPPED / "emoji.json").read_text())])
    prompts = [f"a {name} on a {color} background" for name, color in asked.items()]
    for (name, color), result in zip(asked.items(), pipe.generate(prompts, candidates=8, keep=1, seed=0), strict=True):
        (seen,) = judge(np.stack(result.images))
        assert (seen.name, seen.color) == (name, color)


def test_a_picture_depends_on_its_own_seed_prompt_and_number_alone(pipe):
    one = pipe.generate(["a red apple"], candidates=1, keep=1, seed=3)[0]
    _, seven = pipe.generate(["a rocket", "a red apple"], candidates=7, keep=7, seed=3)
    np.testing.assert_array_equal(one.tokens[0], seven.tokens[seven.indices.index(0)])


@pytest.mark.slow
@needs_font
def test_quality_benchmark(tmp_path):
    command = [sys.executable, "benchmarks/emoji_quality.py", "--json", "--output", str(tmp_path), "--prompts", "24"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["vqgan_psnr"] >= 24
    assert figures["codebook_use"] >= 0.5
    assert figures["single_accuracy"] >= 0.75
    assert figures["background_accuracy"] >= 0.9
    assert (tmp_path / "contact_sheet.png").stat().st_size > 10_000
