"""A run's page: whole, honest about what it draws, and without requests."""

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from dalle_mini.reports.html_page import POLICY
from dalle_mini.reports.run_page import spread, write_comparison, write_report
from dalle_mini.reports.svg import BUCKETS, Series, chart, down_sampled, linear_ticks, number
from dalle_mini.settings import GenerationSettings
from dalle_mini.training.tracking.samples import Sample
from dalle_mini.training.tracking.tracker import Tracker

VOID = {"meta", "link", "img", "br"}


class Elements(HTMLParser):
    """Every element's name and attributes; fails where an end does not fit its beginning."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "<mini>"
    tracker = Tracker(out, {"loop": {"steps": 400}, "prompts": ["<script>alert(1)</script>"]}, 400, label="seq2seq")
    for step in range(1, 301):
        tracker.log(step, {"loss": 9 - step / 50, "learning_rate": 0.005, "perplexity": 3.0}, 10.0 + step % 2)
        if step % 100 == 0:
            tracker.log(step, {"eval_loss": 9.5 - step / 50})
            pictures = [Image.new("RGB", (24, 24), (step % 256, 0, 0)), Image.new("RGB", (24, 24))]
            tracker.samples(
                step,
                [
                    Sample("a red & <b>round</b> apple", pictures, [20.25, 11.0], [1, 0], GenerationSettings(2)),
                    Sample("a snail", pictures, None, [0, 1], GenerationSettings(2)),
                ],
            )
    tracker.close()
    return out


@pytest.fixture(scope="module")
def page(out):
    return (out / "report.html").read_text("utf-8")


def test_no_script_and_no_request(page):
    names = {tag for tag, _ in Elements(page).found}
    assert "script" not in names and "style" in names
    for tag, attributes in Elements(page).found:
        assert not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert (tag, attributes["src"][:23]) == ("img", "data:image/webp;base64,")
        if "href" in attributes:
            assert not re.match(r"\w+:(?!,)|//", attributes["href"])
    assert "@import" not in page and "url(" not in page
    assert "&lt;script&gt;alert(1)" in page and "a red &amp; &lt;b&gt;round&lt;/b&gt; apple" in page


def test_curves(page):
    cards = dict(re.findall(r"<h3>(.*?)</h3>(.*?)</section>", page, re.DOTALL))
    assert list(cards) == [
        "Loss",
        "CLIP score of the images",
        "Learning rate",
        "Images a second",
        "Memory, GiB",
        "Perplexity",
    ]
    assert "training <b>3</b>" in cards["Loss"] and "evaluation <b>3.5</b>" in cards["Loss"]
    assert "step 200: evaluation 5.5" in cards["Loss"]
    assert "Step 300 of 400" in page and "width:75.0%" in page


def test_pictures_link_to_grids_that_are_there(out, page):
    links = [attributes["href"] for tag, attributes in Elements(page).found if tag == "a"]
    assert len(links) == 6
    assert all((out / link).is_file() for link in links)
    assert links[0] == "samples/00000100/01-a-red-b-round-b-apple.png"
    assert page.count(">20.2</a>") == 3  # where there is a score
    assert not list(out.rglob("*.partial"))


def test_samples_on_disk(out):
    folder = out / "samples" / "00000200"
    first, second = json.loads((folder / "results.json").read_text())["prompts"]
    assert first["pictures"] == [{"candidate": 1, "score": 20.25}, {"candidate": 0, "score": 11.0}]
    assert second["pictures"] == [{"candidate": 0, "score": None}, {"candidate": 1, "score": None}]
    with Image.open(folder / first["thumb"]) as thumb:
        assert thumb.getpixel((12, 12))[0] == pytest.approx(200, abs=12)


def test_the_page_does_not_grow_with_the_run(out):
    tracker = Tracker(out.parent / "long", {}, 100_000)
    with (out.parent / "long" / "log.jsonl").open("w") as file:
        for step in range(20, 100_001, 20):
            file.write(json.dumps({"step": step, "loss": 3.0 + step % 7, "grad_norm": 1.0}) + "\n")
    tracker.report()
    assert (out.parent / "long" / "report.html").stat().st_size < 100_000


def test_many_points_become_means_within_a_band():
    points = [(float(step), float(step % 10)) for step in range(10_000)]
    points[5_000:5_050] = [(float(step), None) for step in range(5_000, 5_050)]
    made = down_sampled(points, 10_000)
    assert len(made) == BUCKETS
    whole = [one for one in made if one.mean is not None]
    assert len(made) - len(whole) == 1  # a share without numbers is a gap
    assert {(one.low, one.high) for one in whole} == {(0.0, 9.0)}  # no spike is lost
    assert all(4 < one.mean < 5 for one in whole)
    few = down_sampled(points[:3], 10_000)
    assert [(one.x, one.mean) for one in few] == [(0, 0), (1, 1), (2, 2)]


def coordinates(svg):
    (line,) = [element for element in svg.iter() if element.tag == "polyline"]
    return [tuple(map(float, point.split(","))) for point in line.get("points").split()]


def svg_of(points, **options):
    card = chart("Loss", [Series("training", points)], **options)
    return ElementTree.fromstring(re.search("<svg.*</svg>", card).group())


def test_where_points_are_drawn():
    svg = svg_of([(0, 0.0), (50, 5.0), (100, 10.0)], end=100)
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg)
    assert x0 < x1 < x2 and y0 > y1 > y2  # up is more
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    half = coordinates(svg_of([(0, 0.0), (50, 5.0), (100, 10.0)], end=200))
    assert half[-1][0] == pytest.approx((x0 + x2) / 2, abs=0.2)  # the steps to come are empty


def test_an_axis_is_logarithmic_where_that_shows_more():
    points = [(0, 0.01), (50, 1.0), (100, 100.0)]
    (_, a), (_, b), (_, c) = coordinates(svg_of(points, end=100, may_be_log=True))
    assert a - b == pytest.approx(b - c, abs=0.2)
    (_, a), (_, b), (_, c) = coordinates(svg_of(points, end=100))
    assert b - c > 50 * (a - b)


def test_gaps_and_nothing():
    lines = svg_of([(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, 2.0)], end=4).iter()
    assert len([element for element in lines if element.tag == "polyline"]) == 2
    assert chart("Loss", [Series("training", [(0, None)])], end=1) == ""
    assert (
        coordinates(svg_of([(0, 3.0), (1, 3.0)], end=1))[0][1] == coordinates(svg_of([(0, 3.0), (1, 3.0)], end=1))[1][1]
    )


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (2.9, 9.6, [2, 4, 6, 8, 10]),
        (0, 0.005, [0, 0.002, 0.004, 0.006]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (7, 7, [6, 8]),
        (0, 0, [0, 0.25]),
    ],
)
def test_ticks(low, high, ticks):
    assert linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.21987, "3.22"),
        (5000, "5000"),
        (12_000, "12k"),
        (153_600, "153.6k"),
        (2.5e6, "2.5M"),
        (3.2e-5, "3.2e-05"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_percent():
    assert number(0.40812, percent=True) == "40.8 %"


def test_spread():
    assert spread(range(5), 8) == [0, 1, 2, 3, 4]
    assert spread(range(100), 4) == [0, 33, 66, 99]


def test_several_runs_in_one_page(tmp_path):
    runs = {}
    for place in range(10):
        name = f"rate={place}"
        runs[name] = tmp_path / name
        Tracker(runs[name], {}, 10).log(5, {"loss": place, "eval_loss": 10.0 - place})
    rows = [("rate=9", ("9", "1.0"), None), ("rate=8", ("8", "2.0"), None), ("rate=<", (), "exit code 2: no <such>")]
    write_comparison(tmp_path / "page.html", "Sweep", runs, ("rate", "eval_loss"), rows)
    page = (tmp_path / "page.html").read_text("utf-8")
    Elements(page)
    assert re.findall("<h3>(.*?)</h3>", page) == ["Loss, evaluation", "Loss, training"]
    assert "step 5: rate=3 7" in page and "step 5: rate=3 3" in page
    assert page.index("rate=9") < page.index("rate=8") < page.index("rate=&lt;")
    assert 'class="bad" colspan="2">exit code 2: no &lt;such&gt;' in page
    assert page.count('stroke-dasharray="6 4"') == 4  # the ninth and the tenth, in both charts


def test_before_the_first_record(tmp_path):
    Tracker(tmp_path / "run", {}, 10).report()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    Elements(page)
    assert "Step 0 of 10" in page and "<svg" not in page


def test_a_report_of_samples_leads_to_its_own_pictures_alone(out, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(out, run)
    (tmp_path / "secret").write_text("secret")
    reports = sorted(run.glob("samples/*/results.json"))
    for report, thumb in zip(reports, ("../../../secret", "/etc/passwd", 7), strict=True):
        found = json.loads(report.read_text())
        for row in found["prompts"]:
            row["thumb"] = thumb
        report.write_text(json.dumps(found))
    write_report(run, {}, 400, "seq2seq")
    assert "<img" not in (run / "report.html").read_text()
    shutil.copyfile(sorted(out.glob("samples/*/results.json"))[0], reports[0])
    for thumb in reports[0].parent.glob("thumbs/*"):
        thumb.unlink()
        thumb.symlink_to(tmp_path / "secret")
    write_report(run, {}, 400, "seq2seq")
    assert "<img" not in (run / "report.html").read_text()


def test_the_page_has_a_policy_and_no_name_of_a_metric_is_markup(out, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "time": 1e17, evil: 1.0, f"eval_{evil}": 1e17}) + "\n")
    write_report(tmp_path, {evil: evil}, 10, evil)
    found = Elements((tmp_path / "report.html").read_text()).found
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in found}
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in found
