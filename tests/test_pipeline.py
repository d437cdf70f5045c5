import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_mini import DalleMini, UserError
from dalle_mini.generation.canvas import Canvas
from dalle_mini.generation.scheduling import image_keys
from dalle_mini.settings import GenerationSettings

GOLDEN = Path(__file__).parent / "golden"
GREEDY = {"candidates": 1, "top_k": 1}


@pytest.mark.parametrize("guidance", [1, 10])
def test_prompt_to_score_matches_the_original_program(pipe, guidance):
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    prompts = json.loads((GOLDEN / "end_to_end" / "golden.json").read_text())["prompts"]
    results = pipe.generate(prompts, guidance=float(guidance), **GREEDY)
    for number, result in enumerate(results):
        np.testing.assert_array_equal(result.tokens[0], golden[f"cs{guidance}_sequences"][number, 1:])
        picture = np.asarray(result.images[0]).astype(int)
        # 1e-5 of float difference may fall on the other side of a truncation, in very few pixels.
        difference = np.abs(picture - golden[f"cs{guidance}_uint8"][number])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
        expected = golden[f"cs{guidance}_clip_logits_per_image"][number, number]
        assert result.scores[0] == pytest.approx(expected, abs=1e-4)


def test_captions_are_encoded_as_by_the_original_program(pipe):
    golden = np.load(GOLDEN / "end_to_end" / "golden.npz")
    prompts = json.loads((GOLDEN / "end_to_end" / "golden.json").read_text())["prompts"]
    input_ids, attention_mask = pipe.encode_text(prompts)
    np.testing.assert_array_equal(input_ids, golden["tok_input_ids"])
    np.testing.assert_array_equal(attention_mask, golden["tok_attention_mask"])
    ids, mask = pipe._uncond("")
    np.testing.assert_array_equal(ids, golden["tok_input_ids_uncond"][0])
    np.testing.assert_array_equal(mask, golden["tok_attention_mask_uncond"][0])


def drawn(result) -> dict[int, list[int]]:
    return dict(zip(result.indices, result.tokens.tolist(), strict=True))


def test_a_picture_depends_on_seed_prompt_and_number_only(pipe):
    one = drawn(pipe.generate(["a red apple"], candidates=1)[0])
    seven = drawn(pipe.generate(["a red apple"], candidates=7, keep=7)[0])
    many = pipe.generate(["a snail", "a red apple", "a boat"], candidates=11, keep=11)
    reordered = pipe.generate(["a red apple", "a boat", "a snail"], candidates=11, keep=11)
    assert one[0] == seven[0]
    assert len({tuple(tokens) for tokens in seven.values()}) == 7
    assert seven == {index: drawn(many[1])[index] for index in range(7)}
    assert [drawn(result) for result in many] == [drawn(reordered[place]) for place in (2, 0, 1)]
    assert drawn(pipe.generate(["a red apple"], candidates=1, seed=1)[0]) != one


def test_keys_are_all_different():
    keys = image_keys([(seed, prompt) for seed in (0, 1) for prompt in ("a", "b")], np.arange(4))
    assert len({tuple(key) for key in jax.random.key_data(keys).reshape(16, 2).tolist()}) == 16


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**32 - 1])
def test_keys_are_seed_prompt_and_number_folded_one_by_one(seed):
    key = jax.random.key(seed, impl="threefry2x32")
    for word in np.frombuffer(hashlib.sha256(b"a snail").digest(), "<u4"):
        key = jax.random.fold_in(key, word)
    wanted = [jax.random.key_data(jax.random.fold_in(key, number)).tolist() for number in (3, 4)]
    assert jax.random.key_data(image_keys([(seed, "a snail")], np.arange(3, 5)))[0].tolist() == wanted


def test_pixels_while_tokens_are_drawn_are_the_same(pipe):
    requests, calls = pipe.requests(["a boat", "a snail"], GenerationSettings(candidates=5, keep=5)), []
    alone = list(pipe.engine.run(requests, batch_size=2, overlap=False))
    together = list(pipe.engine.run(requests, lambda *call: calls.append(call), batch_size=2, overlap=True))
    for one, other in zip(alone, together, strict=True):
        assert (one.prompt, one.indices, one.scores) == (other.prompt, other.indices, other.scores)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(np.stack(one.images), np.stack(other.images))
        assert set(other.timings) == {"text", "tokens", "pictures", "scores"}
    assert {("tokens", 160, 160), ("pictures", 10, 10), ("scores", 10, 10)} <= set(calls)


def test_results_are_ranked(pipe):
    calls = []
    result = pipe.generate(["a boat"], candidates=9, keep=3, progress=lambda *call: calls.append(call))[0]
    everything = pipe.generate(["a boat"], candidates=9, keep=9)[0]
    assert result.scores == sorted(result.scores, reverse=True) == everything.scores[:3]
    assert result.indices == everything.indices[:3]
    assert sorted(everything.indices) == list(range(9))
    assert result.tokens.dtype == np.int32 and result.tokens.shape == (3, 16)
    assert [image.size for image in result.images] == [(16, 16)] * 3
    assert set(result.timings) == {"text", "tokens", "pictures", "scores"}
    assert {("tokens", 144, 144), ("pictures", 9, 9), ("scores", 9, 9)} <= set(calls)
    assert ("passes", max(everything.passes), 16) in calls and result.passes == everything.passes[:3]
    assert result.settings.top_k == 50  # the config's default, resolved


def test_stream_yields_each_prompt_as_it_is_drawn(pipe):
    stream = pipe.generate_each(["a boat", "a snail"], GenerationSettings(candidates=1))
    assert next(stream).prompt == "a boat"
    assert next(stream).prompt == "a snail"


@pytest.mark.slow
def test_the_same_pictures_however_they_are_decoded(pipe):
    options = {"candidates": 3, "keep": 3, "guidance": [1.0, 4.0]}
    sequential = pipe.generate(["a boat", "a snail"], decode="sequential", **options)
    for one, other in zip(sequential, pipe.generate(["a boat", "a snail"], decode="parallel", **options), strict=True):
        assert drawn(one) == drawn(other)
        assert one.window == 1 and one.passes == [16] * 3
        assert other.window > 1 and max(other.passes) < 16


@pytest.mark.slow
def test_the_same_pictures_in_calls_of_any_size(pipe):
    prompts = ["a boat", "a snail", "a red apple"]
    wanted = [drawn(result) for result in pipe.generate(prompts, candidates=5, keep=5)]
    for batch_size in (1, 2, 5, 10, 100):
        results = pipe.generate(prompts, candidates=5, keep=5, batch_size=batch_size)
        assert [drawn(result) for result in results] == wanted
    requests = pipe.requests(prompts, GenerationSettings(candidates=5, keep=5), None)
    overlapped = pipe.engine.run(requests, overlap=True)
    assert [drawn(result) for result in overlapped] == wanted


@pytest.mark.slow
def test_each_prompt_may_have_its_own_settings(pipe):
    options = {"seed": [3, 4, 3], "guidance": [1.0, 5.0, 5.0], "temperature": [1.0, 2.0, 0.5], "top_k": [9, 20, 50]}
    options |= {"top_p": [0.9, 0.5, 1.0], "negative_prompt": ["", "a boat", ""], "last_guidance": [1.0, 2.0, 5.0]}
    prompts = ["a boat", "a snail", "a red apple"]
    together = pipe.generate(prompts, candidates=3, keep=3, **options)
    for number, (prompt, result) in enumerate(zip(prompts, together, strict=True)):
        own = {name: values[number] for name, values in options.items()}
        assert drawn(pipe.generate([prompt], candidates=3, keep=3, **own)[0]) == drawn(result)
    with pytest.raises(UserError, match="guidance has 2 values for 3 prompts"):
        pipe.generate(prompts, guidance=[1.0, 2.0])


def test_what_not_to_draw_changes_the_picture(pipe):
    plain, negative = (
        drawn(pipe.generate(["a boat"], candidates=2, keep=2, negative_prompt=text)[0]) for text in (" ", "a red boat")
    )
    assert plain == drawn(pipe.generate(["a boat"], candidates=2, keep=2)[0]) != negative


def test_a_bad_negative_prompt_is_called_one(pipe):
    with pytest.raises(UserError, match=r"^the negative prompt has no words"):
        pipe.generate(["a boat"], candidates=1, negative_prompt="<b></b>")


@pytest.mark.parametrize(("guidance", "last", "notes"), [(1.0, None, 1), (1.0, 1.0, 1), (3.0, None, 0), (1.0, 2.0, 0)])
def test_a_negative_prompt_that_does_nothing_is_noted(pipe, caplog, guidance, last, notes):
    pipe.generate_each(["a boat"], GenerationSettings(guidance=guidance, last_guidance=last, negative_prompt="a snail"))
    assert caplog.text.count("negative prompt does nothing where guidance is 1") == notes


@pytest.mark.slow
def test_a_look_at_growing_pictures_changes_nothing(pipe):
    settings = GenerationSettings(candidates=3, keep=3)
    previews = list(pipe.stream(["a boat", "a snail"], settings, every=8, previews=2))
    assert [type(preview).__name__ for preview in previews] == ["Preview", "Result"] * 2
    for number, plain in enumerate(pipe.generate(["a boat", "a snail"], candidates=3, keep=3)):
        preview, result = previews[2 * number : 2 * number + 2]
        assert drawn(result) == drawn(plain)
        assert (preview.number, preview.count, preview.total) == (number, 8, 16)
        assert len(preview.images) == 2 and preview.images[0].size == (16, 16)
        for index, row in enumerate(preview.tokens):
            assert row[:8].tolist() == drawn(plain)[index][:8]
    with pytest.raises(UserError, match="every"):
        pipe.stream(["a boat"], every=0)
    with pytest.raises(UserError, match="give either settings or candidates, seed"):
        pipe.stream(["a boat"], GenerationSettings(), candidates=2, seed=3)


def test_looks_come_before_their_own_result_where_work_overlaps(pipe):
    requests = pipe.requests(["a boat", "a snail"], GenerationSettings(candidates=2))
    stream = list(pipe.engine.run(requests, every=4, overlap=True))
    assert [item.prompt for item in stream] == ["a boat"] * 4 + ["a snail"] * 4
    assert [type(item).__name__ for item in stream] == (["Preview"] * 3 + ["Result"]) * 2


def test_a_picture_can_be_continued_filled_in_and_varied(pipe):
    whole = pipe.generate(["a boat"], candidates=1)[0]
    picture = whole.images[0]
    tokens = np.asarray(pipe.vqgan.encode(np.asarray(picture, np.float32)[None] / 255))[0]

    def kept(canvas, **options):
        results = pipe.generate(["a snail"], candidates=4, keep=4, canvas=canvas, **options)[0]
        assert results.canvas is canvas
        return np.stack([drawn(results)[index] for index in range(4)]) == tokens

    assert kept(pipe.canvas(picture, top=0.5))[:, :8].all()
    mask = np.zeros((16, 16), bool)
    mask[5, 9] = True  # a pixel of token [1, 2]
    same = kept(pipe.canvas(np.asarray(picture), mask=mask))
    assert np.delete(same, 6, axis=1).all() and not same[:, 6].all()
    by_token = np.zeros((4, 4), bool)
    by_token[1, 2] = True
    assert pipe.canvas(picture, mask=by_token) == pipe.canvas(picture, mask=mask)
    for top, rows in ((0.01, 1), (0.99, 3)):
        tokens_kept = np.array(pipe.canvas(picture, top=top).tokens) >= 0
        assert tokens_kept.tolist() == [True] * 4 * rows + [False] * 4 * (4 - rows)
    varied = kept(pipe.canvas(picture, vary=0.5))
    assert 0.3 < varied.mean() < 1 and len({tuple(row) for row in varied.tolist()}) > 1
    alone = pipe.generate(["a snail"], candidates=1, canvas=pipe.canvas(picture, vary=0.5))[0]
    assert ((alone.tokens[0] == tokens) == varied[0]).all()


def test_pictures_and_masks_that_do_not_fit_are_refused(pipe, tmp_path):
    picture = np.zeros((16, 16, 3), np.uint8)
    (tmp_path / "no.png").write_text("no picture")
    for options, match in (
        ({"top": 1.5}, "top"),
        ({"mask": np.zeros((16, 16), bool)}, "mask is empty in the image's central square"),
        ({"mask": np.ones((7, 9), bool)}, "mask is 9 x 7"),
        ({"vary": 2}, "vary"),
        ({}, "nothing would be drawn"),
        (
            {"mask": np.ones((16, 16))},
            r"the mask is an array of float64 \[16, 16\]: .* such as mask > 0",
        ),
        ({"mask": np.ones((16, 16, 4), np.uint8)}, r"the mask is an array of uint8 \[16, 16, 4\]"),
    ):
        with pytest.raises(UserError, match=match):
            pipe.canvas(picture, **options)
    with pytest.raises(UserError, match=r"the picture is an array of float32 \[16, 16, 3\]"):
        pipe.canvas(picture.astype(np.float32), top=0.5)
    with pytest.raises(UserError, match=r"no\.png: not an image"):
        pipe.canvas(tmp_path / "no.png", top=0.5)
    with pytest.raises(UserError, match="canvas has 3 tokens"):
        pipe.generate(["a boat"], canvas=Canvas([1, 2, -1]))
    with pytest.raises(UserError, match="token 5000"):
        pipe.generate(["a boat"], canvas=Canvas([5000] + 15 * [-1]))


@pytest.mark.slow
def test_int8_weights_draw_and_are_told(golden_bundle):
    pipe = DalleMini.from_pretrained(golden_bundle, dtype="int8")
    assert pipe.generate(["a boat"], candidates=2)[0].tokens.shape == (2, 16)
    assert pipe.provenance()["dtype"] == "int8"


@pytest.mark.slow
def test_ids_beyond_the_codebook_are_never_drawn(tmp_path, golden_bundle):
    folder = tmp_path / "bundle"
    shutil.copytree(golden_bundle, folder)
    shutil.copytree(GOLDEN / "dallebart" / "e_megalike_fp16_scan", folder / "dalle", dirs_exist_ok=True)
    tokenizer_fits(folder)
    result = DalleMini.from_pretrained(folder).generate(["a"], candidates=8, keep=8, temperature=50.0, top_k=79)[0]
    assert result.tokens.max() < 64 and result.settings.top_k == 64


def tokenizer_fits(folder) -> None:
    """Cut the tokenizer down to the 48 rows of the golden model's text embedding."""
    path = folder / "dalle" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {word: id for word, id in tokenizer["model"]["vocab"].items() if id < 48}
    tokenizer["model"]["merges"] = []
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 48]
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("prompt", ["a 🍎 on a table", "красное яблоко", "赤いりんご", "تفاحة حمراء", "🍎"])
def test_emoji_and_other_scripts_are_drawn(pipe, prompt):
    assert len(pipe.generate([prompt], candidates=1)[0].images) == 1


@pytest.mark.parametrize("prompt", ["a red apple " * 834, "a" * 10_000])
def test_a_long_prompt_is_truncated_with_a_notice(pipe, caplog, prompt):
    assert len(pipe.generate([prompt], candidates=1)[0].images) == 1
    assert "prompt 1 is too long and was truncated" in caplog.text


@pytest.mark.parametrize("prompts", [[], [""], ["a boat", " \n\t"], ["..."], ["\u200b"], ["<b></b>"], "a boat", [None]])
def test_prompts_without_words_are_refused(pipe, prompts):
    with pytest.raises(UserError, match="prompt"):
        pipe.generate(prompts)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("candidates", (0, -1, 5000, 2.5, True)),
        ("keep", (0, -1, 17)),
        ("seed", (-1, 2**32, 0.5)),
        ("guidance", (0, -1, NAN, INFINITE, 10**400)),
        ("temperature", (0, -0.5, NAN, INFINITE)),
        ("top_k", (0, -1, 1.5)),
        ("top_p", (0, -0.1, 1.1, NAN)),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(UserError, match=field):
            GenerationSettings(**{field: value})


def damaged(golden_bundle, tmp_path, part, **changes):
    folder = tmp_path / "bundle"
    shutil.copytree(golden_bundle, folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_vqgan_of_another_codebook_or_grid_is_refused(pipe):
    from dataclasses import replace

    from dalle_mini.weights.bundle import check_fit

    model, vqgan = pipe.model.config, pipe.vqgan.config
    for changed, message in (
        (replace(vqgan, n_embed=128), "n_embed 128"),
        (replace(vqgan, n_embed=32), "n_embed 32"),
        (replace(vqgan, resolution=32), "8x8 tokens"),
    ):
        with pytest.raises(UserError, match=message) as error:
            check_fit(model, changed, pipe.folders)
        assert str(pipe.folders["vqgan"]) in str(error.value) and str(pipe.folders["dalle"]) in str(error.value)


def test_folders_may_be_given_one_by_one(golden_bundle, pipe):
    parts = DalleMini.from_pretrained(
        golden_bundle / "dalle", vqgan=str(golden_bundle / "vqgan"), clip=golden_bundle / "clip"
    )
    assert parts.generate(["a boat"], **GREEDY)[0].scores == pipe.generate(["a boat"], **GREEDY)[0].scores


def test_the_folder_of_a_run_is_refused_with_the_way_to_its_weights(tmp_path, golden_bundle):
    (tmp_path / "config.json").write_text('{"trainer": "seq2seq", "training": {}, "loop": {}}')
    with pytest.raises(UserError, match=f"dalle-mini convert {tmp_path} FOLDER"):
        DalleMini.from_pretrained(tmp_path)
    shutil.copytree(golden_bundle / "dalle", tmp_path / "final")
    for sources in ({"source": tmp_path}, {"source": golden_bundle, "vqgan": tmp_path}):
        with pytest.raises(UserError, match=f"{tmp_path}: the folder of a training run.* name {tmp_path}/final$"):
            DalleMini.from_pretrained(**sources)


def test_folders_that_hold_no_model_are_refused(tmp_path, golden_bundle):
    with pytest.raises(UserError, match="holds no model"):
        DalleMini.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        DalleMini.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        DalleMini.from_pretrained(golden_bundle, clip=tmp_path / "nowhere")
    with pytest.raises(UserError, match="--vqgan and --clip"):
        DalleMini.from_pretrained(golden_bundle / "dalle")
    folder = damaged(golden_bundle, tmp_path, "dalle")
    (folder / "dalle" / "flax_model.msgpack").unlink()
    with pytest.raises(UserError, match="no weights"):
        DalleMini.from_pretrained(folder)


def test_provenance_names_the_weights(pipe):
    provenance = pipe.provenance()
    assert provenance["models"]["vqgan"]["folder"] == "vqgan"
    assert provenance["models"]["dalle"]["weights"] == ["flax_model.msgpack"]
    assert len({model["sha256"] for model in provenance["models"].values()}) == 3
    json.dumps(provenance)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_sizes_are_whole_numbers(pipe, value):
    with pytest.raises(UserError, match=r"batch_size is .*: it must be a whole number, at least 1"):
        pipe.generate(["a boat"], candidates=1, batch_size=value)
    for name in ("every", "previews"):
        with pytest.raises(UserError, match=rf"{name} is .*: it must be a whole number, at least 1"):
            pipe.stream(["a boat"], **{name: value})


def test_what_is_no_picture_and_no_canvas_is_called_so(pipe):
    for picture in (3, [[1]]):
        with pytest.raises(UserError, match=r"the picture is (int|list): it must be a file, a PIL image or an array"):
            pipe.canvas(picture, top=0.5)
    with pytest.raises(UserError, match=r"a canvas is str: make one by pipe\.canvas"):
        pipe.redraw("a boat", 0, canvas="x")
