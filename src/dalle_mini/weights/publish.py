"""Weights -> a repository of the Hugging Face Hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from dalle_mini.runtime.files import write_whole
from dalle_mini.version import __version__
from dalle_mini.weights.bundle import CARD
from dalle_mini.weights.hub.errors import client, explained
from dalle_mini.weights.model_card import model_card


def push(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload with dalle-mini",
    revision: str | None = None,
    license: str = "apache-2.0",
) -> str:
    """Upload what `save(folder)` writes, made a repository if there is none, and return the commit's address.

    A model card is added where neither the folder nor the repository has one. The folder is written to a temporary
    place first (`TMPDIR`), and is as large as the weights.

    Args:
        repo_id: `owner/name`.
        private: for a new repository; one that is there stays as it is.
        token: one that may write; `HF_TOKEN` or the token of `hf auth login` by default.
        revision: the branch, made if there is none; the default is `main`.
        license: of the weights, for the card, as the Hub spells it.
    Raises:
        UserError: no access, no connection, or no room; the message names the repository.
    """
    api = client().HfApi(token=token, library_name="dalle-mini", library_version=__version__)
    with explained(repo_id):  # first, since who may not write learns it at once
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dalle-mini-") as temporary:
        folder = Path(temporary) / "model"
        save(folder)
        with explained(repo_id):
            if not (folder / CARD).exists() and not api.file_exists(repo_id, CARD, revision=revision):
                write_whole(folder / CARD, model_card(folder, repo_id, license))
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )
    return str(commit.commit_url)
