"""Sweeps: which points there are, that every one is run once, and what a kill, a failure and Ctrl-C leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from msgspec.structs import replace
from optuna.distributions import FloatDistribution

import children
from dalle_mini.errors import UserError
from dalle_mini.runtime.locks import lock
from dalle_mini.runtime.stopping import Stopped
from dalle_mini.training.config.config_file import override
from dalle_mini.training.config.sections import LoopConfig, OptimizerConfig, TrackingConfig
from dalle_mini.training.sweep.page import summary
from dalle_mini.training.sweep.processes import last_words, run
from dalle_mini.training.sweep.search import Sweep
from dalle_mini.training.sweep.space import GRID, EarlyTerminate, Metric, Plan, parse_settings, read_plan
from dalle_mini.training.sweep.study import Pruner, begin, drawn, open_study

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train" / "sweep.py"
STUB = (sys.executable, str(ROOT / "tests/helpers/train_stub.py"))


def points(*texts):
    return list(parse_settings(texts).combinations())


def test_grid():
    plan = parse_settings(["a.rate=0.1,0.3", "loop.steps=10", "b.name=x,y"])
    assert plan.fixed == {"loop.steps": "10"}
    made = list(plan.combinations())
    assert [one.name for one in made] == ["rate=0.1,name=x", "rate=0.1,name=y", "rate=0.3,name=x", "rate=0.3,name=y"]
    assert made[1].assignments == ("loop.steps=10", "a.rate=0.1", "b.name=y")


def test_names_are_folders_and_tell_points_apart():
    assert points("a.rate=1,2", "b.rate=3,4")[0].name == "a.rate=1,b.rate=3"
    first, second = points('p=["a, b"],["a; b"]')
    assert first.assignments == ('p=["a, b"]',)
    assert first.name != second.name  # though both are p=_a_b_ where only letters are left
    for one in (first, second, *points(f"p=../../etc,{'x' * 300}")):
        assert re.fullmatch(r"[\w.,=+-]{1,120}", one.name) and "/" not in one.name


def test_random_points():
    plan = parse_settings(["rate=0.001..0.1", "steps=10..1000", "decay=linear,cosine"])
    made = drawn(plan, 200, seed=0)
    assert made == drawn(plan, 200, seed=0) != drawn(plan, 200, seed=1)
    assert drawn(plan, 20, seed=0) == made[:20]  # a longer sweep goes on from a shorter one
    rates = [float(one.assignments[0].partition("=")[2]) for one in made]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert [one.params["rate"] for one in made] == rates  # the journal has what is run
    assert 70 < sum(rate < 0.01 for rate in rates) < 130  # uniform in the logarithm
    assert all(re.fullmatch(r"steps=\d+", one.assignments[1]) for one in made)
    assert {one.assignments[2] for one in made} == {"decay=linear", "decay=cosine"}
    assert not {one.name for one in made} & {one.name for one in drawn(plan, 200, seed=1)}
    assert len(drawn(parse_settings(["a=1,2"]), 10, seed=0)) == 2  # there are no more
    every = parse_settings([f"a={','.join(map(str, range(60)))}"])
    assert len({one.name for one in drawn(every, 60, seed=0)}) == 60  # chance leaves none out


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rate"], "'rate': settings are written key=value"),
        (["=1,2"], "'=1,2': settings are written key=value"),
        (["rate=1"], "nothing varies: give a setting several values"),
        (["rate=1,,2"], "'rate=1,,2': a value is missing between two commas"),
        (["rate=1,1"], "rate=1: named twice: leave one out"),
        (["rate=1,2", "rate=3"], "rate: named twice: write its values with commas"),
        (["rate=1..0.1"], "'rate=1..0.1': a range is written low..high"),
        (["rate=0..1"], "'rate=0..1': a range is written low..high"),
        (["rate=1e..2"], "'rate=1e..2': a range is written low..high"),
        (["rate=0.001..1"], "rate=0.001..1: a range needs --random N"),
    ],
)
def test_settings_that_make_no_sense(texts, message):
    with pytest.raises(UserError) as error:
        parse_settings(texts).check()
    assert str(error.value).startswith(message)


class Said(list):
    def __call__(self, text):
        self.append(text)


def sweep(output, *texts, config="mini.yaml", command=STUB, **options):
    """A sweep whose plan is what the command line would say."""
    return Sweep(config, output, parse_settings(texts, options.pop("plan", GRID)), command=command, **options)


def names(ranked):
    return [trial.user_attrs["run"] for trial in ranked]


def trials(output):
    """The journal's trials as other programs see them: (run, state) in order."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(output / "journal.log")))
    return [
        (trial.user_attrs["run"], trial.state.name)
        for summary in optuna.get_all_study_summaries(storage)
        for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials
    ]


def calls(output, name):
    path = output / "runs" / name / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_runs_are_ranked(tmp_path):
    said = Said()
    ranked = sweep(tmp_path, "loop.steps=3", "optimizer.rate=3,1,2").run(said)
    assert names(ranked) == ["rate=1", "rate=2", "rate=3"]
    assert ranked[0].user_attrs["summary"]["eval_loss"] == 1.0  # the lowest
    assert ranked[0].user_attrs["summary"]["pictures_per_second"] == 20.0  # the median
    (call,) = (tmp_path / "runs" / "rate=2" / "calls").read_text().splitlines()
    folder = str(tmp_path / "runs" / "rate=2")
    assert json.loads(call) == [
        "mini.yaml", "--output", folder, "--resume", "auto", "loop.steps=3", "optimizer.rate=2"
    ]  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert page.index("rate=1<") < page.index("rate=2<") < page.index("rate=3<")
    assert "step 3: rate=2 2" in page and "Sweep · mini" in page
    assert "<h3>Eval loss over optimizer.rate</h3>" in page and "<title>rate=3: 3</title>" in page
    assert said[0] == "[1/3] rate=3: begins"
    assert re.match(r"\[1/3\] rate=3: \d+ s, eval loss 3, loss 1", said[1])


def test_a_failed_point_is_recorded_and_the_others_are_run(tmp_path):
    said = Said()
    ranked = sweep(tmp_path, "what=refuse,none,break").run(said)
    assert names(ranked)[0] == "what=none" and ranked[0].state.name == "COMPLETE"
    failed = {one.user_attrs["run"]: one.user_attrs["wrong"] for one in ranked[1:]}
    assert failed == {
        "what=refuse": "failed, exit code 2: rate: no such setting; did you mean ratio?",
        "what=break": "failed, exit code 1: ZeroDivisionError: no error: line of its own",
    }
    assert trials(tmp_path) == [("what=refuse", "FAIL"), ("what=none", "COMPLETE"), ("what=break", "FAIL")]
    assert "exit code 2: rate: no such setting" in (tmp_path / "report.html").read_text()
    assert "[3/3] what=break: failed, exit code 1: ZeroDivisionError: no error: line of its own" in said
    # The same again: what is done is left alone, what failed gets another chance.
    sweep(tmp_path, "what=refuse,none,break").run(said)
    assert [calls(tmp_path, name) for name in ("what=none", "what=refuse", "what=break")] == [1, 2, 2]
    assert "1 of 3 runs are done already" in said


def test_values_may_be_added(tmp_path):
    sweep(tmp_path, "rate=1,2").run(Said())
    ranked = sweep(tmp_path, "rate=0.5,1,2").run(Said())
    assert names(ranked) == ["rate=0.5", "rate=1", "rate=2"]
    ranked = sweep(tmp_path, "rate=2,1").run(Said())
    assert names(ranked) == ["rate=1", "rate=2"]
    assert [calls(tmp_path, f"rate={rate}") for rate in ("0.5", "1", "2")] == [1, 1, 1]
    shutil.rmtree(tmp_path / "runs" / "rate=1")  # it made room on the disk
    assert names(sweep(tmp_path, "rate=2,1").run(Said())) == ["rate=1", "rate=2"]


def test_another_sweep_may_not_use_the_folder(tmp_path):
    config = tmp_path / "mini.yaml"
    config.write_text("a: 1\n")
    out = tmp_path / "out"
    sweep(out, "rate=1,2", config=str(config)).run(Said())
    config.write_text("a: 2\n")
    with pytest.raises(UserError, match="holds a sweep with another sha256: name another --output"):
        sweep(out, "rate=1,2", config=str(config)).run(Said())
    config.write_text("a: 1\n")
    with pytest.raises(UserError, match="another fixed"):
        sweep(out, "steps=1", "rate=1,2", config=str(config)).run(Said())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file, not a folder"):
        sweep(tmp_path / "file", "rate=1,2", config=str(config)).run(Said())


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--command no-such-thing: cannot be run"):
        sweep(tmp_path, "rate=1,2", command=("no-such-thing",)).run(Said())


def test_a_run_that_is_stopped_before_it_trains(tmp_path):
    """It stops the sweep, as one that was stopped in the midst of training does."""
    with pytest.raises(Stopped):
        sweep(tmp_path, "what=early,none").run(Said())
    assert trials(tmp_path) == [("what=early", "FAIL")]


def test_an_error_ends_the_run(tmp_path):
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ZeroDivisionError):
        run(sleeping, tmp_path / "log", [], lambda: 1 / 0, print)
    with (tmp_path / "log").open("ab") as file:
        lock(file)  # nobody holds it any more


def test_tpe_goes_on_where_it_was(tmp_path):
    """Each point comes from the results before it; a longer search begins with the shorter one's points."""
    plan = Plan("bayes", {}, run_cap=4)
    shorter = sweep(tmp_path / "a", "rate=0.1..10", plan=plan).run(Said())
    said = Said()
    longer = sweep(tmp_path / "a", "rate=0.1..10", plan=replace(plan, run_cap=13)).run(said)
    assert said[0] == "4 of 13 runs are done already"
    whole = sweep(tmp_path / "b", "rate=0.1..10", plan=replace(plan, run_cap=13)).run(Said())
    assert len({*names(longer)}) == 13 and {*names(shorter)} < {*names(longer)} == {*names(whole)}
    found = sweep(tmp_path / "c", "rate=1,2,3", plan=replace(plan, run_cap=9)).run(Said())
    assert names(found) == ["rate=1", "rate=2", "rate=3"]  # there are no more


def test_pruned_runs(tmp_path):
    """Far behind at its second evaluation, a run is asked to end, and is told in one line. It is not tried again."""
    plan, said = Plan("grid", {}, early_terminate=EarlyTerminate("hyperband", 2, 2)), Said()
    ranked = sweep(tmp_path, "what=slow", "rate=1,3,2", plan=plan).run(said)
    assert names(ranked) == ["rate=1", "rate=2", "rate=3"]
    assert [one.user_attrs["wrong"][:26] for one in ranked] == ["", *2 * ["pruned after 2 evaluations"]]
    assert "[2/3] rate=3: pruned after 2 evaluations, eval loss 3, loss 3" in said
    assert dict(trials(tmp_path)) == {"rate=1": "COMPLETE", "rate=2": "PRUNED", "rate=3": "PRUNED"}
    assert "pruned after 2 evaluations" in (tmp_path / "report.html").read_text()
    sweep(tmp_path, "what=slow", "rate=1,3,2", plan=plan).run(said)
    assert [calls(tmp_path, f"rate={rate}") for rate in (1, 2, 3)] == [1, 1, 1]


def test_a_point_that_was_killed_is_not_counted_twice(tmp_path):
    """The best half goes on at the first evaluation, 1.5 of 1, 1.5, 2 and 3: a kill left another trial with 1."""
    plan = parse_settings(["a=1,2,3,4"], Plan("grid", {}, early_terminate=EarlyTerminate("hyperband", 1, 2)))

    def pruned(study, point, loss):
        (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "eval_loss": loss}) + "\n")
        trial = begin(study, plan, point)
        return trial, Pruner(trial, tmp_path / "log.jsonl", plan).is_hopeless()

    best, second, third, fourth = plan.combinations()
    with open_study(tmp_path, plan, {}) as study:
        pruned(study, best, 1.0)
    with open_study(tmp_path, plan, {}) as study:
        for point, loss in ((best, 1.0), (third, 2.0), (fourth, 3.0)):
            trial, _ = pruned(study, point, loss)
            study.tell(trial, loss)
        assert not pruned(study, second, 1.5)[1]
    assert [state for _, state in trials(tmp_path)] == ["FAIL", *3 * ["COMPLETE"], "RUNNING"]


def test_another_metric(tmp_path):
    plan = Plan("grid", {}, Metric("loss", "maximize"))
    ranked = sweep(tmp_path, "rate=1,3,2", plan=plan).run(Said())
    assert names(ranked) == ["rate=3", "rate=2", "rate=1"]
    with pytest.raises(UserError, match="another metric"):
        sweep(tmp_path, "rate=1,3,2").run(Said())


def test_two_sweeps_in_one_folder(tmp_path):
    first = script(tmp_path, "what=wait", "rate=1,2")
    wait_for(tmp_path / "runs" / "rate=1" / "waited")
    second = script(tmp_path, "what=wait", "rate=1,2")
    _, err = second.communicate(timeout=180)
    first.terminate()
    first.communicate(timeout=180)
    assert (second.returncode, err) == (
        2,
        f"error: {tmp_path}: another sweep is at work here: wait until it ends, or name another --output\n",
    )


def test_a_damaged_journal(tmp_path):
    sweep(tmp_path, "rate=1,2").run(Said())
    journal, said = tmp_path / "journal.log", Said()
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":')  # the machine went down
    sweep(tmp_path, "rate=1,2").run(said)
    assert said == ["2 of 2 runs are done already"] and journal.read_bytes().startswith(whole)
    journal.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match=r"journal.log: cannot be read \(.*\): name another --output"):
        sweep(tmp_path, "rate=1,2").run(said)


def script(output, *arguments, **options):
    command = [sys.executable, str(SCRIPT), "mini.yaml", "--output", str(output), *arguments]
    command += ["--command", " ".join(STUB)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=children.environment(), text=True, **pipes, **options)


def wait_for(path, said=""):
    """Wait until a file is not empty, or says something a second time."""
    for _ in range(3000):
        if path.exists() and (path.read_text().count(said) > 1 if said else path.read_text()):
            return
        time.sleep(0.1)
    pytest.fail(f"{path} never came to say {said or 'anything'}")


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
    wait_for(tmp_path / "journal.log", said='"state":1')  # both are done
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


def test_names_are_told_in_full(tmp_path):
    process = script(tmp_path, "training.optimizer.learning_rate=0.001,0.003", "training.optimizer.decay=linear,cosine")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert all(
        f"learning_rate={rate},decay={decay} " in out for rate in (0.001, 0.003) for decay in ("linear", "cosine")
    )


def test_ctrl_c_comes_to_each_run_once(tmp_path):
    process = script(tmp_path, "what=wait", "rate=1,2")
    wait_for(tmp_path / "runs" / "rate=1" / "waited")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert trials(tmp_path) == [("rate=1", "FAIL")]
    assert calls(tmp_path, "rate=2") == 0  # not begun any more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rate=1"], "error: nothing varies"),
        (["rate=1,2", "--random", "0"], "error: --random 0: it must be at least 1"),
        (["rate=1,2", "--jobs", "0"], "error: --jobs 0: it must be at least 1"),
        ([], "error: nothing varies"),
        (["rate=1,2", "--random", "3", "--tpe", "3"], "error: --random and --tpe: leave one out"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    process = script(tmp_path / "out", *arguments)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 2 and err.startswith(message) and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_summary_of_nothing(tmp_path):
    assert summary(tmp_path, GRID) == {}
    (tmp_path / "log").write_bytes(b"\n \n")
    assert last_words(tmp_path / "log") == "it said nothing"


def test_the_plan_in_the_file():
    """The file that wandb reads says the same to our own command."""
    plan = read_plan(ROOT / "tools" / "train" / "sweep.yaml")
    assert (plan.method, plan.run_cap, plan.metric, plan.early_terminate) == (
        *("random", 20, Metric("eval_loss", "minimize")),
        EarlyTerminate("hyperband", 2, 2),
    )
    assert plan.fixed == {"loop.steps": "10000"}
    rate, warmup, decay, _ = plan.space.values()
    assert rate == FloatDistribution(0.0005, 0.05, log=True)
    assert (warmup.choices, decay.choices) == (("500", "1000", "2000"), ("linear", "cosine"))
    override = parse_settings(["loop.steps=5", "training.optimizer.decay=linear"], plan)
    assert override.fixed == {"loop.steps": "5", "training.optimizer.decay": "linear"} and len(override.space) == 3


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ({"min": 1, "max": 4}, {"1", "2", "3", "4"}),
        ({"min": 1, "max": 3, "distribution": "q_log_uniform_values"}, {"1", "2", "3"}),
        ({"min": 0, "max": 1, "distribution": "q_uniform", "q": 0.5}, {"0", "0.5", "1"}),
        ({"values": [True, None, [1, 2], "x"]}, {"true", "null", "[1, 2]", "x"}),
    ],
)
def test_kinds_of_settings(tmp_path, parameter, values):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"method": "random", "parameters": {"a": parameter}}))
    made = drawn(read_plan(tmp_path / "sweep.yaml"), 10, seed=0)
    assert {one.assignments[0].removeprefix("a=") for one in made} == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "evolution"}, "Invalid enum value 'evolution'"),
        ({"parameters": {"a": {"min": 1}}}, "a: it needs value, values, or min and max, the second one larger"),
        ({"parameters": {"a": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}}, "a: min must be above 0"),
        (
            {"parameters": {"a": {"min": 1, "max": 9, "distribution": "q_log_uniform_values", "q": 2}}},
            "a: q must be 1 for a logarithmic range",
        ),
        ({"parameters": {"a": {"values": [1, 1]}}}, "a=1: named twice: leave one out"),
        ({"parameters": {"a": {"distribution": "normal", "mu": 0}}}, "Invalid enum value 'normal'"),
        ({"early_terminate": {"type": "envelope", "min_iter": 2}}, "Invalid enum value 'envelope'"),
        ({"run_cup": 3}, "Object contains unknown field run_cup"),
    ],
)
def test_files_that_make_no_sense(tmp_path, changes, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": {"a": {"values": [1, 2]}}, **changes}))
    with pytest.raises(UserError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: {message}")


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
        values[name] = wanted.get("value", wanted["values"][0] if "values" in wanted else wanted.get("min"))
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
    assert config == "mini"
    assert [f"{name}={value}" for name, value in values.items()] == rest[3:]
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
    made = Sweep(str(tmp_path / config), tmp_path / "sweep", parse_settings([setting]))
    with pytest.raises(UserError, match=message):
        made.run(say=lambda _: pytest.fail("a run has begun"))
    assert not (tmp_path / "sweep").exists()
