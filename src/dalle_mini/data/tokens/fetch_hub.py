"""A data set repository of the Hub -> the folder in the cache that holds a split of it."""

import fnmatch
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dalle_mini.data.tokens.shards import MANIFEST
from dalle_mini.errors import UserError
from dalle_mini.weights.hub.repository import Repository

THREADS = 8  # files that are fetched at once


def fetch_dataset(
    repo_id: str,
    split: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch the manifest and the shards of a split, of one commit, as far as the cache does not have them.

    Raises:
        UserError: there is no such repository, no access, no network and nothing cached, or no shards.
    """
    place = Repository(repo_id, "", revision, token, cache_dir, local_files_only, kind="dataset")
    if place.listing is None:
        return place.cached_folder()
    if MANIFEST in place.listing:
        names = _like(place.listing, f"{split}-*.parquet")
    else:
        names = _like(place.listing, f"{split}/*.parquet", *(["[!/]*.parquet"] if split == "train" else []))
    if not names and MANIFEST not in place.listing:
        raise UserError(f"data set {repo_id}: neither a {MANIFEST} nor Parquet files of {split} images")
    first, *others = [MANIFEST, *names] if MANIFEST in place.listing else names
    path = place.fetch(first)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(place.fetch, others))
    return Path(str(path).removesuffix(first))


def _like(listing: Iterable[str], *patterns: str) -> list[str]:
    return sorted(name for name in listing if any(fnmatch.fnmatchcase(name, one) for one in patterns))
