import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dalle_mini
from dalle_mini.cli import main

COMMAND = [sys.executable, "-m", "dalle_mini"]


def mistake(capsys, *arguments) -> str:
    """The one line that a mistaken command prints; it must end with exit code 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_help_is_instant_and_imports_nothing_heavy():
    before = os.times()
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    after = os.times()
    assert "generate" in shown and "example" in shown
    # Processor seconds: other processes' load is not the command's.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.7
    code = "import sys, dalle_mini.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "numpy", "PIL", "rich", "tokenizers"} & set(modules)
    if os.path.isdir("/proc/self/task"):  # a library's thread would take the signals that `main` holds back
        code = "import os, dalle_mini.cli; print(*os.listdir('/proc/self/task'))"
        threads = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert len(threads.split()) == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["convert", "--help"], ["info", "--help"], ["--version"]]
)
def test_help_of_every_verb(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert arguments == ["--version"] or "example:" in shown
    if arguments[0] == "generate":
        assert all(
            flag in shown for flag in ("--candidates", "--keep", "--seed", "--top-p", "--output", "(default: 16)")
        )


def test_generate_writes_a_folder_for_each_prompt(tmp_path, capsys, golden_bundle):
    output = tmp_path / "out"
    settings = ["--candidates", "3", "--keep", "2", "--seed", "7", "--guidance", "3", "--temperature", "0.9"]
    model = ["--model", str(golden_bundle), "--output", str(output)]
    assert main(["generate", "a boat", "a snail", *settings, "--top-k", "8", "--top-p", "0.9", *model]) == 0
    assert sorted(os.listdir(output)) == ["a-boat", "a-snail"]
    report = json.loads((output / "a-snail" / "results.json").read_text())
    assert report["seed"] == 7
    assert report["settings"] == {
        "candidates": 3,
        "keep": 2,
        "guidance": 3.0,
        "temperature": 0.9,
        "top_k": 8,
        "top_p": 0.9,
        "last_guidance": None,
        "negative_prompt": "",
    }
    assert [picture["file"] for picture in report["pictures"]] == ["01.png", "02.png"]
    assert set(report["models"]) == {"dalle", "vqgan", "clip"}
    captured = capsys.readouterr()
    assert str(output / "a-boat") in captured.out
    assert captured.err == ""  # no bars where stderr is not a terminal


def test_a_long_prompt_is_noticed(tmp_path, capsys, golden_bundle):
    output = tmp_path / "out"
    prompt = "a red apple " * 834
    assert main(["generate", prompt, "--candidates", "1", "--model", str(golden_bundle), "--output", str(output)]) == 0
    assert capsys.readouterr().err.startswith("note: prompt 1 is too long and was truncated")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            [],
            'missing: VERB; for example: dalle-mini generate "a red apple on a blue background" (see dalle-mini',
        ),
        (["encode", "photos"], "missing: OUT; for example: dalle-mini encode photos encoded (see dalle-mini encode"),
        (["plan", "--topology", "v3-8"], "missing: CONFIG; for example: dalle-mini plan mini --topology v3-8"),
        (["convert", "mini"], "missing: TARGET; for example: dalle-mini convert runs/mine/checkpoints/4000 best"),
        (["paint", "a boat"], "paint"),
        (["generate"], 'say what to draw: dalle-mini generate "a red apple'),
        (["generate", "a boat", "--prompts", "x.csv"], "give either captions"),
        (["generate", ""], "blank"),
        (["generate", "a boat", "  "], "prompt 2 is blank"),
        (["generate", "a boat", "--candidates", "0"], "candidates"),
        (["generate", "a boat", "--candidates", "-4"], "candidates"),
        (["generate", "a boat", "--candidates", "four"], "--candidates: 'four' is not a whole number"),
        (["generate", "a boat", "--candidates", "4", "--keep", "5"], "keep"),
        (["generate", "a boat", "--keep", "0"], "keep"),
        (["generate", "a boat", "--keep", "-1"], "keep"),
        (["generate", "a boat", "--seed", "-1"], "seed"),
        (["generate", "a boat", "--guidance", "nan"], "guidance"),
        (["generate", "a boat", "--temperature", "0"], "temperature"),
        (["generate", "a boat", "--temperature", "hot"], "--temperature: 'hot' is not a number"),
        (["generate", "a boat", "--temperature", "nan"], "temperature"),
        (["generate", "a boat", "--top-k", "0"], "top_k"),
        (["generate", "a boat", "--top-p", "-0.5"], "top_p"),
        (["generate", "a boat", "--top-p", "nan"], "top_p"),
        (["generate", "a boat", "--dtype", "int4"], "dtype"),
        (["generate", "a boat", "--output", "/dev/null/nowhere"], "/dev/null/nowhere"),
        (["generate", "a boat", "--model", "/dev/null/nowhere"], "/dev/null/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in mistake(capsys, *arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["genrate", "a boat"],
            "argument VERB: there is no 'genrate': did you mean generate? known are generate, encode,",
        ),
        (
            ["data", "reprot", "x"],
            "argument VERB: there is no 'reprot': did you mean report? known are report (see dalle-mini data --help)",
        ),
        (
            ["generate", "a boat", "--candidats", "3"],
            "there is no --candidats: did you mean --candidates? (see dalle-mini generate --help)",
        ),
        (
            ["generate", "a boat", "--keeep=3"],
            "there is no --keeep: did you mean --keep? (see dalle-mini generate --help)",
        ),
        (["generate", "a boat", "--wobble"], "there is no --wobble (see dalle-mini generate --help)"),
        (["generate", "a boat", "-x"], "there is no -x (see dalle-mini generate --help)"),
        (
            ["train", "a.yaml", "--ouput", "x"],
            "there is no --ouput: did you mean --output? (see dalle-mini train --help)",
        ),
        (
            ["plan", "a.yaml", "--topolgy", "v3-8", "loop.steps=3"],
            "there is no --topolgy: did you mean --topology? (see dalle-mini plan --help)",
        ),
        (
            ["data", "report", "x", "--row", "1", "--sed", "3"],
            "there is no --sed: did you mean --seed? (see dalle-mini data report",
        ),
        (["info", "x", "y"], "unexpected: y (see dalle-mini info --help)"),
        (["xyz"], "there is no 'xyz': known are generate, encode,"),
        (["--versoin"], "there is no --versoin: did you mean --version? (see dalle-mini --help)"),
        (["generate", "a boat", "--dtype", "bfloat61"], "there is no 'bfloat61': did you mean bfloat16?"),
        (["generate", "a boat", "--dtype", "int4x2"], "known are float32, bfloat16"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_and_the_right_help(capsys, arguments, told):
    assert told in mistake(capsys, *arguments)


def test_a_caption_without_quotes_is_noticed(tmp_path, capsys, golden_bundle):
    drawn = ["--candidates", "1", "--model", str(golden_bundle), "--output", str(tmp_path)]
    assert main(["generate", "a", "cat", *drawn]) == 0
    assert capsys.readouterr().err == (
        "note: 2 prompts of one word each are drawn; if they are one caption, put it in quotes: "
        'dalle-mini generate "a cat"\n'
    )
    assert sorted(os.listdir(tmp_path)) == ["a", "cat"]
    assert main(["generate", "cat", "a boat", *drawn]) == 0
    assert capsys.readouterr().err == ""


def test_damaged_models_are_one_line(tmp_path, capsys, golden_bundle):
    folder = tmp_path / "bundle"
    shutil.copytree(golden_bundle, folder)
    arguments = ["generate", "a boat", "--model", str(folder), "--output", str(tmp_path / "out")]
    weights = folder / "vqgan" / "flax_model.msgpack"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert str(weights) in mistake(capsys, *arguments)
    weights.unlink()
    assert str(weights.parent) in mistake(capsys, *arguments)
    weights.write_bytes(content)
    config = folder / "dalle" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 64}))
    assert "is [32] instead of [64]" in mistake(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_exits_130_without_a_partial_folder(tmp_path, golden_bundle):
    output = tmp_path / "out"
    arguments = ["generate", *(f"a boat {number}" for number in range(500)), "--model", str(golden_bundle)]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # the first prompt is written: the command is in its work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert all((folder / "results.json").is_file() for folder in output.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_who_is_asked_to_stop_leaves_whole_folders_only(tmp_path, golden_bundle, name):
    output, number = tmp_path / "out", getattr(signal, name)
    arguments = ["generate", *(f"a boat {one}" for one in range(500)), "--model", str(golden_bundle)]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--progress-images", "--output", str(output)], stdout=-1, stderr=-1, text=True
    )
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + number, f"stopped by {name}\n")
    assert all((folder / "results.json").is_file() for folder in output.iterdir())


@pytest.mark.parametrize(
    ("name", "code", "line"), [("SIGINT", 130, "interrupted\n"), ("SIGTERM", 143, "stopped by SIGTERM\n")]
)
def test_an_interruption_amid_imports_is_one_line(name, code, line):
    program = """if True:
        import time
        from dalle_mini.commands.terminal import starting
        with starting():
            try:
                print("ready", flush=True)
                time.sleep(60)
            except BaseException:
                print("swallowed")  # as imports do
    """
    process = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True)
    process.stdout.readline()
    process.send_signal(getattr(signal, name))
    shown, errors = process.communicate()
    assert (process.returncode, shown, errors) == (code, "", line)


def test_ends_quietly_where_its_output_is_no_longer_read():
    reader, writer = os.pipe()
    os.close(reader)
    shipped = ["info", str(Path(dalle_mini.__file__).parent / "assets" / "emoji" / "dalle")]
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([*COMMAND, *shipped], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
