"""The editions of the shipped model, by what is recorded of their weights with each image, and where they are kept."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Edition:
    """Weights that this package once shipped.

    Attributes:
        name: "second".
        commit: of this project's history, which holds them.
        megabytes: of the folder.
        sha256: part -> the digest of its weights, as `bundle.identity` tells it.
    """

    name: str
    commit: str
    megabytes: int
    sha256: Mapping[str, str]

    @property
    def where(self) -> str:
        """How to get it, and what that takes, in one line."""
        return (
            f"take it ({self.megabytes} MB) from a release of its time, or in a clone of this project: git archive "
            f"--prefix={self.name}/ {self.commit}:src/dalle_mini/assets/emoji | tar -x"
        )


EDITIONS = (
    Edition(
        "first",
        "43ab47b",
        19,
        {"dalle": "b93c329e9364aab4", "vqgan": "64e4be61c4d85267", "clip": "0fe1525d350144ac"},
    ),
    Edition(
        "second",
        "76da85f",
        33,
        {"dalle": "f203efed1a7e40e3", "vqgan": "2e1a59963de137d0", "clip": "324ca93f2bd004cb"},
    ),
)


def edition_of(sha256: Mapping[str, str]) -> Edition | None:
    """The edition whose parts have these digests; None if they are no edition's."""
    return next((edition for edition in EDITIONS if edition.sha256 == sha256), None)
