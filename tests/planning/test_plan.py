"""`dalle-mini plan`: the search for a batch, the figures, the command's mistakes, and a TPU's own compiler."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dalle_mini.cli import main
from dalle_mini.commands.plan import describe
from dalle_mini.errors import UserError
from dalle_mini.planning import plan
from dalle_mini.planning.topology import find_topology
from dalle_mini.runtime.installing import install_line

TINY = """
network: seq2seq
training:
  dtype: bfloat16
  remat: full
  model: {encoder_vocab_size: 64, image_vocab_size: 127, max_text_length: 8, image_length: 16, d_model: 128,
    encoder_layers: 2, encoder_attention_heads: 2, encoder_ffn_dim: 128,
    decoder_layers: 3, decoder_attention_heads: 2, decoder_ffn_dim: 128}
  optimizer: {name: adafactor, warmup_steps: 1}
loop: {steps: 10, batch_size: 32, accumulation: 2}
"""
PLAN = [sys.executable, "-m", "dalle_mini.cli", "plan"]
# The command chooses the platform itself; what it compiles here is not run, so it need not be fast.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"
}
KEYS = {
    *("peak_gib_per_device", "hbm_gib_per_device", "fits", "flops_per_picture", "roofline_step_seconds", "mfu_bound"),
    *("optimizer_state_mib", "collectives"),
}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*PLAN, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)


class Count:
    """A measure that counts how often it is asked."""

    def __init__(self, measure):
        self.measure, self.asked = measure, []

    def __call__(self, n):
        self.asked.append(n)
        return self.measure(n)


@pytest.mark.parametrize("limit", [2.5, 10, 157, 1000.5])
@pytest.mark.parametrize("first", [1, 8, 56, 3000])
def test_the_largest_that_fits_along_a_line(limit, first):
    measure = Count(lambda n: 2 + 0.5 * n)
    found = plan.largest(measure, limit, first)
    most = int((limit - 2) / 0.5)
    assert 0.97 * most - 1 < found <= most
    assert len(measure.asked) == len(set(measure.asked)) <= 8


def test_the_largest_that_fits_of_a_bent_measure():
    measure = Count(lambda n: 3 + n**1.3 + (n > 70) * 5)
    found = plan.largest(measure, 300, 4)
    assert measure.measure(found) <= 300 < measure.measure(found + max(1, 0.03 * found) + 1)
    assert len(measure.asked) <= 9


def test_nothing_fits():
    measure = Count(lambda n: 100 + n)
    assert plan.largest(measure, 50, 16) == 0
    assert 1 in measure.asked


def test_the_largest_batch_keeps_microbatches_and_mesh():
    @dataclasses.dataclass(frozen=True)
    class Loop:
        batch_size: int = 96
        accumulation: int = 3

    @dataclasses.dataclass(frozen=True)
    class Run:
        loop: Loop = Loop()

    topology = find_topology("v3-8")
    sizes = []

    def make(run, topology):  # 4 rows of devices; 1 GiB a picture beside 2
        sizes.append(run.loop.batch_size)
        pictures = run.loop.batch_size // (4 * run.loop.accumulation)
        return fake_plan(topology, batch_size=run.loop.batch_size, peak_bytes=(2 + pictures) * plan.GIB)

    best = plan.largest_plan(Run(), topology, make)
    assert best.fits and best.images_per_device == 13 and best.batch_size == 13 * 12
    assert all(size % 12 == 0 for size in sizes)


OPTIMIZER = SimpleNamespace(name="adafactor")
RUN = SimpleNamespace(
    training=SimpleNamespace(optimizer=OPTIMIZER, dtype="bfloat16", remat="full"), mesh=SimpleNamespace(fsdp=True)
)


def fake_plan(topology, **changes) -> plan.Plan:
    from dalle_mini.planning.roofline import Work, bound

    figures = {
        **{"topology": topology, "estimated": False, "mesh": (4, 2), "batch_size": 96, "accumulation": 3},
        **{"parameters": 1000, "parameter_bytes": 500, "optimizer_bytes": 10, "mean_bytes": 0, "working_bytes": 1.0},
        **{"peak_bytes": 1.0, "optimizer_state_bytes": 80, "collectives": [], "flops_per_image": 100, "steps": 10},
        **{"executed_flops_per_image": 130, "bound": bound(Work(1, 2, 3), topology, images=1, flops_per_image=1)},
    }
    return plan.Plan(**{**figures, **changes})


def test_a_plan_that_does_not_fit_is_said_with_its_numbers():
    topology = find_topology("v3-8")
    found = fake_plan(topology, peak_bytes=20 * plan.GIB, working_bytes=19 * plan.GIB, collectives=None)
    assert not found.fits
    text = "\n".join(describe(found, RUN))
    assert "20.00" in text and "15.48  IT DOES NOT FIT" in text and "19.00" in text and "82 GB/s" not in text
    assert found.to_dict()["fits"] is False and found.to_dict()["collectives"] is None


def test_the_time_of_a_short_run_is_no_zero():
    found = fake_plan(find_topology("v3-8"), steps=10)
    found = dataclasses.replace(found, bound=dataclasses.replace(found.bound, compute=0.5))
    assert "the run's 10 updates, 0.0 M images: 5 s or more" in "\n".join(describe(found, RUN))


def test_the_tpu_compiler_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(install_line("plan"))):
        plan.prepare(find_topology("v3-8"))


def test_a_tpu_compiler_that_cannot_be_used_is_one_line(monkeypatch):
    from jax.experimental import topologies

    def fail(**_):
        raise RuntimeError("JAX TPU support not installed\nsee elsewhere")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(UserError, match=r"cannot be used \(JAX TPU support not installed\); pip install"):
        plan._devices(find_topology("v3-8"))


@pytest.mark.slow
def test_gpus_are_estimated(config):
    done = command(config, "--topology", "h100x8", "mesh.model=2", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= KEYS
    assert found["fits"] and found["estimated"] and "an estimate" in done.stdout
    assert found["mesh"] == {"data": 4, "model": 2} and found["pictures_per_device"] == 4
    # Weights are gathered in each of the 2 microbatches, a layer at a time, and never the activations.
    gathers = [one for one in found["collectives"] if one["op"] == "all-gather" and one["group"] == 4]
    assert sum(one["count"] for one in gathers) >= 2 * (2 + 3)
    kept = found["parameters"] * 4 / 2**30
    assert kept / 8 < found["parameters_gib_per_device"] < kept / 7  # norms are whole on each device


@pytest.mark.parametrize(
    ("override", "message"), [("mesh.model=3", "mesh: "), ("loop.batch_size=36", "loop.batch_size 36 does not divide")]
)
def test_what_the_devices_cannot_share_is_one_line(config, override, message):
    done = command(config, "--topology", "h100x8", override)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()  # before anything is compiled
    assert line.startswith("error: ") and message in line


@pytest.fixture
def unprepared(monkeypatch):
    """Mistakes in words and files are found before a device is asked for, so the tests' own jax will do."""
    monkeypatch.setattr(plan, "prepare", lambda topology: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v3-9"], "no such hardware; there are v3-8"),
        (["--topology", "v9-8"], "no such hardware; there are v2-8, v3-8, v4-8, v5p-8, v5e-8, v6e-8"),
        (["--topology", "h100x8", "lop.batch_size=36"], "did you mean loop?"),
        (["loop.batch_size=many", "--topology", "h100x8"], "loop.batch_size"),
        ([], "--topology"),
    ],
)
def test_mistakes_in_words_are_one_line(config, unprepared, capsys, arguments, message):
    assert main(["plan", str(config), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["loop: {batch_size: [", "lop: {}", "- a\n- b", "network: vqgan", None])
def test_damaged_configs_are_one_line(tmp_path, unprepared, capsys, text):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["plan", str(path), "--topology", "h100x1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "bad.yaml" in err and len(err.splitlines()) == 1


FOREIGN = """
import faulthandler, os, signal, threading, time
from dalle_mini.commands.plan import in_thread
def work():
    faulthandler.register(signal.SIGTERM, chain=True)  # as libtpu does: a handler that prints its stack
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
in_thread(work)
"""


def test_sigterm_ends_a_compile_at_once():
    done = subprocess.run([sys.executable, "-c", FOREIGN], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")


def test_ctrl_c_ends_a_compile_at_once(config):
    running = subprocess.Popen(
        [*PLAN, config, "--topology", "h100x8"], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert running.stderr.readline().startswith("compiling")
    running.send_signal(signal.SIGINT)
    assert running.communicate()[1].splitlines()[-1] == "interrupted"
    assert running.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chips", "devices", "gib"),
    [
        *[("v3-8", 4, 8, 15.48), ("v4-8", 4, 4, 30.75), ("v5e-8", 8, 8, 15.75), ("v5p-8", 4, 4, 95.74)],
        *[("v6e-8", 8, 8, 31.25)],
    ],
)
def test_a_tiny_model_through_the_tpu_compiler(config, name, chips, devices, gib):
    done = command(config, "--topology", name, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= KEYS
    assert (found["chips"], found["devices"]) == (chips, devices)
    assert found["hbm_gib_per_device"] == pytest.approx(gib)
    assert found["fits"] and 0 < found["peak_gib_per_device"] < 1
    assert found["mesh"] == {"data": devices, "model": 1} and not found["estimated"]
    gathers = [one for one in found["collectives"] if one["op"] == "all-gather" and one["bytes"] > 1e6]
    assert gathers and {one["dtype"] for one in gathers} == {"bf16"}


@pytest.mark.slow
def test_what_does_not_fit_a_tpu_is_an_answer(config):
    wide = [f"training.model.{name}=32768" for name in ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")]
    done = command(config, "--topology", "v3-8", "--json", *wide)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] is False and found["collectives"] is None
    assert found["hbm_gib_per_device"] == pytest.approx(15.48)
    assert found["peak_gib_per_device"] > found["parameters_gib_per_device"] > 20
    assert "IT DOES NOT FIT" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("mini-2021", 3584), ("mega", 512)])
def test_the_recipes_fit_a_v3_8(name, batch):
    """mini at 56 a core in 8 microbatches, and mega; weights travel in bfloat16 and activations not at all."""
    done = command(name, "--topology", "v3-8", "--json", f"loop.batch_size={batch}")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["peak_gib_per_device"] < 15.48
    assert found["optimizer_state_mib"] < 30
    gathers = [one for one in found["collectives"] if one["op"] == "all-gather"]
    large = sum(one["bytes"] for one in gathers if one["dtype"] == "bf16")
    assert large > 0.95 * sum(one["bytes"] for one in gathers)
    # Each piece gathers every weight at most three times: forward, computed again, backward.
    assert large < 3.2 * found["accumulation"] * found["parameters"] * 2
    if name == "mini-2021":
        assert (found["accumulation"], found["pictures_per_device"]) == (8, 56)
