"""The drawer that owns a pipeline draws what `generate` draws, to the token, whoever shares the call or leaves it."""

import numpy as np
import pytest

from dalle_mini.generation.joint import draw_jointly
from dalle_mini.serving.drawing import Drawn, Failed, Part, Partial, Progress, Start
from dalle_mini.serving.pipeline import PipelineDrawer
from dalle_mini.settings import GenerationSettings


@pytest.fixture(scope="module")
def drawer(pipe):
    drawer = PipelineDrawer(lambda: pipe, "golden")
    drawer.about = drawer.open()
    return drawer


def part(drawer, prompt, job=None, *, first=0, count=2, start=None, **settings):
    asked = GenerationSettings(candidates=count, keep=count, **settings)
    return Part(job or prompt, prompt, drawer.check(prompt, asked)[0], start, first, count)


def drawn(events):
    return {event.job: event for event in events if isinstance(event, Drawn)}


def expected(pipe, prompt, first, count, canvas=None, **settings):
    """{number: (tokens, score)} as `generate` has them."""
    everything = first + count
    (result,) = pipe.generate([prompt], candidates=everything, keep=everything, canvas=canvas, **settings)
    found = zip(result.indices, result.tokens, result.scores, strict=True)
    return {number: (tokens.tolist(), score) for number, tokens, score in found if number >= first}


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["sequential", "parallel"])
def test_parts_of_several_jobs_are_drawn_as_generate_draws_them(pipe, drawer, decode):
    asked = [("a red apple", 0, 1), ("a fox", 2, 5), ("a red apple", 4, 9)]
    parts = [
        part(drawer, prompt, f"job {number}", first=first, seed=seed, decode=decode)
        for number, (prompt, first, seed) in enumerate(asked)
    ]
    events = list(drawer.draw(parts))
    found = drawn(events)
    for number, (prompt, first, seed) in enumerate(asked):
        wanted = expected(pipe, prompt, first, 2, seed=seed, decode=decode)
        got = {one.candidate: (one.tokens.tolist(), one.score) for one in found[f"job {number}"].pictures}
        assert got == wanted
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done <= progress[-1].total == drawer.about.image_length


def test_images_of_a_large_call_are_told_in_groups(pipe, drawer):
    events = [one for one in drawer.draw([part(drawer, "a fox", count=16)]) if isinstance(one, Drawn)]
    pictures = [one for event in events for one in event.pictures]
    assert [len(event.pictures) for event in events] == [8, 8]
    got = {one.candidate: (one.tokens.tolist(), one.score) for one in pictures}
    assert got == expected(pipe, "a fox", 0, 16)
    drawing, left = drawer.draw([part(drawer, "a fox", count=16)]), []
    for event in drawing:
        if isinstance(event, Drawn):
            left.append(event)
            drawer.drop("a fox")
    assert len(left) == 1


@pytest.mark.parametrize("decode", ["sequential", "parallel"])
@pytest.mark.parametrize("leaves_after", [0, 1, 2])
def test_who_leaves_changes_nobody_elses_tokens(pipe, drawer, decode, leaves_after):
    parts = [part(drawer, prompt, decode=decode) for prompt in ("a red apple", "a fox", "a snail")]
    events, pauses = [], 0
    drawing = drawer.draw(parts)
    if not leaves_after:
        drawer.drop("a fox")
    for event in drawing:
        events.append(event)
        pauses += isinstance(event, Progress)
        if leaves_after and pauses == leaves_after:
            drawer.drop("a fox")
    found = drawn(events)
    assert found.keys() == {"a red apple", "a snail"}
    for prompt in found:
        wanted = expected(pipe, prompt, 0, 2, decode=decode)
        assert {one.candidate: (one.tokens.tolist(), one.score) for one in found[prompt].pictures} == wanted


def test_a_call_that_nobody_wants_ends_at_the_next_pause(drawer):
    parts = [part(drawer, prompt) for prompt in ("a red apple", "a fox")]
    pauses = 0
    for event in drawer.draw(parts):
        assert isinstance(event, Progress)
        pauses += 1
        for one in parts:
            drawer.drop(one.job)
    assert pauses == 1
    assert drawn(drawer.draw(parts)).keys() == {"a red apple", "a fox"}  # what was dropped then is not dropped now


def test_shares_that_nobody_wants_end(pipe, monkeypatch):
    """The other shares' tokens stay, and the programs of what was left are not called again."""
    engine = pipe.engine
    prompts = ["a red apple", "a fox", "a snail", "a cat"]
    settings = GenerationSettings(candidates=1, keep=1)
    gone = np.zeros(4, bool)
    for decoded in draw_jointly(engine, pipe.requests(prompts, settings), 1, lambda: gone):
        gone[2:] = True
        last = decoded
    wanted = pipe.generate(prompts[:2], candidates=1, keep=1)
    assert [tokens.tolist() for tokens in last.tokens[:2]] == [one.tokens.tolist() for one in wanted]


def test_who_watches_sees_the_final_rows(pipe, drawer):
    asked = part(drawer, "a red apple", count=2, first=3)
    drawer.watch("a red apple", 4)
    events = list(drawer.draw([asked]))
    drawer.watch("a red apple", 0)
    partials = [event for event in events if isinstance(event, Partial)]
    grid = drawer.about.grid
    assert {one.candidate for one in partials} == {3}  # the first four candidates are watched
    assert [one.rows for one in partials] == list(range(1, grid))
    assert partials[0].pixels.shape == (drawer.about.resolution, drawer.about.resolution, 3)
    assert not any(isinstance(event, Partial) for event in drawer.draw([asked]))


@pytest.mark.slow
def test_what_starts_from_an_image(pipe, drawer):
    side = drawer.about.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    starts = {
        "top": (Start(pixels, keep_top=0.5), pipe.canvas(pixels, top=0.5)),
        "vary": (Start(pixels, vary=0.3), pipe.canvas(pixels, vary=0.3)),
    }
    kept = np.array(starts["top"][1].tokens)
    starts["tokens"] = (Start(None, tuple(kept.tolist())), starts["top"][1])
    parts = [part(drawer, "a fox", name, start=start) for name, (start, _) in starts.items()]
    found = drawn(drawer.draw(parts))
    for name, (_, canvas) in starts.items():
        wanted = expected(pipe, "a fox", 0, 2, canvas)
        assert {one.candidate: (one.tokens.tolist(), one.score) for one in found[name].pictures} == wanted
        assert found[name].kept == canvas.tokens
    cells = (0, 5)
    (masked,) = drawn(drawer.draw([part(drawer, "a fox", start=Start(pixels, cells=cells))])).values()
    encoded = np.array(pipe.canvas(pixels, vary=1.0).tokens)
    for picture in masked.pictures:
        assert set(np.flatnonzero(picture.tokens != encoded)) <= set(cells)


def test_a_part_that_cannot_be_drawn_fails_alone(drawer):
    bad = part(drawer, "a fox", "bad", start=Start(None, (10**6,) * drawer.about.image_length, keep_top=0.5))
    fine = part(drawer, "a fox", "fine", start=Start(None, (1,) * drawer.about.image_length, keep_top=0.5))
    events = list(drawer.draw([bad, fine]))
    assert [event.job for event in events if isinstance(event, Failed)] == ["bad"]
    assert drawn(events).keys() == {"fine"}


def test_the_model_is_told(pipe, drawer):
    about = drawer.about
    assert about.checksums == {part: one["sha256"] for part, one in pipe.provenance()["models"].items()}
    assert about.grid**2 == about.image_length and len(about.weights) == 12
    assert drawer.unknown_words("a red apple") is None


def test_the_sizes_that_clients_ask_for_are_warm(pipe, monkeypatch):
    drawer, calls = PipelineDrawer(lambda: pipe), []
    draw = drawer.draw

    def counted(parts):
        calls.append((parts[0].count, events := []))
        for event in draw(parts):
            events.append(type(event))
            yield event

    monkeypatch.setattr(drawer, "draw", counted)
    drawer.open()
    assert [count for count, _ in calls] == [1, 8, 16]
    assert calls[0][1][-1] is Drawn and [events for _, events in calls[1:]] == [[Progress]] * 2


@pytest.mark.slow
def test_programs_do_not_pile_up(pipe, drawer, monkeypatch):
    """Each top_k has no program of its own, and the programs of many kinds are forgotten; the tokens stay."""
    forgotten = []
    monkeypatch.setattr("jax.clear_caches", lambda: forgotten.append(len(drawer._programs)))
    monkeypatch.setattr("dalle_mini.serving.pipeline.MOST_PROGRAMS", 3)
    drawer._programs.clear()
    for top_k in (9, 10, 12, 16):
        (found,) = drawn(drawer.draw([part(drawer, "a fox", top_k=top_k)])).values()
        wanted = expected(pipe, "a fox", 0, 2, top_k=top_k)
        assert {one.candidate: (one.tokens.tolist(), one.score) for one in found.pictures} == wanted
    assert len(drawer._programs) == 1 and not forgotten
    for count in (1, 2, 4, 8):
        list(drawer.draw([part(drawer, "a fox", count=count, top_k=3)]))
    assert forgotten == [3] and len(drawer._programs) == 1
