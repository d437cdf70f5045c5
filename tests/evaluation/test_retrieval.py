"""Recalls and zero-shot accuracies by hand, with equal captions and ties."""

import numpy as np
import pytest

from dalle_mini.evaluation.retrieval import accuracies, class_of, class_vectors, ranks, recalls


def test_recalls_by_hand():
    """Twelve pairs; caption i is nearest to picture i but for two."""
    pictures = np.eye(12, dtype=np.float32)
    texts = np.eye(12, dtype=np.float32)
    texts[0] = [0.5, 0.6, *[0] * 10]  # its picture comes second
    texts[1] = [*[0.6] * 1, 0.1, *[0.2] * 10]  # its picture comes last
    found = recalls(pictures, texts, [str(i) for i in range(12)])
    assert found["recall"] == pytest.approx(10 / 12)
    assert found["recall_at_5"] == found["recall_at_10"] == pytest.approx(11 / 12)
    # Pictures: the first is nearest to caption 1 (0.6 to 0.5), the second to caption 0 (0.6, then its own: 0.1).
    assert found["caption_recall"] == pytest.approx(10 / 12)
    assert found["caption_recall_at_5"] == 1


def test_any_picture_of_an_equal_caption_is_right():
    pictures, texts = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1, 0, 2]]
    assert recalls(pictures, texts, ["a", "a", "b"])["recall"] == 1
    assert recalls(pictures, texts, ["a", "c", "b"])["recall"] == pytest.approx(1 / 3)


def test_who_cannot_tell_finds_nothing():
    same = np.ones((20, 4), np.float32) / 2
    found = recalls(same, same, [str(i) for i in range(20)])
    assert set(found.values()) == {0.0}


def test_ranks_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    queries, among = rng.standard_normal((1100, 8)), rng.standard_normal((1100, 8))
    owner = rng.integers(0, 400, 1100)
    found = ranks(queries, among, owner)
    for i in (0, 511, 512, 1099):
        similar = among @ queries[i]
        best = similar[owner == owner[i]].max()
        assert found[i] == ((owner != owner[i]) & (similar >= best)).sum()


def test_a_class_is_the_mean_of_its_prompts():
    vectors = np.array([[1, 0], [0, 1], [0, -1], [0, -1]], np.float32)
    np.testing.assert_allclose(class_vectors(vectors, 2), [[0.5**0.5, 0.5**0.5], [0, -1]], rtol=1e-6)


def test_accuracies_by_hand():
    classes = np.eye(7, dtype=np.float32)
    pictures = np.array([[1, 0, 0, 0, 0, 0, 0], [0.9, 0.8, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1, 0]], np.float32)
    found = accuracies(pictures, classes, np.array([0, 1, 6]))
    assert found == {"zero_shot": pytest.approx(1 / 3), "zero_shot_top_5": pytest.approx(2 / 3)}
    assert accuracies(0 * pictures, classes, np.array([0, 1, 2]))["zero_shot"] == 0


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a red apple on white", 1),
        ("An Apple", 0),
        ("pineapples", None),
        ("an apple and a t-shirt", None),
        ("T Shirt", 2),
        ("red_apple/17", 1),
        ("", None),
    ],
)
def test_which_class_a_caption_names(caption, wanted):
    assert class_of(caption, ["apple", "red apple", "t-shirt"]) == wanted
