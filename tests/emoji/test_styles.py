import base64
import hashlib
import io
import json
import pickle
import re
import sys
import tarfile
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini.emoji.packages import CLDR, FETCH, NOTO, check_package, find_package, read_members
from dalle_mini.emoji.recolor import COLORS, dominant, painted
from dalle_mini.emoji.styles import SHIPPED_STYLES, STYLES, StyleArt, credits_table, draw_style, find_style
from dalle_mini.emoji.words import ANNOTATIONS, read_annotations, write_annotations
from dalle_mini.errors import UserError

ART = Path(__file__).parent.parent / "golden" / "art"
ROOT = Path(__file__).parent.parent.parent
APPLE, CAR = "🍎", "🚗"


def package(folder, pinned, files):
    """An archive as npm packs it, under the name of a pinned package."""
    path = folder / pinned.file_name
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(color, side=8):
    stream = io.BytesIO()
    Image.new("RGBA", (side, side), color).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def resvg(monkeypatch):
    """A `resvg_py` that keeps the SVGs and draws them red."""
    seen = []

    def draw(svg_string, width, height, skip_system_fonts):
        seen.append(svg_string)
        return png((255, 0, 0, 255), width)

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=draw))
    return seen


def icons():
    return {
        "icons.json": json.dumps(
            {
                "width": 32,
                "height": 32,
                "icons": {"red-apple": {"body": "<path/>"}, "car": {"body": "<g/>", "height": 33}},
            }
        ).encode(),
        "chars.json": json.dumps({"1f34e": "red-apple", "1f697-fe0f": "car"}).encode(),
    }


def test_a_style_is_drawn_from_its_package_once(tmp_path, resvg):
    package(tmp_path, NOTO, icons())
    seen = []
    path = draw_style(STYLES["noto"], tmp_path, [APPLE, CAR, CAR + "\ufe0f", "🦊"], lambda *now: seen.append(now))
    assert [re.search(r'viewBox="(.*?)"', svg).group(1) for svg in resvg] == ["0 0 32 32", "0 0 32 33"]
    assert seen == [(1, 2), (2, 2)]
    art = StyleArt("noto", tmp_path)
    assert APPLE in art and CAR in art and "🦊" not in art
    assert art.image(APPLE).size == (256, 256)
    assert art.is_paintable(APPLE)
    before = path.read_bytes()
    assert draw_style(STYLES["noto"], tmp_path, [APPLE, CAR]).read_bytes() == before


def test_pictures_of_webp_are_kept_as_they_are(tmp_path):
    stream = io.BytesIO()
    Image.new("RGBA", (256, 256), (0, 0, 255, 128)).save(stream, "WEBP", lossless=True)
    package(tmp_path, STYLES["3d"].package, {"assets/1f34e.webp": stream.getvalue(), "package.json": b"{}"})
    draw_style(STYLES["3d"], tmp_path, [APPLE])
    assert StyleArt("3d", tmp_path).image(APPLE).getpixel((9, 9)) == (0, 0, 255, 128)


@pytest.mark.parametrize("name", ["openmoji", "openmoji-black"])
def test_openmoji_is_drawn_from_files(tmp_path, resvg, name):
    folder = "black" if name.endswith("black") else "color"
    svgs = {"color/svg/1F34E.svg": b"<svg>color</svg>", "black/svg/1F34E.svg": b"<svg>black</svg>"}
    package(tmp_path, STYLES[name].package, svgs)
    draw_style(STYLES[name], tmp_path, [APPLE])
    assert resvg == [f"<svg>{folder}</svg>"]
    assert APPLE in StyleArt(name, tmp_path)


def test_svg_needs_resvg(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    package(tmp_path, NOTO, icons())
    with pytest.raises(UserError, match="pip install"):
        draw_style(STYLES["noto"], tmp_path, [APPLE])
    assert not (tmp_path / STYLES["noto"].file_name).exists()


def test_what_is_missing_names_the_command(tmp_path):
    for missing in (
        lambda: find_package(NOTO, tmp_path),
        lambda: StyleArt("flat", tmp_path),
        lambda: read_annotations(tmp_path),
    ):
        with pytest.raises(UserError, match=re.escape(FETCH)):
            missing()
    with pytest.raises(UserError, match="noto, 3d, flat, twemoji"):
        find_style("cubist")
    (tmp_path / STYLES["flat"].file_name).write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read"):
        StyleArt("flat", tmp_path)


def test_an_archive_is_checked_byte_for_byte(tmp_path):
    path = package(tmp_path, NOTO, icons())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    check_package(replace(NOTO, integrity=integrity), path)
    with pytest.raises(UserError, match=r"not @iconify-json/noto@1.2.9: its checksum is sha512-"):
        check_package(NOTO, path)
    with pytest.raises(UserError, match=r"info\.json is missing"):
        read_members(path, "icons.json", "info.json")
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a package's archive"):
        read_members(path, "icons.json")


def test_names_and_keywords_are_kept(tmp_path):
    table = {"annotations": {"annotations": {APPLE: {"default": ["apple", "fruit"], "tts": ["red apple"]}}}}
    path = package(tmp_path, CLDR, {"annotations/en/annotations.json": json.dumps(table).encode()})
    write_annotations(path, tmp_path / ANNOTATIONS, [APPLE, "🦊"])
    assert read_annotations(tmp_path) == {APPLE: ("red apple", ["apple", "fruit"])}


@pytest.mark.parametrize("name", SHIPPED_STYLES)
def test_a_sprite_is_pasted_as_alpha_says(name):
    art = StyleArt(name, ART)
    for flipped in (False, True):
        image = np.full((64, 64, 3), (10, 200, 90), np.uint8)
        art.sprite(APPLE, 32, flipped=flipped).paste(image, 16, 8)
        small = art.image(APPLE).convert("RGBa").resize((32, 32), Image.Resampling.HAMMING)
        values = np.asarray(small, np.float64)[:, :: -1 if flipped else 1]
        expected = np.full((64, 64, 3), (10, 200, 90), np.float64)
        inner = expected[8:40, 16:48]
        inner *= 1 - values[..., 3:] / 255
        inner += np.minimum(values[..., :3], values[..., 3:])
        assert np.max(np.abs(image - expected)) <= 0.51
        assert np.any(image != (10, 200, 90))


def test_an_opened_style_travels_to_other_processes():
    art = StyleArt("flat", ART)
    again = pickle.loads(pickle.dumps(art))
    assert again.fingerprint() == art.fingerprint() != StyleArt("noto", ART).fingerprint()
    assert np.array_equal(again.sprite(APPLE, 16).colors, art.sprite(APPLE, 16).colors)


def test_paint_changes_the_dominant_hue_alone():
    image = Image.new("RGBA", (60, 60), (220, 40, 40, 255))
    image.paste((255, 255, 255, 255), (0, 0, 20, 20))
    image.paste((30, 200, 60, 255), (40, 40, 50, 50))
    image.paste((0, 0, 0, 0), (50, 0, 60, 60))
    found = dominant(image)
    assert found.paintable
    blue = painted(image, "blue", found)
    red, green, blue_value, alpha = blue.getpixel((30, 30))
    assert blue_value > 200 > 120 > max(red, green) and alpha == 255
    for place in ((5, 5), (45, 45), (55, 5)):
        assert blue.getpixel(place) == image.getpixel(place)
    assert dominant(Image.new("RGBA", (60, 60), (90, 90, 90, 255))) is None
    assert dominant(Image.new("RGBA", (60, 60))) is None


@pytest.mark.parametrize("color", COLORS)
def test_what_is_painted_gets_the_colour_of_the_word(color):
    import colorsys

    image = Image.new("RGBA", (40, 40), (250, 170, 20, 255))
    pixel = painted(image, color, dominant(image)).getpixel((20, 20))
    wanted = [255 * value for value in colorsys.hsv_to_rgb(*COLORS[color])]
    assert np.max(np.abs(np.subtract(pixel[:3], wanted))) < 4


def test_the_card_credits_every_package():
    table = credits_table(SHIPPED_STYLES, [CLDR])
    for name in SHIPPED_STYLES:
        assert STYLES[name].package.spec in table and STYLES[name].package.licence in table
    assert CLDR.spec in table
    assert table in (ROOT / "tools" / "train" / "art_credits.md").read_text()
    licences = (ROOT / "tools" / "train" / "art_licences.md").read_text()
    assert (ROOT / "tests" / "golden" / "art" / "LICENSES.md").read_text() == licences
    assert not STYLES["openmoji"].ships and "openmoji" not in SHIPPED_STYLES
