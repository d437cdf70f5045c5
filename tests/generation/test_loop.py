"""Every form of the decoding loop draws the same tokens, and shows the same ones at each pause."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.generation import decode
from dalle_mini.generation.decode import decode_tokens
from dalle_mini.generation.optimize import optimize_for_decoding
from dalle_mini.generation.programs import Loop
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.runtime import xla
from dalle_mini.runtime.xla import WHOLE_LOOPS, Jit

FOLDER = Path(__file__).parents[1] / "golden" / "dallebart" / "e_megalike_fp16_scan"
LENGTH = 16
FORMS = [Loop(LENGTH), Loop(2, unrolled=True), Loop(3, graph=True)]
SAMPLED = {"guidance": 8.0, "last_guidance": 1.5, "temperature": 1.4, "top_p": 0.9}


@pytest.fixture(scope="module")
def model():
    return optimize_for_decoding(DalleBart.from_pretrained(FOLDER))


def shown(model, **options):
    """The number of final tokens, the tokens and the passes at each pause."""
    golden = np.load(FOLDER / "golden.npz")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    uncond = {"uncond_input_ids": ids[::-1], "uncond_attention_mask": mask[::-1]}
    keys = jax.random.split(jax.random.key(0), (len(ids), 2))
    progress = decode_tokens(model, ids, mask, keys, codebook_size=64, **uncond, **options)
    return [(drawn, np.asarray(tokens), np.asarray(passes)) for drawn, tokens, passes in progress]


def assert_same(found, expected):
    assert [one[0] for one in found] == [one[0] for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 4])
def test_each_pause_shows_the_same(model, window):
    expected = shown(model, window=window, every=5, **SAMPLED)
    for loop in FORMS:
        assert_same(shown(model, window=window, every=5, loop=loop, **SAMPLED), expected)


@pytest.mark.parametrize("window", [1, 3])
def test_forced_tokens_are_kept(model, window):
    forced = np.full((3, 2, LENGTH), -1)
    forced[0, :, 2:9], forced[1, 1, ::2] = 7, np.arange(8)
    options = {"window": window, "every": 6, "guidance": 1.0, "forced": forced}
    assert_same(shown(model, loop=Loop(4), **options), shown(model, **options))


@pytest.mark.slow
def test_passes_after_the_end_leave_a_cache_that_grows_as_it_was(model, monkeypatch):
    expected = shown(model, every=LENGTH, **SAMPLED)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "LARGE_CACHE", 1)
        patch.setattr(decode, "CACHES", 2)
        jax.clear_caches()  # of the programs with the whole cache
        assert_same(shown(model, every=LENGTH, loop=Loop(7), **SAMPLED), expected)
    jax.clear_caches()


def test_an_iteration_has_a_pass():
    with pytest.raises(UserError, match=r"loop\.passes is 0"):
        shown(None, loop=Loop(0))


def test_a_gpu_is_asked_for_a_graph_of_the_whole_loop(model, monkeypatch):
    asked = []
    monkeypatch.setattr(xla, "_platform", lambda leaves: "gpu")
    monkeypatch.setattr(jax, "jit", lambda function, compiler_options, **_: asked.append(compiler_options) or function)
    program = Jit(lambda programs: programs, on_gpu=decode._on_gpu)
    for loop in (Loop(), Loop(graph=True), Loop(4)):
        program(type("Programs", (), {"loop": loop}))
    assert asked == [None, WHOLE_LOOPS]


def test_xla_knows_the_options_of_the_graph():
    """Its options are the same for every platform, so any compiler tells."""
    jax.jit(jnp.sin, compiler_options=WHOLE_LOOPS).lower(1.0).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid enum value"):
        broken = WHOLE_LOOPS | {"xla_gpu_enable_command_buffer": "WHILST"}
        jax.jit(jnp.sin, compiler_options=broken).lower(1.0).compile()
