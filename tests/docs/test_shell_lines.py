"""Every shell line of README, CONTRIBUTING, SECURITY and docs/: it runs, or it is listed here with the reason.

The quick tests parse each line with its program's own parser. The slow one runs each block in a folder of its own,
as it is printed, but for the two tables below: `INPUTS` makes what a line reads, `SHORTER` ends a run early.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bad_dataset
from script_arguments import script_problems
from shell_lines import PAGES, ROOT, Line, in_blocks, in_sentences

SHIPPED = ROOT / "src" / "dalle_mini" / "assets" / "emoji"
LINES = [line for page in PAGES for line in in_blocks(page)]
SPANS = [span for page in PAGES for span in in_sentences(page)]

# Lines that are not run, and why. A pattern is searched for in the line.
NOT_RUN = {
    r"^(pip install|git clone|sudo apt-get|img2dataset) ": "fetches from a network",
    r"\b(dalle-mini/(dalle|vqgan)|openai/clip|nlphuji/|owner/)": "fetches from the Hub",
    r"\b(gs|s3)://": "needs a bucket",
    r"^sky |tpu_vm\.sh ": "needs a cloud",
    r"^docker ": "needs a Docker engine",
    r"^cog ": "needs Cog and a Docker engine",
    r"^dalle-mini serve": "runs until it is stopped",
    r"^curl ": "needs a server; tests/serving/test_docs.py has one",
    r"^srun | --distributed\b": "needs several machines",
    r"^dalle-mini plan ": "takes minutes of the TPU's compiler, or of this machine's",
    r"^dalle-mini train .*\bruns/(mini|vqgan|clip)\b": "takes hours of a GPU or TPU",
    r"^python tools/train/sweep\.py ": "takes an hour: one run for each combination",
    r"^tools/train/emoji\.sh ": "takes hours",
    r"^python tools/train/show_run\.py runs/emoji": "needs a run of hours",
    r"^python tools/train/finetune_demo\.py ": "needs Debian's package of the font, or a run with what it drew",
    r"^python tests/fuzz/run\.py ": "takes hours",
    r"^(git archive|python benchmarks/emoji_quality\.py) .*\bfirst\b": "needs the repository's history, and an hour",
    r"^(make |cd |\.venv/bin/)": "is what runs these tests, or leads there",
    r"^dalle-mini \S+ .*\b(OUT|SOURCE|TARGET|RUN)\b": "is a pattern: capital letters stand for the reader's names",
}
TO_DO = (
    "mend the line; or make what it reads (INPUTS) or end it earlier (SHORTER); or, if it needs a network, a cloud or "
    "hours, list it with the reason (NOT_RUN)"
)


def reason_not_to_run(line: Line) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line.text)), None)


def test_there_are_lines():
    assert len(LINES) > 40 and len(SPANS) > 20


def test_each_line_runs_or_is_listed():
    programs = {line: line.commands[0][0] for line in LINES if reason_not_to_run(line) is None}
    other = [
        f"{line.place}: {line.text}" for line, name in programs.items() if name not in ("dalle-mini", "python", "mkdir")
    ]
    assert not other, f"not a program that is run here: {TO_DO}"


def test_nothing_is_listed_in_vain():
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, line.text) for line in LINES)]
    assert not unused, "no line is like this any more: take it off the list"


def test_each_verb_and_flag_is_there():
    problems, scripts, targets = {}, {}, set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in [*LINES, *SPANS]:
        for number, words in enumerate(line.commands):
            words = words[1:] if words[0] in ("srun", "sudo") else words
            place, problem = f"{line.place} ({number}): {' '.join(words)}", None
            if words[:3] == ["python", "-m", "dalle_mini"]:
                words = ["dalle-mini", *words[3:]]
            if words[0] == "dalle-mini":
                problem = verb_problem(words[1:])
            elif words[0] == "make":
                names = [word for word in words[1:] if "=" not in word]
                problem = None if {*names} <= targets else "no such target of the Makefile"
            elif words[0] == "python" and words[1] != "-m":
                if (ROOT / words[1]).is_file():
                    scripts[place] = words[1:]
                else:
                    problem = "no such script"
            elif words[0].endswith(".sh"):
                problem = shell_problem(words)
            if problem is not None:
                problems[place] = problem
    assert not problems | script_problems(scripts)


def verb_problem(words: list[str]) -> str | None:
    """The command's answer to these words, without running the verb; for a verb alone, whether it is there."""
    from dalle_mini.cli import build_parser
    from dalle_mini.errors import UserError

    if all(re.fullmatch(r"[a-z]+", word) for word in words) and len(words) <= 2:
        words = [*words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            args = build_parser().parse_args(words)
            if words[0] in ("train", "plan"):
                check_settings(args)
        except UserError as error:
            return str(error)
        except SystemExit as stop:
            return None if not stop.code else f"exit code {stop.code}"
    return None


def check_settings(args) -> None:
    """Raises UserError where the recipe, or one of the settings, is not there."""
    from dalle_mini.training.config import config_file, recipes
    from dalle_mini.training.tasks import DEFAULT, TASKS

    recipe = args.config or ""
    if recipe.isupper() or "=" in recipe or recipe.endswith("config.yaml"):  # the reader's own
        return
    values = config_file.read(recipes.find(recipe)) if recipe else {}
    config = TASKS[values.pop("network", DEFAULT)].config
    config_file.build(config, values, args.overrides if "overrides" in args else args.settings)


def shell_problem(words: list[str]) -> str | None:
    script = ROOT / words[0]
    if not os.access(script, os.X_OK):
        return "no such script that can be run"
    ours = words[: words.index("--")] if "--" in words else words
    missing = [word for word in ours if word.startswith("--") and word not in script.read_text("utf-8")]
    return f"the script has no {', '.join(missing)}" if missing else None


def photo(path: Path) -> None:
    Image.effect_noise((160, 120), 60).convert("RGB").save(path)


def mask(path: Path) -> None:
    white = np.zeros((120, 160), np.uint8)
    white[40:80, 40:80] = 255
    Image.fromarray(white).save(path)


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(24):
        (folder / f"{number}.jpg").write_bytes(bad_dataset.packed(bad_dataset.photo(number)))
        (folder / f"{number}.txt").write_text(f"a red apple number {number}\n")


def tars(folder: Path) -> None:
    folder.mkdir()
    columns = {"similarity": 0.3, "pwatermark": 0.1, "clip_score": 0.3, "width": 300, "height": 300}
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(8):
            bad_dataset.put(tar, f"{number}.jpg", bad_dataset.packed(bad_dataset.photo(number)))
            bad_dataset.put(tar, f"{number}.txt", f"a red apple number {number}".encode())
            bad_dataset.put(tar, f"{number}.json", json.dumps(columns).encode())


def part(name: str):
    return lambda folder: shutil.copytree(SHIPPED / name, folder)


def prompts(path: Path) -> None:
    rows = ["a red apple", "a small snail"]
    text = (
        "prompt\n" + "\n".join(rows) if path.suffix == ".csv" else "\n".join(f'{{"prompt": "{row}"}}' for row in rows)
    )
    path.write_text(text + "\n")


def program(path: Path, arguments: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
    path.chmod(0o755)


# (a pattern of lines, what they read, what makes it); a file or folder that an earlier line has made is left alone.
INPUTS = [
    (r"\bphoto\.jpg\b", "photo.jpg", photo),
    (r"\bmask\.png\b", "mask.png", mask),
    (r"\bcaptions\.csv\b", "captions.csv", prompts),
    (r"\bcaptions\.jsonl\b", "captions.jsonl", prompts),
    (r"\bmy-pictures\b", "my-pictures", pictures),
    (r"\bencode pictures\b", "pictures", pictures),
    (r"\blaion-tars\b", "laion-tars", tars),
    (r"\bruns/vqgan/final\b", "runs/vqgan/final", part("vqgan")),
    (r"\bruns/clip/final\b", "runs/clip/final", part("clip")),
    (r"(--model|info) mini\b", "mini", part("")),
    (r"--peer \.peer/bin/python\b", ".peer/bin/python", program),
]
# (a pattern of lines, a line that makes what they read, the file by which it is known)
EARLIER = [
    (r"\ba-red-apple/results\.json", 'dalle-mini generate "a red apple"', "pictures/a-red-apple/results.json"),
    (r"\bdata report (encoded|tokens)\b", r"dalle-mini encode my-pictures \1", r"\1/manifest.json"),
]
SHORTER = [
    (r"\btrain finetune-emoji\b", "loop.steps=2 loop.batch_size=2 loop.eval_every=2 training.optimizer.warmup_steps=1"),
    (r"\bgenerate (?!.*(--candidates|--replay))", "--candidates 4"),
    (r"^python benchmarks/gpu\.py ", "--size tiny"),
    (r"^python benchmarks/training\.py .*--peer ", "--size micro --layers 1 --dtype bfloat16 --steps 1"),
]
BLOCKS = {
    f"{page}:{block}": list(lines) for (page, block), lines in groupby(LINES, key=lambda line: (line.page, line.block))
}
RUN = {name: lines for name, lines in BLOCKS.items() if any(reason_not_to_run(line) is None for line in lines)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_lines_of_a_block_run(name, tmp_path):
    programs = tmp_path / "programs"
    program(programs / "dalle-mini", "-m dalle_mini.cli")
    program(programs / "python")
    clone = tmp_path / "clone"
    clone.mkdir()
    for folder in ("tools", "benchmarks", "tests", "src"):
        (clone / folder).symlink_to(ROOT / folder)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_PLATFORMS": "cpu",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(text: str, line: Line) -> None:
        for pattern, path, make in INPUTS:
            if re.search(pattern, text) and not (clone / path).exists():
                make(clone / path)
        done = subprocess.run(
            ["bash", "-c", text], env=environment, cwd=clone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line.place}: {text}\n{done.stdout}{done.stderr}\n{TO_DO}"

    for line in RUN[name]:
        if reason_not_to_run(line) is not None:
            continue
        for pattern, earlier, file in EARLIER:
            if (found := re.search(pattern, line.text)) and not (clone / found.expand(file)).exists():
                run(found.expand(earlier), line)
        more = [words for pattern, words in SHORTER if re.search(pattern, line.text)]
        run(" ".join([line.text.partition("  #")[0], *more]), line)
