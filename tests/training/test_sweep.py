"""Sweeps: which points there are, that every one is run once, and what a kill, a failure and Ctrl-C leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dalle_mini.errors import UserError
from dalle_mini.training.config.config_file import override
from dalle_mini.training.config.sections import LoopConfig, OptimizerConfig, TrackingConfig
from dalle_mini.training.sweep import Sweep, last_words, summary
from dalle_mini.training.sweep_points import grid, parse_axes, sampled

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train" / "sweep.py"
STUB = (sys.executable, str(ROOT / "tests/helpers/train_stub.py"))


def points(*texts):
    return grid(parse_axes(texts)[0])


def test_grid():
    axes, fixed = parse_axes(["a.rate=0.1,0.3", "loop.steps=10", "b.name=x,y"])
    assert fixed == ("loop.steps=10",)
    made = grid(axes)
    assert [one.name for one in made] == ["rate=0.1,name=x", "rate=0.1,name=y", "rate=0.3,name=x", "rate=0.3,name=y"]
    assert made[1].assignments == ("a.rate=0.1", "b.name=y")


def test_names_are_folders_and_tell_points_apart():
    assert points("a.rate=1,2", "b.rate=3,4")[0].name == "a.rate=1,b.rate=3"
    first, second = points('p=["a, b"],["a; b"]')
    assert first.assignments == ('p=["a, b"]',)
    assert first.name != second.name  # though both are p=_a_b_ where only letters are left
    for one in (first, second, *points(f"p=../../etc,{'x' * 300}")):
        assert re.fullmatch(r"[\w.,=+-]{1,120}", one.name) and "/" not in one.name


def test_random_points():
    axes, _ = parse_axes(["rate=0.001..0.1", "steps=10..1000", "decay=linear,cosine"])
    made = sampled(axes, 200, seed=0)
    assert made == sampled(axes, 200, seed=0) != sampled(axes, 200, seed=1)
    assert sampled(axes, 20, seed=0) == made[:20]  # a longer sweep goes on from a shorter one
    rates = [float(one.assignments[0].partition("=")[2]) for one in made]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert 70 < sum(rate < 0.01 for rate in rates) < 130  # uniform in the logarithm
    assert all(re.fullmatch(r"steps=\d+", one.assignments[1]) for one in made)
    assert {one.assignments[2] for one in made} == {"decay=linear", "decay=cosine"}
    assert len(sampled(parse_axes(["a=1,2"])[0], 10, seed=0)) == 2  # there are no more


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rate"], "'rate': settings are written key=value"),
        (["=1,2"], "'=1,2': settings are written key=value"),
        (["rate=1"], "nothing varies: give a setting several values"),
        (["rate=1,,2"], "'rate=1,,2': a value is missing between two commas"),
        (["rate=1,2", "rate=3"], "rate: named twice: write its values with commas"),
        (["rate=1..0.1"], "'rate=1..0.1': a range is written low..high"),
        (["rate=0..1"], "'rate=0..1': a range is written low..high"),
        (["rate=1e..2"], "'rate=1e..2': a range is written low..high"),
    ],
)
def test_settings_that_make_no_sense(texts, message):
    with pytest.raises(UserError) as error:
        parse_axes(texts)
    assert str(error.value).startswith(message)


def test_a_range_needs_random():
    with pytest.raises(UserError, match=r"^rate=0.001..1: a range needs --random N"):
        points("rate=0.001..1")


class Said(list):
    def __call__(self, text):
        self.append(text)


def calls(output, name):
    path = output / "runs" / name / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_runs_are_ranked(tmp_path):
    made, said = points("optimizer.rate=3,1,2"), Said()
    ranked = Sweep("mini.yaml", tmp_path, ("loop.steps=3",), command=STUB).run(made, said)
    assert [one.point.name for one in ranked] == ["rate=1", "rate=2", "rate=3"]
    assert ranked[0].summary["eval_loss"] == 1.0  # the lowest
    assert ranked[0].summary["pictures_per_second"] == 20.0  # the median
    (call,) = (tmp_path / "runs" / "rate=2" / "calls").read_text().splitlines()
    folder = str(tmp_path / "runs" / "rate=2")
    assert json.loads(call) == [
        "mini.yaml", "--output", folder, "--resume", "auto", "loop.steps=3", "optimizer.rate=2"
    ]  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert page.index("rate=1<") < page.index("rate=2<") < page.index("rate=3<")
    assert "step 3: rate=2 2" in page and "Sweep · mini" in page
    assert said[0] == "[1/3] rate=3: begins" and said[1].startswith("[1/3] rate=3: 0 s, eval loss 3, loss 1")


def test_a_failed_point_is_recorded_and_the_others_are_run(tmp_path):
    made = points("what=refuse,none,break")
    said = Said()
    ranked = Sweep("mini.yaml", tmp_path, command=STUB).run(made, said)
    assert (ranked[0].point.name, ranked[0].exit_code) == ("what=none", 0)
    failed = {one.point.name: one for one in ranked[1:]}
    assert (failed["what=refuse"].exit_code, failed["what=refuse"].error) == (
        2,
        "rate: no such setting; did you mean ratio?",
    )
    assert failed["what=break"].error == "ZeroDivisionError: no error: line of its own"
    record = json.loads((tmp_path / "runs" / "what=break.json").read_text())
    assert (record["exit_code"], record["assignments"]) == (1, ["what=break"])
    assert "exit code 2: rate: no such setting" in (tmp_path / "report.html").read_text()
    assert "[3/3] what=break: failed, exit code 1: ZeroDivisionError: no error: line of its own" in said
    # The same again: what is done is left alone, what failed gets another chance.
    Sweep("mini.yaml", tmp_path, command=STUB).run(made, said)
    assert [calls(tmp_path, name) for name in ("what=none", "what=refuse", "what=break")] == [1, 2, 2]
    assert "1 of 3 runs are done already" in said


def test_values_may_be_added(tmp_path):
    sweep = Sweep("mini.yaml", tmp_path, command=STUB)
    sweep.run(points("rate=1,2"), Said())
    ranked = sweep.run(points("rate=0.5,1,2"), Said())
    assert [one.point.name for one in ranked] == ["rate=0.5", "rate=1", "rate=2"]
    assert [calls(tmp_path, f"rate={rate}") for rate in ("0.5", "1", "2")] == [1, 1, 1]


def test_another_sweep_may_not_use_the_folder(tmp_path):
    config = tmp_path / "mini.yaml"
    config.write_text("a: 1\n")
    sweep = Sweep(str(config), tmp_path / "out", command=STUB)
    sweep.run(points("rate=1,2"), Said())
    config.write_text("a: 2\n")
    with pytest.raises(UserError, match="holds a sweep with another sha256: name another --output"):
        sweep.run(points("rate=1,2"), Said())
    config.write_text("a: 1\n")
    with pytest.raises(UserError, match="another fixed"):
        Sweep(str(config), tmp_path / "out", ("steps=1",), command=STUB).run(points("rate=1,2"), Said())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file, not a folder"):
        Sweep(str(config), tmp_path / "file", command=STUB).run(points("rate=1,2"), Said())
    with pytest.raises(UserError, match=r"^rate=1: named twice"):
        Sweep(str(config), tmp_path / "out", command=STUB).run(points("rate=1,1"), Said())


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--command no-such-thing: cannot be run"):
        Sweep("mini.yaml", tmp_path, command=("no-such-thing",)).run(points("rate=1,2"), Said())


def script(output, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(SCRIPT), "mini.yaml", "--output", str(output), *arguments]
    command += ["--command", " ".join(STUB)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(path):
    for _ in range(300):
        if path.exists() and path.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"{path} never came")


def test_a_killed_sweep_goes_on(tmp_path):
    """With -9, while two runs go: they outlive it, and are not joined by a second process in the same folder."""
    killed = script(tmp_path, "what=wait", "rate=1,2,3", "--jobs", "2", start_new_session=True)
    for name in ("rate=1", "rate=2"):
        wait_for(tmp_path / "runs" / name / "waited")
    killed.kill()
    killed.communicate()
    again = script(tmp_path, "what=wait", "rate=1,2,3", "--jobs", "2")
    time.sleep(2)
    assert [calls(tmp_path, f"rate={rate}") for rate in (1, 2)] == [1, 1]
    ours = [int((tmp_path / "runs" / name / "waited").read_text()) for name in ("rate=1", "rate=2")]
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    wait_for(tmp_path / "runs" / "rate=3" / "waited")
    again.send_signal(signal.SIGTERM)  # the third waits too, in its first attempt
    out, err = again.communicate(timeout=180)
    assert again.returncode == 75, err
    assert err.count("still runs from before; waiting") == 2
    assert "stopped: run the same command again to continue" in err
    last = script(tmp_path, "what=wait", "rate=1,2,3")
    out, err = last.communicate(timeout=180)
    assert last.returncode == 0, err
    assert "2 of 3 runs are done already" in err
    assert [calls(tmp_path, f"rate={rate}") for rate in (1, 2, 3)] == [2, 2, 2]
    assert out.splitlines()[-1] == str(tmp_path / "report.html")
    assert out.index("rate=1") < out.index("rate=2") < out.index("rate=3")


def test_ctrl_c_comes_to_each_run_once(tmp_path):
    process = script(tmp_path, "what=wait", "rate=1,2")
    wait_for(tmp_path / "runs" / "rate=1" / "waited")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "runs" / "rate=1.json").read_text())["exit_code"] is None
    assert calls(tmp_path, "rate=2") == 0  # not begun any more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rate=1"], "error: nothing varies"),
        (["rate=1,2", "--random", "0"], "error: --random 0: it must be at least 1"),
        (["rate=1,2", "--jobs", "0"], "error: --jobs 0: it must be at least 1"),
        ([], "error: the following arguments are required"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    process = script(tmp_path / "out", *arguments)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 2 and err.startswith(message) and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_summary_of_nothing(tmp_path):
    assert summary(tmp_path) == {}
    (tmp_path / "log").write_bytes(b"\n \n")
    assert last_words(tmp_path / "log") == "it said nothing"


def expanded(sweep, values, environment):
    """The command as wandb's agent makes it."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros["env"] = ["/usr/bin/env"]
    command = []
    for part in create_sweep_command(list(sweep["command"])):
        command += macros[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return command


def test_the_sweep_for_wandb(tmp_path):
    """It starts `dalle-mini train` with a folder for each run and the settings as overrides, and these exist."""
    sweep = yaml.safe_load((ROOT / "tools" / "train" / "sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "eval_loss", "goal": "minimize"}
    values = {}
    for name, wanted in sweep["parameters"].items():
        values[name] = wanted["values"][0] if "values" in wanted else wanted["min"]
    pytest.importorskip("wandb")
    stub = tmp_path / "dalle-mini"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "r1"}
    done = subprocess.run(
        expanded(sweep, values, environment), env=environment, capture_output=True, text=True, check=True
    )
    verb, config, option, out, *rest = done.stdout.splitlines()
    assert (verb, option, out, rest[:2]) == ("train", "--output", "runs/sweep/r1", ["--resume", "auto"])
    assert config == "tools/train/configs/mini.yaml"
    assert [f"{name}={value}" for name, value in values.items()] == rest[4:]
    parts = {"training.optimizer": OptimizerConfig(), "loop": LoopConfig(), "tracking": TrackingConfig()}
    for assignment in rest[2:]:
        part = next(part for part in parts if assignment.startswith(part + "."))
        override(parts[part], [assignment.removeprefix(part + ".")])  # raises for what is no setting


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        ("config.yaml", "loop.nosuch=1,2", "loop.nosuch: no such setting"),
        ("config.yaml", "loop.steps=5,0", "loop.steps: 0 is too small"),
        ("missing.yaml", "loop.steps=5,6", "missing.yaml cannot be read"),
    ],
)
def test_what_is_wrong_shows_before_the_first_run(tmp_path, config, setting, message):
    (tmp_path / "config.yaml").write_text("loop: {steps: 3}\n")
    sweep = Sweep(str(tmp_path / config), tmp_path / "sweep")
    with pytest.raises(UserError, match=message):
        sweep.run(points(setting), say=lambda _: pytest.fail("a run has begun"))
    assert not (tmp_path / "sweep").exists()
