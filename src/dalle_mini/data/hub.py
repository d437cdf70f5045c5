"""A data set repository of the Hub -> the folder in the cache that holds a split of it."""

from __future__ import annotations

from pathlib import Path

from dalle_mini.data.shards import MANIFEST
from dalle_mini.errors import UserError
from dalle_mini.weights.hub_errors import explained


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

    Raises UserError where there is no such repository, no access, no network and nothing cached, or no shards.
    """
    from huggingface_hub import snapshot_download

    def fetch(revision: str | None, patterns: list[str]) -> Path:
        with explained(f"data set {repo_id}"):
            folder = snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
            )
        return Path(folder)

    folder = fetch(revision, [MANIFEST])
    if (folder / MANIFEST).exists():
        return fetch(folder.name, [MANIFEST, f"{split}-*.parquet"])  # the folder's name is the commit
    fetch(folder.name, [f"{split}/*.parquet"] if split != "train" else ["train/*.parquet", "[!/]*.parquet"])
    if not any(folder.glob("**/*.parquet")):
        raise UserError(f"data set {repo_id}: neither a {MANIFEST} nor Parquet files of {split} pictures")
    return folder
