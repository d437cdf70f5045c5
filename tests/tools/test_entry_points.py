"""tools/train: every script answers --help, mistakes are one line, and the recipe is sound bash."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path

import pytest
from flax import nnx

import children
import tiny_runs
from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.text import CaptionTokenizer
from dalle_mini.text.known_words import KnownWords
from dalle_mini.weights.bundle import SHIPPED

TOOLS = Path(__file__).parents[2] / "tools" / "train"
RECIPE = TOOLS / "emoji.sh"
ART = TOOLS.parents[1] / "tests" / "golden" / "art"
CLDR = ART.parent / "cldr"  # the words of all things
SCRIPTS = sorted(path.name for path in TOOLS.glob("*.py") if path.name != "entry.py")

# One process for all of them: they share seconds of imports.
ASK = """
import contextlib, io, json, runpy, sys
folder, questions = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
answers = {}
for name, *arguments in questions:
    sys.argv = [name, *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{folder}/{name}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    answers[" ".join([name, *arguments])] = [code or 0, out.getvalue(), err.getvalue()]
print(json.dumps(answers))
"""

MISTAKES = {
    "train_vqgan.py OUT loop.stepz=3": "error: loop.stepz: no such setting; did you mean steps?",
    "train_vqgan.py OUT training.perceptual.kind=clip": "error: training.perceptual: no such setting",
    "train_vqgan.py OUT loop.steps=0": "error: loop.steps: 0 is too small; it must be at least 1",
    "train_clip.py OUT training.noise=loud": "error: training.noise: 'loud' is not of type float",
    "make_codebook.py OUT --rounds 0": "error: --rounds 0: at least 1",
    "train_clip.py": "error: missing: out",
    "make_codebook.py": "error: missing: out",
    "make_start.py CODEBOOK": "error: missing: out",
    "encode_emoji.py": "error: missing: vqgan, out",
    "encode_emoji.py VQGAN OUT --rows many": "error: argument --rows: 'many' is not a whole number",
    "make_tokenizers.py": "error: missing: out",
    "make_bundle.py RUNS": "error: missing: out",
    "make_card.py BUNDLE": "error: missing: quality",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entry")
    questions = [*([name, "--help"] for name in SCRIPTS), *(line.split() for line in MISTAKES)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(TOOLS), json.dumps(questions)],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "OUT").exists()  # a mistake leaves nothing behind
    return json.loads(done.stdout)


def test_there_are_scripts():
    assert {"train_vqgan.py", "train_clip.py", "encode_emoji.py", "make_bundle.py"} <= {*SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(answers, name):
    code, out, err = answers[f"{name} --help"]
    assert (code, err) == (0, "")
    assert f"usage: {name}" in out
    assert f"python tools/train/{name} " in out  # an example


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(answers, line):
    code, _, err = answers[line]
    assert code == 2
    assert err.strip().startswith(MISTAKES[line])
    assert len(err.strip().splitlines()) == 1


@pytest.fixture
def tool(monkeypatch):
    """A script of tools/train as a module."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


def test_pictures_are_known_by_what_decides_them(tool):
    entry = tool("entry")
    world = entry.World(art=str(ART))
    train = entry.Pictures("train", 0, world)
    assert train.origin() == entry.Pictures("train", 0, world).origin()
    for name, other in {
        "split": entry.Pictures("heldout", 0, world),
        "seed": entry.Pictures("train", 9, world),
        "emoji": entry.Pictures("train", 0, entry.World(100, art=str(ART))),
        "art": entry.Pictures("train", 0, entry.World(styles=("noto", "3d"), art=str(ART))),
    }.items():
        assert {field for field, value in other.origin().items() if value != train.origin()[field]} == {name}


def test_a_world_is_written_once(tool, tmp_path):
    world, path = tool("entry").World, tmp_path / "runs" / "world.json"
    pilot = world(100, ("noto", "3d"), str(ART))
    assert len({one.name for one in pilot.emoji()}) == 100 and len(world().emoji()) > 700
    pilot.save(path)
    pilot.save(path)
    assert world.load(path) == pilot and world.load("") == world()
    with pytest.raises(UserError, match="another world"):
        world(99).save(path)
    for wrong in ("[]", '{"things": 3}', '{"things": 3, "styles": ["crayon"], "art": ""}'):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"world.json|crayon"):
            world.load(path)


def test_words_that_were_never_seen_are_told_by_the_bundle(tool, tmp_path):
    make_tokenizers, world = tool("make_tokenizers"), tool("entry").World(art=str(ART))
    make_tokenizers.make(tmp_path, world, captions=1500)
    known = KnownWords.load(tmp_path / "dalle")
    assert not known.unknown("Please draw a small 3d fox, kittens and a unicorn on a blue background")
    assert [one.word for one in known.unknown("a blorfing fox asdfgh")] == ["blorfing", "asdfgh"]
    words = {line.split()[0] for line in (tmp_path / "dalle" / "words.txt").read_text().splitlines()}
    assert {"fox", "background"} <= words <= {*known.words} | {one + "s" for one in known.words} | words
    assert CaptionTokenizer.from_pretrained(tmp_path / "clip")(["a fox"], 16)[1].sum() > 2


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("armchair", ["chair", "couch", "bed"]),
        ("warship", ["ship"]),
        ("motorboat", ["boat"]),
        ("houseboats", ["boat"]),
        ("doghouse", ["house", "church", "classical building"]),
        ("raincoat", ["coat", "necktie", "t-shirt"]),
        ("rainstorm", ["rain", "umbrella", "rainbow"]),
        ("catfish", ["fish", "octopus", "whale"]),
        ("seahorse", ["horse"]),
        ("bookcase", ["book"]),
        ("raindrop", ["drop", "droplet"]),
        ("goose", ["duck", "bird", "animal"]),
        ("toothbrush", ["bathroom", "clean", "teeth"]),
        ("elephnat", ["elephant"]),
        ("avocato", ["avocado"]),
        ("dinasour", ["dinosaur"]),
        ("giraf", ["giraffe"]),
        ("pinguin", ["penguin"]),
        ("strawbery", ["strawberry"]),
        ("watermellon", ["watermelon"]),
        ("wizzard", ["wizard"]),
        ("kitttens", ["kitten"]),
        ("skyscraper", []),
        ("asdfghjkl", []),
    ],
)
def test_the_nearest_words_in_the_vocabulary_of_the_whole_world(whole_vocabulary, word, near):
    assert [(one.word, [*one.near]) for one in whole_vocabulary.unknown(f"a {word}")] == [(word, near)]


def test_plurals_of_things_are_known(whole_vocabulary):
    assert not whole_vocabulary.unknown("a mice, wolves, cherries, loaves, buses, firefighters and a sofa")


@pytest.fixture
def whole_vocabulary(tool):
    return make_whole_vocabulary(tool("make_tokenizers"), tool("entry").World(art=str(CLDR)))


@lru_cache(maxsize=1)
def make_whole_vocabulary(make_tokenizers, world):
    return make_tokenizers.known_words(world, {"a", "and"})


def test_a_bundle_is_not_made_of_networks_that_never_met(tool, tmp_path):
    make_bundle = tool("make_bundle")
    vqgan = VQGAN(tiny_runs.VQGAN.model, rngs=nnx.Rngs(0))
    check = partial(make_bundle.check_same_vqgan, tmp_path, vqgan, "runs/vqgan/final")
    check()  # an older run does not say
    record = tmp_path / "tokens.json"
    record.write_text(json.dumps({"vqgan": fingerprint(vqgan)}))
    check()
    record.write_text(json.dumps({"vqgan": "another"}))
    with pytest.raises(UserError, match=r"tokens.json: .* of VQGAN another, but runs/vqgan/final is"):
        check()
    record.write_text("[]")
    with pytest.raises(UserError, match=r"tokens.json: Expected object, got array"):
        check()


def test_the_card_of_ones_own_run(tool, tmp_path):
    make_card = tool("make_card")
    clip = tmp_path / "clip"
    clip.mkdir()
    config = {"loop": {"steps": 1200, "batch_size": 32}, "training": {"optimizer": {"learning_rate": 5e-4}}}
    (clip / "config.json").write_text(json.dumps(config))
    speeds = [{"step": 600, "pictures_per_second": 8.0}, {"step": 1200, "pictures_per_second": 16.0}]
    log = [*speeds, {"step": 1200, "eval_recall": 0.625}]
    (clip / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    told = make_card.history(tmp_path)
    assert "| CLIP, with damaged copies | 1,200 | 32 | 0.0005 | 1 h 0 min |" in told["RUNS"]
    assert "VQGAN" not in told["RUNS"]  # no such run
    assert "62 %" in told["RECALL"]
    assert make_card.history(None) == {"RUNS": "", "RECALL": ""}
    (clip / "log.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"clip: config\.json or log\.jsonl is damaged"):
        make_card.history(tmp_path)


def test_the_card_tells_what_was_measured(tool, tmp_path):
    make_card = tool("make_card")
    gains = {"gain": 0.06, "gain_error": 0.01, "gain_interval": [0.0404, 0.0796]}
    share = {"prompts": 40, "pick": 0.96, "random": 0.9, "any": 1.0, **gains}
    copied = {"things": 0.99, "style": 1.0, "ground": 1.0, "clean": 1.0}
    kind = {"prompts": 40, "things": share, "style": share | {"pick": 0.75}, "clean": share, "copied": copied}
    kind |= {"median_psnr": 24.24, "median_ssim": 0.9125, "things_and_style": 0.73}
    copies = {"noto": {"psnr": 25.44, "ssim": 0.9, "codes": 9}, "3d": {"psnr": 26.0, "ssim": 0.95, "codes": 9}}
    everyday = {"prompts": 200, "things": share, "copied": {"prompts": 150, "things": 0.98}}
    wide = {"styles": 3.25, "places": 4.0, "sizes": 2.0, "grounds": 5.5, "right": 0.955, "captions": 50}
    printed = {"prompts": 12, "failed": [{"prompt": "a fox", "seen": "", "in": ["README.md:1"]}]}
    printed["copied"] = {"prompts": 11, "things": 1.0, "clean": 1.0}
    alone = {"prompts": 190, "pick": 0.42}
    figures = {"copies": copies, "style": kind, "everyday": everyday, "printed": printed, "open": wide}
    other = {"name": "the second edition", "copies": {"noto": copies["noto"] | {"psnr": 24.0}}, "open": wide}
    figures |= {"ranking": {"prompts": 240, "things": share | {"prompts": 240}}, "candidates": 16}
    figures["baseline"] = other | {"everyday": {"prompts": 190, "things": alone}}
    (tmp_path / "quality.json").write_text(json.dumps(figures))
    values = make_card.scores(tmp_path / "quality.json")
    seen = "| a thing in a style never seen with it | 40 | {} |"
    assert seen.format("CLIP's pick | 96 % | 75 % |  |  | 96 % | 73 %") in values["SCORES"]
    assert seen.format("a random candidate | 90 % | 90 % |  |  | 90 %") in values["SCORES"]
    assert seen.format("the VQGAN's copy of a right scene | 99 % | 100 % |  |  | 100 %") in values["SCORES"]
    assert "| everyday words | 190 | the second edition: CLIP's pick | 42 % |" in values["SCORES"]
    assert "| everyday words | 150 | the VQGAN's copy of a right scene | 98 % |" in values["SCORES"]
    assert "| a thing in a style never seen with it | 24.2 dB, 0.912 |  |" in values["SINGLES"]
    assert values["PRINTED"].startswith('11 of 12 show the right things. Not right: "a fox". In the')
    assert values["PRINTED"].endswith("copies of 11 right scenes, 100 % do.")
    assert "| right things | 240 | 96 % | 90 % | 100 % | +6.0 (+4.0 to +8.0) |" in values["RANKING"]
    assert "| mean of 50 captions | this model | the second edition |" in values["VARIETY"]
    assert "| styles | 3.2 | 3.2 |" in values["VARIETY"]
    assert "| noto | 25.4 dB, 0.900 | 24.0 dB, 0.900 |\n| 3d | 26.0 dB, 0.950 |  |" in values["COPIES"]
    few = {"copies": copies, "candidates": 4}  # nothing but these was measured
    (tmp_path / "quality.json").write_text(json.dumps(few))
    values = make_card.scores(tmp_path / "quality.json")
    assert values["VARIETY"] == "Not measured." and "| noto | 25.4 dB, 0.900 |" in values["COPIES"]
    names = ("EMOJI", "STYLES", "STYLE_NAMES", "DALLE", "VQGAN", "CLIP", "SIZE")  # facts of the bundle
    filled = make_card.fill(
        make_card.TEMPLATE.read_text(), values | make_card.history(None) | dict.fromkeys(names, "7")
    )
    assert "@" not in filled
    with pytest.raises(UserError, match=r"run benchmarks/styled_quality\.py first"):
        make_card.scores(tmp_path / "nothing.json")
    (tmp_path / "quality.json").write_text("{}")
    with pytest.raises(UserError, match=r"not what benchmarks/styled_quality\.py writes"):
        make_card.scores(tmp_path / "quality.json")


def test_the_template_says_nothing_of_one_edition(tool):
    template = tool("make_card").TEMPLATE.read_text()
    for word in ("edition", "three runs", "recall", "pick of 16", "4,892"):
        assert word not in template


def test_a_recipe_that_is_done_does_nothing_again(tmp_path):
    """But encode, which looks for shards that are missing: each other stage is passed over by its output."""
    called = tmp_path / "called"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1" >> {called}\n')
    python.chmod(0o755)
    runs = tmp_path / "runs"
    finished = (f"{name}/final" for name in ("vqgan", "seq2seq-where", "seq2seq", "clip-first", "clip"))
    for folder in (*finished, "codebook", "tokenizers/dalle", "quality"):
        (runs / folder).mkdir(parents=True)
    (runs / "bundle").mkdir()
    for file in ("world.json", "tokenizers/dalle/words.txt", "quality/quality.json", "bundle/README.md"):
        (runs / file).touch()

    def scripts():
        called.write_text("")
        subprocess.run([str(RECIPE), str(runs)], env={**os.environ, "PYTHON": str(python)}, check=True)
        return [Path(line).name for line in called.read_text().splitlines()]

    encoding = ["encode_emoji.py", "encode_emoji.py"]
    assert scripts() == encoding
    (runs / "bundle" / "README.md").unlink()
    assert scripts() == [*encoding, "make_card.py"]
    (runs / "quality" / "quality.json").unlink()
    assert scripts() == [*encoding, "styled_quality.py", "make_card.py"]
    (runs / "bundle").rmdir()
    assert scripts() == [*encoding, "make_bundle.py", "styled_quality.py", "make_card.py"]
    (runs / "world.json").unlink()
    assert scripts() == ["fetch_art.py", *encoding, "make_bundle.py", "styled_quality.py", "make_card.py"]


def test_the_recipe_goes_on_from_a_bundle_wherever_it_is_killed(tmp_path):
    python, bundle, runs = tmp_path / "python", tmp_path / "bundle", tmp_path / "runs"
    called = tmp_path / "called"
    python.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    python.chmod(0o755)
    for part in ("dalle", "vqgan", "clip"):
        (bundle / part).mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "words.txt"):
            (bundle / part / name).write_text(f"{part} {name}")
    (bundle / "scenes.json").write_text('{"styles": ["noto"]}')

    def recipe(*arguments, code=0):
        called.write_text("")
        environment = {**os.environ, "PYTHON": str(python)}
        done = subprocess.run([RECIPE, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stderr

    def tree():
        kept = sorted(path for path in runs.rglob("*") if path.is_file() and path.name != "bundle.txt")
        return {str(path.relative_to(runs)): path.read_text() for path in kept}

    recipe("runs", "bundle")  # as the caller sees them
    whole = tree()
    assert whole["codebook/model.safetensors"] == "vqgan model.safetensors"
    assert whole["clip/final/config.json"] == "clip config.json"
    assert whole["seq2seq-where/final/model.safetensors"] == "dalle model.safetensors"
    assert sorted(name for name in whole if name.startswith("tokenizers")) == [
        f"tokenizers/{part}/{name}" for part in ("clip", "dalle") for name in ("tokenizer.json", "words.txt")
    ]
    assert "make_start.py" not in called.read_text() and "make_codebook.py" not in called.read_text()
    for missing in ("codebook", "clip/final", "seq2seq-where/final", "tokenizers/dalle"):
        shutil.rmtree(runs / missing)
        (runs / f"{missing}.tmp").mkdir(parents=True)
        (runs / f"{missing}.tmp" / "half").write_text("")
        recipe("runs")  # which remembers the bundle
        assert tree() == whole

    (runs / "bundle.txt").unlink()
    assert "began from nothing" in recipe("runs", "bundle", code=2)
    assert "nowhere: no bundle" in recipe("others", "nowhere", code=2)
    (runs / "bundle.txt").write_text(f"{tmp_path / 'another'}\n")
    assert "began from another bundle" in recipe("runs", "bundle", code=2)
    (bundle / "scenes.json").write_text('{"tidy": true}')
    assert "an earlier edition" in recipe("others", "bundle", code=2)


def test_the_recipe_stops_in_time_and_does_as_much_as_it_is_told(tmp_path):
    python, called, runs = tmp_path / "python", tmp_path / "called", tmp_path / "runs"
    python.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    python.chmod(0o755)

    def recipe(*options):
        environment = {**os.environ, "PYTHON": str(python)}
        return subprocess.run([RECIPE, *options, str(runs)], env=environment, capture_output=True, text=True)

    assert recipe("--things", "100", "--percent", "1", "--minutes", "5", "--art", str(ART)).returncode == 0
    lines = called.read_text()
    assert f"fetch_art.py --folder {ART} --world {runs}/world.json --things 100" in lines
    assert "--split train --rows 1200" in lines and "loop.steps=40\n" in lines
    earlier = "styles" not in (SHIPPED / "scenes.json").read_text()
    assert (
        f"styled_quality.py --model {runs}/bundle --baseline {SHIPPED.relative_to(SHIPPED.parents[3])} " in lines
    ) == earlier
    (runs).mkdir()
    (runs / "world.json").write_text('{"things": 100, "styles": []}')
    assert "another number of things" in recipe("--things", "99").stderr
    assert "--things: a whole number" in recipe("--things", "all").stderr
    assert "--thing: no such option" in recipe("--thing", "9").stderr
    python.write_text("#!/bin/sh\nexec sleep 100\n")
    script = RECIPE.read_text().replace("minutes * 60 - SECONDS", "minutes - SECONDS")  # a second
    short = tmp_path / "tools" / "train" / "emoji.sh"
    short.parent.mkdir(parents=True)
    short.write_text(script)
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(["bash", short, "--minutes", "1", str(runs)], env=environment, capture_output=True)
    assert done.returncode == 128 + 15  # a script of ours ends with 75 when it is asked to stop


def test_the_recipe_is_bash():
    subprocess.run(["bash", "-n", str(RECIPE)], check=True)
    assert os.access(RECIPE, os.X_OK)


def test_the_recipe_calls_scripts_that_there_are():
    called = re.findall(r"\brun (\w+\.py)", RECIPE.read_text())
    assert len(called) >= 5
    assert {*called} <= {*SCRIPTS}


ASKED = """if True:
    import os, signal, sys, time
    sys.path.insert(0, sys.argv.pop(1))
    import entry

    def build(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except BaseException:
            print("swallowed")  # as imports do

    entry.main(entry.World(), build, "a script")
"""


def test_asked_to_stop_before_its_first_step_a_script_ends_in_one_line():
    done = subprocess.run(
        [sys.executable, "-c", ASKED, TOOLS, "out"],
        env=children.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "stopped by SIGTERM before its first step: nothing is lost, run the same command again\n"
