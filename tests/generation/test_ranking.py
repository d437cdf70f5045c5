"""The ranker against the published pipeline's CLIP scores (tests/golden/end_to_end)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.generation.ranking import ClipRanker

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = json.loads((GOLDEN / "end_to_end" / "golden.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "end_to_end" / "golden.npz"))


@pytest.fixture(scope="module")
def ranker():
    return ClipRanker.from_pretrained(GOLDEN / "clip")


@pytest.mark.parametrize("scale", ["cs1", "cs10"])
def test_scores_are_the_published_pipelines(ranker, golden, scale):
    for column, prompt in enumerate(PROMPTS):
        scores = ranker.scores(golden[f"{scale}_uint8"], prompt)
        assert (scores.dtype, scores.shape) == (np.float32, (3,))
        np.testing.assert_allclose(scores, golden[f"{scale}_clip_logits_per_image"][:, column], rtol=0, atol=1e-4)


def test_a_score_does_not_depend_on_the_other_pictures_and_nothing_recompiles(ranker, golden):
    images = np.tile(golden["cs1_uint8"], (7, 1, 1, 1))  # 21: three chunks, the last one padded
    scores = ranker.scores(images, PROMPTS[1])
    np.testing.assert_array_equal(scores, np.tile(ranker.scores(images[:3], PROMPTS[1]), 7))
    assert ranker.scores(images[:0], PROMPTS[1]).shape == (0,)
    programs = ranker._image_embeds, ranker._logits, ranker._text_embeds
    assert [program._cache_size() for program in programs] == [1, 1, 1]


@pytest.mark.parametrize("counts", [(1,) * 16, (3, 9, 1, 2), (1, 0, 7, 8, 1)])
def test_prompts_share_calls_and_change_no_bit_of_a_score(ranker, counts, monkeypatch):
    rng = np.random.default_rng(sum(counts))
    images = [rng.integers(0, 256, (count, 40, 40, 3), dtype=np.uint8) for count in counts]
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(len(counts))]
    alone = [
        np.concatenate([np.empty(0, np.float32), *(ranker.scores(image[None], prompt) for image in some)])
        for some, prompt in zip(images, prompts, strict=True)
    ]
    calls, told, embeds = [], [], ranker._image_embeds
    monkeypatch.setattr(ranker, "_image_embeds", lambda *given: calls.append(1) or embeds(*given))
    found = ranker.scores_of(images, prompts, told.append)
    for some, wanted in zip(found, alone, strict=True):
        np.testing.assert_array_equal(some, wanted)
    assert sum(told) == sum(counts) and len(calls) == -(-sum(counts) // ranker.chunk)
    assert ranker.scores_of([], []) == []


def test_empty_and_very_long_prompts_have_scores(ranker, golden):
    for prompt in ("", "🍎 " * 5000):
        assert np.isfinite(ranker.scores(golden["cs1_uint8"], prompt)).all()


def test_rank_is_best_first_and_stable(ranker):
    assert ranker.rank(np.array([1.0, 3.0, 2.0, 3.0], np.float32), 3).tolist() == [1, 3, 2]
    assert ranker.rank(np.zeros(5), 5).tolist() == [0, 1, 2, 3, 4]
    for keep in (0, 6, -1):
        with pytest.raises(UserError, match=f"keep is {keep}"):
            ranker.rank(np.zeros(5), keep)


@pytest.mark.parametrize("content", ["{", "[]", '{"size": 32, "crop_size": 32}', '{"image_mean": null}'])
def test_an_unfit_preprocessor_config_is_named(tmp_path, content):
    shutil.copytree(GOLDEN / "clip", folder := tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        ClipRanker.from_pretrained(folder).scores(np.zeros((1, 24, 24, 3), np.uint8), "")


@pytest.mark.parametrize("content", [None, "{}", '{"size": 24, "crop_size": {"height": 24, "width": 24}}'])
def test_what_the_preprocessor_config_leaves_out_is_as_openai_does_it(tmp_path, ranker, golden, content):
    shutil.copytree(GOLDEN / "clip", folder := tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    file.unlink() if content is None else file.write_text(content)
    images = golden["cs1_uint8"]
    np.testing.assert_array_equal(
        ClipRanker.from_pretrained(folder).scores(images, PROMPTS[0]), ranker.scores(images, PROMPTS[0])
    )


def test_a_config_that_ends_texts_elsewhere_than_the_tokenizer(tmp_path):
    shutil.copytree(GOLDEN / "clip", folder := tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 49407
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="says eos_token_id 49407, but its tokenizer ends texts with 573"):
        ClipRanker.from_pretrained(folder)
