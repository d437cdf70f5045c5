"""XLA leaves this to YNNPACK: nothing in float32, single products in smaller types, whoever compiles and when."""

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dalle_mini.models  # noqa: F401  (asks for exact products)
from dalle_mini.runtime.xla import FUSIONS, KNOWN, SINGLE_PRODUCTS, Jit, ask_for_exact_products, compiler_options

LIBRARY = "ynn_fusion"


@pytest.fixture
def flags(monkeypatch):
    def set_flags(value):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if value is not None:
            monkeypatch.setenv("XLA_FLAGS", value)
        ask_for_exact_products()
        return os.environ.get("XLA_FLAGS")

    return set_flags


def test_the_flag_is_set_beside_others_and_once(flags):
    assert flags(None) == f"--{FUSIONS}="
    assert flags("--xla_cpu_enable_fast_math=false") == f"--xla_cpu_enable_fast_math=false --{FUSIONS}="
    assert flags(f"--{FUSIONS}= --xla_cpu_enable_fast_math=false") == f"--{FUSIONS}= --xla_cpu_enable_fast_math=false"


def test_what_the_user_chose_stays(flags):
    chosen = f"--{FUSIONS}={SINGLE_PRODUCTS}"
    assert flags(chosen) == chosen
    assert compiler_options("float32", "cpu") is None


def test_an_unknown_release_is_asked_for_nothing(flags, monkeypatch):
    """XLA ends a process whose flags it does not know."""
    monkeypatch.setattr("dalle_mini.runtime.xla._is_known", lambda: False)
    assert flags(None) is None
    assert compiler_options("float32", "cpu") is None


def test_the_known_releases_are_those_that_may_be_installed():
    root = Path(__file__).parents[2]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    (least, most) = re.search(r"^jax>=([\d.]+),<([\d.]+)$", setup["options"]["install_requires"], re.MULTILINE).groups()
    assert tuple(tuple(map(int, release.split("."))) for release in (least, most)) == KNOWN
    assert f"OLDEST_JAX := {least}.0\n" in (root / "Makefile").read_text()  # what `make test-golden` tries


@pytest.mark.parametrize(
    ("dtype", "platform", "wanted"),
    [
        ("float32", "cpu", {FUSIONS: ""}),
        (jnp.bfloat16, "cpu", {FUSIONS: SINGLE_PRODUCTS}),
        ("int8", "cpu", {FUSIONS: SINGLE_PRODUCTS}),
        ("float32", "gpu", None),
        ("bfloat16", "tpu", None),
    ],
)
def test_the_options_of_a_program(flags, dtype, platform, wanted):
    flags(None)
    assert compiler_options(dtype, platform) == wanted


# Where YNNPACK's fusions read what nothing wrote: a product with a broadcast constant, and what is made of it at once.
WRONG_BY_DEFAULT = {
    "sum": lambda x: jnp.sum((x @ jnp.full_like(x, 0.37)) * x, axis=-1),
    "einsum": lambda x: jnp.einsum("bij,bjk,bik->bi", x, jnp.full_like(x, 0.37), x),
    "maximum": lambda x: jnp.max((x @ jnp.full_like(x, 0.37)) * x, axis=-1),
    "norm": lambda x: jnp.sum((x @ jnp.ones_like(x)) ** 2, axis=-1),
}


@pytest.mark.parametrize("make", [Jit, jax.jit], ids=["ours", "the user's"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", WRONG_BY_DEFAULT)
def test_nothing_is_fused_that_may_come_out_wrong(name, dtype, make):
    function = WRONG_BY_DEFAULT[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 60, 60)), dtype)
    with jax.disable_jit():
        wanted = np.asarray(function(x), np.float32)
    found = np.asarray(make(function)(x), np.float32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=(2e-6 if dtype == jnp.float32 else 0.02) * abs(wanted).max())


def test_a_product_of_float32_is_xlas_own():
    x = jnp.ones((64, 64))
    for make in (Jit, jax.jit):
        assert LIBRARY not in make(lambda x: x @ x).lower(x).compile().as_text()


def test_the_smallest_type_of_the_arguments_is_the_programs():
    made = Jit(lambda params, x: x @ params["w"].astype(x.dtype))
    x = jnp.ones((64, 64))
    for dtype in ("float32", "bfloat16", "int8"):
        made({"w": jnp.ones((64, 64), dtype), "ids": np.zeros(3, np.int32), "mask": np.zeros(3, bool)}, x)
    assert [*made._programs] == ["", SINGLE_PRODUCTS]


def test_within_another_program_it_is_a_part_of_it():
    double = Jit(lambda x, times: times * x, static_argnums=1)
    x = jnp.ones(3)
    assert jax.jit(lambda x: double(x, 2) + 1)(x).tolist() == [3, 3, 3]
    assert jax.grad(lambda x: double(x, 2).sum())(x).tolist() == [2, 2, 2]
    assert jax.eval_shape(lambda x: double(x, 2), x).shape == double.eval_shape(x, 2).shape == (3,)


LATE = """
import json, jax, jax.numpy as jnp
x = jnp.ones((64, 64))  # XLA has read its flags by now
import dalle_mini.models
from dalle_mini.runtime.xla import Jit
print(json.dumps("ynn_fusion" in Jit(lambda x: x @ x).lower(x).compile().as_text()))
"""


def test_programs_of_ours_are_exact_though_jax_had_started():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) is False
