"""Metrics of a CLIP: retrieval among pairs, and zero-shot classification."""

import re
from collections.abc import Sequence

import numpy as np

AT = (1, 5, 10)
ROWS = 512  # queries at a time


def recalls(images: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Recall@1, 5 and 10 of n pairs: captions that find an image of theirs, and images that find their caption.

    An image belongs to every caption that equals its own.

    Args:
        images, texts: unit vectors float32 [n, D], in the order of `captions`.
    Returns:
        Shares of captions under `recall`, `recall_at_5`, `recall_at_10`, and of images under `caption_recall`...
    """
    number = {caption: i for i, caption in enumerate(captions)}
    owner = np.array([number[caption] for caption in captions])
    found = {}
    for name, (queries, among) in {"recall": (texts, images), "caption_recall": (images, texts)}.items():
        places = ranks(queries, among, owner)
        for k in AT:
            found[name if k == 1 else f"{name}_at_{k}"] = float(np.mean(places < k))
    return found


def ranks(queries: np.ndarray, among: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The number of wrong answers before the best right one, int [n]; equally similar ones count.

    Args:
        queries, among: unit vectors [n, D].
        owner: int [n]; an answer with the query's number is right.
    """
    places = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        similar = queries[rows] @ among.T
        right = owner[rows, None] == owner
        best = np.where(right, similar, -np.inf).max(axis=1, keepdims=True)
        places[rows] = np.sum(~right & (similar >= best), axis=1)
    return places


def class_vectors(vectors: np.ndarray, classes: int) -> np.ndarray:
    """Each class's mean of its prompts' unit vectors, as a unit vector (Radford et al. 2021, section 3.1.4).

    `vectors` float32 [classes * templates, D], a class's next to each other -> float32 [classes, D].
    """
    means = vectors.reshape(classes, -1, vectors.shape[-1]).mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)


def accuracies(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`zero_shot` and `zero_shot_top_5`: shares of images whose class is the most similar, or among the first five.

    `images` [n, D] and `classes` [C, D] are unit vectors, `labels` int [n]. The right class comes last among equally
    similar ones.
    """
    similar = images @ classes.T
    own = np.take_along_axis(similar, labels[:, None], axis=1)
    before = np.sum(similar >= own, axis=1) - 1
    return {"zero_shot": float(np.mean(before < 1)), "zero_shot_top_5": float(np.mean(before < 5))}


def class_of(caption: str, classes: Sequence[str]) -> int | None:
    """The class that a caption names, in any case and as whole words; None where it names none or several.

    A name within a longer one that is named too ("apple" in "red apple") is not meant. Underscores and hyphens are as
    good as spaces, for a folder's name may be the caption.
    """
    text, names = _plain(caption), [_plain(name) for name in classes]
    named = [i for i, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    longest = [i for i in named if not any(i != j and names[i] in names[j] for j in named)]
    return longest[0] if len(longest) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.lower()).strip()
