"""Several cores draw what one does."""

import jax
import numpy as np
import pytest

from dalle_mini.generation import memory
from dalle_mini.generation.engine import Engine, Preview
from dalle_mini.generation.memory import MOST, batch_that_fits, calls_that_fit
from dalle_mini.generation.scheduling import Group, least_rows
from dalle_mini.runtime import cores
from dalle_mini.settings import GenerationSettings

pytestmark = pytest.mark.slow


def group_of(pipe, prompts: int, candidates: int, **settings) -> Group:
    wanted = GenerationSettings(candidates=candidates, **settings)
    requests = pipe.requests([f"a boat of {number}" for number in range(prompts)], wanted)
    return Group(requests, 0, candidates, [(0, candidates)])


@pytest.mark.parametrize("prompts", [1, 2, 3, 5])
@pytest.mark.parametrize("candidates", [1, 2, 3, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_of_one_size_and_hold_each_image(pipe, prompts, candidates, count):
    shares = group_of(pipe, prompts, candidates).shares(candidates, jax.devices() * count)
    drawn = np.zeros((prompts, candidates), int)
    for share in shares:
        assert drawn[share].size == share.images == shares[0].images
        drawn[share] += 1
    assert drawn.all() and len(shares) <= count
    # No core could have fewer, and nothing is drawn twice but where a share could not be full.
    assert shares[0].images >= -(-prompts * candidates // count)
    assert (drawn > 1).sum() < shares[0].images


@pytest.mark.parametrize(
    ("prompts", "candidates", "count", "expected"),
    [
        (1, 1, 8, [1]),
        (1, 3, 2, [2, 2]),
        (1, 16, 2, [8, 8]),
        (1, 5, 4, [2, 2, 2]),
        (3, 1, 2, [2, 2]),
        (2, 3, 4, [2] * 3),
    ],
)
def test_a_call_has_no_more_shares_than_it_needs(pipe, prompts, candidates, count, expected):
    found = group_of(pipe, prompts, candidates).shares(candidates, jax.devices() * count)
    assert [share.images for share in found] == expected


def test_a_large_model_has_shares_of_many_rows(pipe):
    small, large = pipe.model.config, type("Config", (), {"cache_width": 24_576})
    assert least_rows(small, "bfloat16") == 1
    group = group_of(pipe, 1, 9, guidance=10.0)
    for weights, expected in (("float32", 2), ("bfloat16", 1), ("int8", 1)):
        shared = Group(group.requests, 0, 9, group.calls, least_rows(large, weights))
        assert len(shared.shares(9, jax.devices() * 8)) == expected


def test_memory_is_for_all_cores_together(pipe, monkeypatch):
    config, tokenizer = pipe.model.config, pipe.vqgan
    cpu = jax.devices()

    def fits(images: int, count: int) -> int:
        room = images * memory.image_bytes(config, "float32") + memory.decoding_bytes(tokenizer, cpu[0])
        monkeypatch.setattr(memory, "free_bytes", lambda device: (room + 1) / memory.SHARE)
        return batch_that_fits(config, "float32", tokenizer, cpu * count)

    assert [fits(12, count) for count in (1, 2, 4, 12)] == [12] * 4
    assert [fits(1000, count) for count in (1, 2)] == [MOST, 2 * MOST]
    monkeypatch.setattr(memory, "SMALL", 0)
    assert fits(1000, 2) == MOST  # of a large model
    for calls in (1, 3, 100):
        monkeypatch.setattr(memory, "free_bytes", lambda device, calls=calls: 1000 * calls / memory.SHARE + 1)
        assert calls_that_fit(cpu * 8, 1000) == min(calls, 8)


@pytest.fixture
def engine_on(pipe, monkeypatch):
    """An engine on so many cores."""

    def make(count: int) -> Engine:
        monkeypatch.setattr(cores, "usable_cores", lambda: count)
        return Engine(pipe.model, pipe.vqgan, pipe.ranker, jax.devices())

    return make


def everything(engine: Engine, requests, **options) -> list:
    """All that there is of the results, and of the previews on the way."""
    found = []
    for seen in engine.run(requests, **options):
        if isinstance(seen, Preview):
            # In parallel decoding the window is a share's own, and so is how many tokens are final at a pause.
            found.append((seen.prompt, seen.count, seen.tokens[:, : seen.count].tolist()))
        else:
            images = [np.asarray(image).tolist() for image in seen.images]
            found.append((seen.prompt, seen.indices, seen.scores, seen.tokens.tolist(), images))
    return found


@pytest.mark.parametrize(
    ("prompts", "candidates", "options"),
    [
        (1, 1, {}),
        (1, 3, {"guidance": 10.0}),
        (1, 16, {"guidance": 10.0, "decode": "sequential"}),
        (2, 5, {"decode": "parallel"}),
        (3, 1, {"guidance": 3.0, "decode": "parallel"}),
    ],
)
def test_cores_draw_what_one_draws(pipe, engine_on, prompts, candidates, options):
    settings = GenerationSettings(candidates=candidates, keep=candidates, **options)
    names = ["a boat", "a snail", "a red apple"][:prompts]
    requests = pipe.requests(names, settings)
    alone = everything(engine_on(1), requests, every=4, previews=2)
    images, calls = prompts * candidates, []
    for count in (2, 3, 8):
        watched = everything(engine_on(count), requests, every=4, previews=2, progress=lambda *call: calls.append(call))
        assert watched == alone
        assert {("tokens", 16 * images, 16 * images), ("pictures", images, images)} <= set(calls)
        calls.clear()


def test_cores_start_from_a_canvas_and_draw_in_several_calls(pipe, engine_on):
    canvas = pipe.canvas(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), vary=0.5)
    requests = pipe.requests(["a boat", "a snail"], GenerationSettings(candidates=7, keep=7), canvas)
    alone = everything(engine_on(1), requests)
    engine = engine_on(3)
    assert everything(engine, requests) == alone == everything(engine, requests, batch_size=4)


def test_shares_are_compiled_once(pipe, engine_on):
    from dalle_mini.generation.decode import decode_steps

    requests = pipe.requests(["a boat"], GenerationSettings(candidates=55, keep=1, decode="sequential"))
    before = decode_steps._cache_size()
    everything(engine_on(5), requests)
    assert decode_steps._cache_size() == before + 1
