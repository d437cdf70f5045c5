"""How well a CLIP tells pictures and texts apart: retrieval among pairs, and zero-shot classification."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

AT = (1, 5, 10)
ROWS = 512  # queries at a time


def recalls(pictures: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Recall@1, 5 and 10 of n pairs: captions that find a picture of theirs, and pictures that find their caption.

    A picture is a caption's own if its caption is the same.

    Args:
        pictures, texts: unit vectors float32 [n, D], in the order of `captions`.
    Returns:
        Shares under `recall`, `recall_at_5`, `recall_at_10` of captions, and `caption_recall`... of pictures.
    """
    number = {caption: i for i, caption in enumerate(captions)}
    owner = np.array([number[caption] for caption in captions])
    found = {}
    for name, (queries, among) in {"recall": (texts, pictures), "caption_recall": (pictures, texts)}.items():
        places = ranks(queries, among, owner)
        for k in AT:
            found[name if k == 1 else f"{name}_at_{k}"] = float(np.mean(places < k))
    return found


def ranks(queries: np.ndarray, among: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """How many wrong answers come before the best right one, int [n]; those that are as similar do too.

    Right is what has the query's `owner`, of n of each.
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


def accuracies(pictures: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`zero_shot` and `zero_shot_top_5`: shares of pictures whose class is the most similar, or among the first five.

    `pictures` [n, D] and `classes` [C, D] are unit vectors, `labels` int [n]. Of classes that are as similar, the right
    one comes last.
    """
    similar = pictures @ classes.T
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
