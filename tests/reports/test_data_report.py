import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dalle_mini.cli import main
from dalle_mini.data.tokens.shards import DROPPED, DROPPED_SCHEMA, Shard, write_table
from dalle_mini.errors import UserError
from dalle_mini.imaging.pixels import to_uint8
from dalle_mini.reports import survey as survey_module
from dalle_mini.reports.data_page import page, perplexity
from dalle_mini.reports.data_report import _data_uri, name_of, write_report
from dalle_mini.reports.html_page import POLICY
from dalle_mini.reports.survey import survey
from dalle_mini.runtime.files import write_whole
from token_folders import write_tokens

HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script><img src=x onerror=alert(1)>"\'&amp;</q></figure>'


@pytest.fixture(scope="module")
def vqgan(golden_bundle):
    from dalle_mini.models import VQGAN

    return VQGAN.from_pretrained(golden_bundle / "vqgan")


@pytest.fixture(scope="module")
def tokens(vqgan):
    return np.random.default_rng(0).integers(0, vqgan.config.n_embed, (150, vqgan.config.grid**2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, golden_bundle, vqgan, tokens):
    """130 + 20 rows; one caption means harm, and so does the key of what was dropped."""
    from dalle_mini.models.fingerprint import fingerprint

    out = tmp_path_factory.mktemp("report") / "en<coded"
    dropped = [
        ("a/1.jpg", "caption too short", "3 characters"),
        (HOSTILE, "caption not English", ""),
        ("b", "caption not English", ""),
    ]
    out.mkdir()
    with (out / DROPPED).open("wb") as file:
        write_table(pa.table(list(zip(*dropped, strict=True)), schema=DROPPED_SCHEMA), file)
    return write_tokens(
        out,
        {"train": 130, "validation": 20},
        shard_rows=60,
        image_length=tokens.shape[1],
        codebook_size=vqgan.config.n_embed,
        vqgan=fingerprint(vqgan),
        source=str(golden_bundle / "vqgan"),
        resolution=vqgan.config.resolution,
        tokens=tokens,
        captions={7: HOSTILE, 8: "x", 9: "long " * 400},
        others=1,
        seen=153,
        dropped={"caption too short": 1, "caption not English": 2, "duplicate": 0},
        dropped_rows=Shard(DROPPED, 3, ""),
        source_of_rows={"path": HOSTILE},
    )


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory) -> str:
    return write_report(folder, tmp_path_factory.mktemp("page") / "page.html", rows=6).read_text("utf-8")


class Parsed(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_that_asks_for_nothing_and_runs_nothing(written):
    parsed = Parsed(written)
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "href") or value.startswith("data:image/jpeg;base64,")
        assert "url(" not in (value or "")
    assert ("meta", "content", POLICY) in parsed.attributes and "default-src 'none'; img-src data:;" in POLICY
    assert parsed.text.count(HOSTILE) >= 3  # a caption, a dropped key, the source: all as text


def test_no_text_of_a_manifest_becomes_markup(folder):
    found, shown = survey(folder, rows=2, worst=1), {}
    for row in found.random + [row for rows in found.worst.values() for row in rows]:
        shown[name_of(row)] = "data:image/jpeg;base64,"
    plain = Parsed(page("name", found, shown))
    found.manifest = dataclasses.replace(
        found.manifest,
        dropped={HOSTILE if name == "caption too short" else name: n for name, n in found.manifest.dropped.items()},
        vqgan=dataclasses.replace(found.manifest.vqgan, identity=HOSTILE, source=HOSTILE),
        clip={"identity": HOSTILE, HOSTILE: HOSTILE},
        source={HOSTILE: [HOSTILE]},
        options={"where": HOSTILE},
        splits={HOSTILE if name == "validation" else name: split for name, split in found.manifest.splits.items()},
    )
    found.dropped = {HOSTILE: [(HOSTILE, HOSTILE)], "caption not English": [("b", "")]}
    hostile = Parsed(page(HOSTILE, found, shown))
    assert set(hostile.tags) == set(plain.tags)
    assert {name for _, name, _ in hostile.attributes} == {name for _, name, _ in plain.attributes}


def test_counts_and_drops(written):
    parsed = Parsed(written)
    for text in ("en<coded", "153", "150", "130", "caption too short", "3 characters", "1.31%", "0.65%", "all rows"):
        assert text in parsed.text, text
    assert "duplicate" not in parsed.text
    assert {"svg", "table", "details"} <= set(parsed.tags)
    assert parsed.tags.count("svg") == 8


def test_worst_and_random_rows(folder, tokens):
    found = survey(folder, rows=12, worst=4, seed=3)
    assert found.sampled == 150
    ends = {title: {row.key for row in found.worst[f"{title} captions"][:2]} for title in ("Shortest", "Longest")}
    assert ends["Shortest"] == {"train/000008", "validation/000008"}
    assert ends["Longest"] == {"train/000009", "validation/000009"}
    assert {row.score for row in found.worst["Lowest CLIP scores"]} == {0.0}
    codes = np.array([len(set(row)) for row in np.concatenate([tokens[:130], tokens[:20]]).tolist()])
    fewest = [len(set(row.tokens.tolist())) for row in found.worst["Fewest different codes"]]
    assert fewest == sorted(codes)[:4]
    assert sorted(found.codes) == sorted(codes)
    assert len({(row.split, row.key) for row in found.random}) == 12
    assert np.median(found.aspect) == pytest.approx(np.median([(200 + r % 100) / (150 + r % 70) for r in _rows()]))


def _rows():
    return [*range(130), *range(20)]


def test_random_rows_are_drawn_evenly(folder):
    drawn = [row.split for seed in range(40) for row in survey(folder, rows=15, worst=1, seed=seed).random]
    assert abs(drawn.count("validation") - 80) < 5 * math.sqrt(600 * 20 / 150 * 130 / 150)


def test_pictures_are_those_of_the_tokens(written, vqgan, tokens):
    figures = re.findall(r'base64,([^"]+)".*?<br>(train|validation)/(\d+)', written.split("Random rows")[1])
    assert len(figures) >= 6
    data, _, row = figures[0]

    def as_shown(uri: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))), float)

    own, other = (as_shown(_data_uri(to_uint8(vqgan.decode(tokens[int(row) + k][None])[0]))) for k in (0, 1))
    assert as_shown(data).shape == own.shape == (vqgan.config.resolution,) * 2 + (3,)  # original size
    assert np.abs(as_shown(data) - own).mean() < 1 < 10 < np.abs(as_shown(data) - other).mean()


class Pictures(dict):
    def __missing__(self, row):
        return "data:image/jpeg;base64,"


def test_the_same_page_for_the_same_seed(folder):
    pages = [page("name", survey(folder, rows=6, seed=seed), Pictures()) for seed in (1, 1, 2)]
    assert pages[0] == pages[1] != pages[2]


def test_large_folders_are_sampled(folder, monkeypatch):
    monkeypatch.setattr(survey_module, "SAMPLE", 50)
    found = survey(folder)
    assert found.sampled in (60, 70, 80)  # whole row groups, here of 60, 60, 10 and 20 rows
    assert f"From {found.sampled} of 150 rows, drawn at random" in page("name", found, Pictures())


def test_the_vqgan_must_be_theirs(folder, tmp_path, vqgan, golden_bundle, tokens):
    from dalle_mini.weights.bundle import SHIPPED

    with pytest.raises(UserError, match=r"another VQGAN .* than the one that encoded"):
        write_report(folder, tmp_path / "page.html", vqgan=SHIPPED / "vqgan")
    moved = {"image_length": tokens.shape[1], "codebook_size": vqgan.config.n_embed, "tokens": tokens}
    out = write_tokens(tmp_path / "moved", 9, source="/no/such/vqgan", **moved)
    with pytest.raises(UserError, match=r"is not found .*--vqgan"):
        write_report(out, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_shipped_vqgan_is_found_on_any_machine(tmp_path):
    from dalle_mini.models import VQGAN
    from dalle_mini.models.fingerprint import fingerprint
    from dalle_mini.weights.bundle import SHIPPED

    shipped = VQGAN.from_pretrained(SHIPPED / "vqgan")
    length, codes = shipped.config.grid**2, shipped.config.n_embed
    tokens = np.random.default_rng(0).integers(0, codes, (3, length))
    sizes = {"image_length": length, "codebook_size": codes, "resolution": shipped.config.resolution, "tokens": tokens}
    out = write_tokens(tmp_path / "out", 3, source="shipped", vqgan=fingerprint(shipped), **sizes)
    assert write_report(out, rows=2) == out / "report.html"


@pytest.mark.slow
def test_command(folder, tmp_path, capsys):
    output = tmp_path / "pages" / "page.html"
    assert main(["data", "report", str(folder), "--output", str(output), "--rows", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(output) and output.stat().st_size > 10_000
    shard = folder / "train-00001.parquet"
    kept = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(kept[:500]), lambda: shard.write_bytes(b"\0" * 100 + kept[100:])):
        damage()
        assert main(["data", "report", str(folder), "--output", str(tmp_path / "none.html")]) == 2
        assert re.fullmatch(r"error: .*train-00001.parquet: damaged.*\n", capsys.readouterr().err)
    shard.write_bytes(kept)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dalle_mini.reports.data_report._decoder", None)  # before the VQGAN is looked for
        assert main(["data", "report", str(folder), "--output", str(tmp_path)]) == 2
    wanted = f"error: {tmp_path} is a folder: name a file, such as {tmp_path}/report.html\n"
    assert capsys.readouterr().err == wanted
    with pytest.raises(UserError, match=r"/page.html/x.html cannot be written \((.*is a file, not a folder)\)$"):
        write_whole(output / "x.html", b"")
    assert main(["data", "report", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "no manifest.json" in told and f"dalle-mini encode {tmp_path} OUT) and name that one" in told
    assert not (tmp_path / "none.html").exists()


def test_perplexity():
    assert perplexity(np.full(64, 10)) == pytest.approx(64)
    assert perplexity(np.array([5, 0, 0])) == pytest.approx(1)
    assert perplexity(np.array([2, 1, 1])) == pytest.approx(2**1.5)
