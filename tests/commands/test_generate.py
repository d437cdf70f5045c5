"""`dalle-mini generate` beyond plain prompts: replay, pictures to start from, previews, several processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini import UserError
from dalle_mini.cli import main
from dalle_mini.pipeline import Preview
from dalle_mini.results.replay import Entry
from dalle_mini.results.write import Previews
from dalle_mini.settings import GenerationSettings
from dalle_mini.text.known_words import KnownWords
from dalle_mini.weights.editions import EDITIONS


@pytest.fixture
def generate(golden_bundle, tmp_path, capsys):
    """Run the command with the tiny bundle; (exit code, output, errors)."""

    def run(*arguments, output="out"):
        code = main(
            ["generate", *map(str, arguments), "--model", str(golden_bundle), "--output", str(tmp_path / output)]
        )
        return code, *capsys.readouterr()

    return run


def test_words_that_a_model_has_not_seen_are_told(golden_bundle, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    drawing = ["generate", "a gutiar", "a boat", "--candidates", "1", "--model", str(bundle), "--output"]
    assert main([*drawing, str(tmp_path / "one")]) == 0
    assert "never seen" not in "".join(capsys.readouterr())
    assert main(["info", str(bundle), "--words"]) != 0
    assert "carries no vocabulary" in capsys.readouterr().err
    KnownWords(["a", "boat", "guitar"]).save(bundle / "dalle")
    assert main([*drawing, str(tmp_path / "two")]) == 0
    assert capsys.readouterr().err.count("never seen") == 1
    file = tmp_path / "prompts.txt"
    file.write_text("a boat\n" + "".join(f"a boat {word}\n" for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn")))
    batch = ["generate", "--prompts", str(file), "--candidates", "1", "--model", str(bundle)]
    assert main([*batch, "--output", str(tmp_path / "batch")]) == 0
    errors = capsys.readouterr().err
    assert errors.count("never seen") == 5 and "ij: never seen\n...\n" in errors
    assert main(["info", str(bundle), "--words"]) in (0, None)
    assert capsys.readouterr().out.split() == ["a", "boat", "guitar"]


@pytest.fixture(scope="module")
def report(golden_bundle, tmp_path_factory) -> str:
    """A `results.json` of one picture."""
    output = tmp_path_factory.mktemp("report")
    main(["generate", "a boat", "--candidates", "1", "--model", str(golden_bundle), "--output", str(output)])
    return (output / "a-boat" / "results.json").read_text()


@pytest.mark.slow
def test_a_picture_is_drawn_again_from_its_report(generate, tmp_path):
    options = ["--candidates", 5, "--keep", 5, "--seed", 9, "--guidance", 4, "--last-guidance", 2, "--top-p", 0.9]
    assert generate("a boat", "a snail", *options, "--negative-prompt", "a tree")[0] == 0
    report = tmp_path / "out" / "a-snail" / "results.json"
    code, shown, _ = generate("--replay", report, "--index", 3, output="again")
    assert code == 0 and f"the same as {report.parent / '03.png'}" in shown
    again = tmp_path / "again" / "a-snail"
    assert (again / "01.png").read_bytes() == (report.parent / "03.png").read_bytes()
    wanted, found = (json.loads((folder / "results.json").read_text()) for folder in (report.parent, again))
    assert found["pictures"][0]["candidate"] == wanted["pictures"][2]["candidate"]
    assert generate("--replay", again / "results.json", output="third")[0] == 0  # and so on


@pytest.mark.slow
def test_a_replay_spares_the_folder_it_is_of(generate, tmp_path):
    generate("a boat", "--candidates", 2)
    original = tmp_path / "out" / "a-boat"
    before = {path.name: path.read_bytes() for path in original.iterdir()}
    code, shown, _ = generate("--replay", original / "results.json", "--overwrite")
    assert code == 0 and str(original.with_name("a-boat-2")) in shown
    assert {path.name: path.read_bytes() for path in original.iterdir()} == before
    Image.new("RGB", (16, 16)).save(original / "01.png")
    code, shown, _ = generate("--replay", original / "results.json", "--overwrite")
    assert code == 1 and "NOT the same as" in shown
    assert sorted(os.listdir(tmp_path / "out")) == ["a-boat", "a-boat-2"]


def test_a_report_says_how_it_was_drawn_and_a_replay_follows_it(generate, pipe, tmp_path):
    """Reports of earlier versions say nothing: they were drawn token by token, with noise by rank."""

    def drawn(name, *options):
        assert generate("a boat", "--candidates", 2, "--guidance", 1, *options, output=name)[0] == 0
        folder = tmp_path / name / "a-boat"
        return folder, json.loads((folder / "results.json").read_text())

    folder, report = drawn("parallel")
    assert report["sampler"] == "id" and report["decode"] == {"mode": "parallel", "window": 16}
    assert all(1 <= picture["passes"] < 16 for picture in report["pictures"])
    assert not {"sampler", "decode", "window"} & set(report["settings"])
    same, one_by_one = drawn("sequential", "--decode", "sequential")
    assert one_by_one["decode"] == {"mode": "sequential", "window": 1}
    assert [picture["passes"] for picture in one_by_one["pictures"]] == [16, 16]
    assert (same / "01.png").read_bytes() == (folder / "01.png").read_bytes()

    candidate = report["pictures"][0]["candidate"]
    old_rule = GenerationSettings(guidance=1.0, decode="sequential", sampler="rank")
    old = pipe.redraw("a boat", candidate, old_rule).images[0]
    assert np.any(np.asarray(old) != np.asarray(Image.open(folder / "01.png")))
    old.save(folder / "01.png")
    for name in ("sampler", "decode"):
        del report[name]
    (folder / "results.json").write_text(json.dumps(report))
    code, shown, _ = generate("--replay", folder / "results.json", output="again")
    assert code == 0 and "the same as" in shown and "NOT" not in shown
    again = json.loads((tmp_path / "again" / "a-boat" / "results.json").read_text())
    assert again["sampler"] == "rank" and again["decode"]["mode"] == "sequential"


def test_a_bundle_of_the_hub_is_one_source():
    def entry(*commits):
        models = {
            part: {"repository": "o/n", "commit": commit}
            for part, commit in zip(("dalle", "vqgan", "clip"), commits, strict=True)
        }
        return Entry(Path("01.png"), "a boat", 0, GenerationSettings(), None, "float32", models)

    assert entry("1", "1", "1").sources == {"model": "o/n@1"}
    assert entry("1", "2", "1").sources == {"model": "o/n@1", "vqgan": "o/n@2"}


def test_a_replay_without_a_model_takes_the_reports(generate, tmp_path, monkeypatch, capsys):
    generate("a boat", "--candidates", 1)
    path = tmp_path / "out" / "a-boat" / "results.json"
    report = json.loads(path.read_text())
    for part, name in (("dalle", "o/n"), ("vqgan", "o/v"), ("clip", "o/n")):
        report["models"][part] |= {"repository": name, "commit": "1"}
    path.write_text(json.dumps(report))
    asked = []

    def find_parts(*sources, **_):
        asked.extend(sources)
        raise UserError("enough")

    monkeypatch.setattr("dalle_mini.weights.bundle.find_parts", find_parts)
    assert main(["generate", "--replay", str(path), "--output", str(tmp_path / "again")]) == 2
    assert asked == ["o/n@1", "o/v@1", None]


@pytest.mark.slow
def test_a_picture_that_started_from_one_is_drawn_again_too(generate, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), np.uint8)).save(tmp_path / "p.png")
    mask = np.zeros((20, 16, 3), np.uint8)
    mask[10:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number, option in enumerate((("--keep-top", 0.5), ("--mask", tmp_path / "mask.png"), ("--vary", 0.5))):
        assert (
            generate("a boat", "--picture", tmp_path / "p.png", *option, "--candidates", 3, output=str(number))[0] == 0
        )
        report = tmp_path / str(number) / "a-boat" / "results.json"
        (tmp_path / "p.png").rename(tmp_path / "moved.png")  # the report alone is enough
        code, shown, _ = generate("--replay", report, "--index", 2, output=f"again{number}")
        assert code == 0 and "the same as" in shown and "NOT" not in shown
        (tmp_path / "moved.png").rename(tmp_path / "p.png")


@pytest.mark.slow
def test_progress_images(generate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.png").write_text("mine")
    assert generate("a boat", "a snail", "--candidates", 2, "--progress-images")[0] == 0
    for name in ("a-boat", "a-snail"):
        folder = tmp_path / "out" / name
        with Image.open(folder / "progress.gif") as animation:
            assert animation.format == "GIF"
    assert sorted(os.listdir(tmp_path / "out")) == ["a-boat", "a-snail", "progress.png"]
    assert (tmp_path / "out" / "progress.png").read_text() == "mine"


def test_an_interruption_leaves_no_look(tmp_path):
    preview = Preview("a boat", 0, 8, 16, [Image.new("RGB", (16, 16))], np.zeros((1, 16), np.int32))
    with pytest.raises(KeyboardInterrupt), Previews(tmp_path) as previews:
        previews.add(preview)
        assert len(os.listdir(tmp_path)) == 1
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_int8_and_a_small_batch(generate, tmp_path):
    assert generate("a boat", "--dtype", "int8", "--batch-size", 2, "--candidates", 5)[0] == 0
    assert json.loads((tmp_path / "out" / "a-boat" / "results.json").read_text())["dtype"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to draw: dalle-mini generate "),
        (["a boat", "--prompts", "p.txt"], "give either captions, or --prompts"),
        (["a boat", "--batch-size", "0"], "--batch-size is 0"),
        (["a boat", "--keep-top", "0.5"], "need a --picture"),
        (["a boat", "--index", "1"], "--index would do nothing with captions"),
        (["--prompts", "p.txt", "--overwrite", "--progress-images"], "--progress-images would do noth"),
        (["--replay", "r.json", "--seed", "0", "--negative-prompt", "x"], "--seed and --negative-prompt would do noth"),
        (["--replay", "r.json", "--vary", "0", "--dtype", "float32"], "--vary and --dtype would do nothing"),
        (["a boat", "--picture", "nothing.png", "--vary", "0.5"], "nothing.png"),
        (["a boat", "--picture", "nothing.png", "--keep-top", "1"], "--keep-top is 1.0"),
        (
            ["a boat", "--picture", "nothing.png"],
            r"nothing would be .*\(--keep-top, --mask\), or .* \(--vary\)",
        ),
        (["--prompts", "nothing.csv"], "nothing.csv: cannot be read"),
        (["--replay", "nothing.json"], "nothing.json cannot be read"),
        (["a boat", "--guidance", "1e39"], "guidance is 1e[+]39"),
        (["a boat", "--temperature", "1e-46"], "temperature is 1e-46"),
    ],
)
def test_mistakes_are_one_line(generate, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, errors = generate(*arguments)
    assert code == 2 and shown == "" and errors.startswith("error: ") and errors.count("\n") == 1
    import re

    assert re.search(message, errors)
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.pop("pictures"), "no results.json of a drawn prompt"),
        (lambda report: report["pictures"].clear(), "json: --index is 1, but it has no image"),
        (lambda report: report["pictures"][0].update(candidate=-3), "candidate's number is -3"),
        (lambda report: report["pictures"][0].update(candidate=2**40), "candidate's number is 1099511627776"),
        (
            lambda report: report["pictures"][0].update(candidate=float("inf")),
            "candidate is missing, or no whole number",
        ),
        (lambda report: report["pictures"][0].update(file="/etc/passwd"), "file is '/etc/passwd'"),
        (lambda report: report.update(models={}), "dalle is missing, or no object"),
        (lambda report: report.update(models={"dalle": "x"}), "dalle is missing, or no object"),
        (lambda report: report["models"]["dalle"].update(repository="a/b"), "commit is missing"),
        (lambda report: report.update(dtype=None), "dtype is missing, or no text"),
        (lambda report: report.update(dtype="foo"), "dtype is 'foo'"),
        (lambda report: report.update(prompt=" "), "prompt 1 is blank"),
        (lambda report: report.update(prompt=5), "prompt is missing, or no text"),
        (lambda report: report.update(seed="5"), "seed is missing, or no whole number"),
        (lambda report: report["settings"].update(guidance=None), "guidance is missing"),
        (lambda report: report.update(canvas=[1]), "canvas is missing, or no object"),
        (lambda report: report.update(canvas={"tokens": "a b", "vary": 0}), "tokens are no numbers"),
        (lambda report: report.update(canvas={"tokens": "", "vary": 0.5}), "the canvas has no tokens"),
        (lambda report: report.update(canvas={"tokens": "-1 " + "9" * 5000, "vary": 0}), "tokens are no numbers"),
        (lambda report: report.update(canvas={"tokens": f"-1 {2**31}", "vary": 0}), "or one above"),
        (lambda report: report.update(canvas={"tokens": "-1", "vary": "x"}), "vary is missing, or no number"),
        (lambda report: report["models"]["clip"].update(sha256="0"), "drawn by other weights"),
        (lambda report: report["settings"].update(temperature="hot"), "temperature is missing, or no number"),
        (lambda report: report.update(sampler="best"), "sampler is 'best': it is one of id, rank"),
        (lambda report: report.update(sampler=None), "sampler is missing, or no text"),
        (lambda report: report.update(decode="parallel"), "decode is missing, or no object"),
        (lambda report: report.update(decode={"mode": "quick"}), "decode is 'quick': it is one of"),
        (lambda report: report.update(decode={"mode": "parallel"}), "window is missing, or no whole number"),
        (lambda report: report.update(decode={"mode": "parallel", "window": 1}), "window is 1"),
        (lambda report: report.update(decode={"mode": "parallel", "window": 2**40}), "window is 1099511627776"),
    ],
)
def test_reports_that_make_no_sense_are_refused(generate, report, tmp_path, change, message):
    changed = json.loads(report)
    change(changed)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed))
    code, _, errors = generate("--replay", path, output="again")
    assert code == 2 and message in errors and errors.count("\n") == 1 and errors.count(str(tmp_path)) == 1


@pytest.mark.parametrize("edition", EDITIONS, ids=[edition.name for edition in EDITIONS])
def test_a_replay_tells_where_an_earlier_edition_of_the_shipped_model_is(generate, report, tmp_path, edition):
    changed = json.loads(report)
    for part, digest in edition.sha256.items():
        changed["models"][part]["sha256"] = digest
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed))
    code, _, errors = generate("--replay", path, output="again")
    assert code == 2 and errors.count("\n") == 1
    assert f"drawn by the {edition.name} edition of the shipped model: name its folder with --model" in errors
    assert (
        f"git archive --prefix={edition.name}/ {edition.commit}:src/" in errors and f"{edition.megabytes} MB" in errors
    )


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"prompt": "a', b"\xff\xfe"])
def test_what_is_no_report_is_refused(generate, tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, errors = generate("--replay", path)
    assert code == 2 and errors.startswith(f"error: {path}: ") and errors.count("\n") == 1


@pytest.mark.slow
def test_two_processes_draw_what_one_does(golden_bundle, tmp_path):
    """On two devices each, prompts on the command line (whose candidates are shared) and of a file (which are)."""
    (tmp_path / "p.txt").write_text("a boat\na snail\n\na red apple\n<b></b>\n")
    options = ["--model", str(golden_bundle), "--candidates", "5", "--keep", "3"]
    command = [sys.executable, "-m", "dalle_mini.cli", "generate", *options]
    prompts, file = ["a boat", "a snail"], ["--prompts", str(tmp_path / "p.txt")]
    subprocess.run([*command, *prompts, "--output", str(tmp_path / "one")], check=True)
    assert subprocess.run([*command, *file, "--output", str(tmp_path / "one-file")]).returncode == 1
    for arguments, output, wanted in ((prompts, "two", 0), (file, "two-file", 1)):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        two = [
            subprocess.Popen(
                [*command, *arguments, "--output", str(tmp_path / output), "--distributed"],
                env=os.environ
                | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
                | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
            )
            for number in range(2)
        ]
        codes = [process.wait(timeout=300) for process in two]
        assert codes[0] == wanted
    for one, two in (("one", "two"), ("one-file", "two-file")):
        found, expected = (
            {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("0*.png")}
            for name in (two, one)
        )
        assert len(expected) == (6 if one == "one" else 9)
        assert found == expected
