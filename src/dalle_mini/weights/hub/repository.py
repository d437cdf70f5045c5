"""A source of weights -> a folder on this machine. Every verb and every setting that names weights ends up here.

A source is a folder, a repository of the Hugging Face Hub (`owner/name`, or a folder in it, `owner/name/dalle`, either
with `@revision`), a wandb artifact (`entity/project/name:version`, see `artifacts`), or "shipped": the bundle in the
package.

From a repository come only the files that the loaders read, one format of weights, small files first: where a cache
holds the weights it holds what goes with them. The cache is the Hub client's own, shared with every other program. A
branch or a tag costs one request a load, to learn its commit; a commit that is cached costs none, nor does anything
under `HF_HUB_OFFLINE`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.parsing import read_object
from dalle_mini.runtime.paths import no_folder
from dalle_mini.version import __version__
from dalle_mini.weights.folder import CONFIG, INDEX, WEIGHTS
from dalle_mini.weights.hub.answers import OddAnswer, is_commit, is_file_name, one_file
from dalle_mini.weights.hub.errors import Unreachable, client, explained

SHIPPED = Path(__file__).parents[2] / "assets" / "emoji"
SHIPPED_NAME = "shipped"  # what it is called where a source is named
TOKENIZER_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do; the first is preferred

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)/?(?:@(\S+))?")
_ARTIFACT = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+:[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger("dalle_mini")


@dataclasses.dataclass(frozen=True)
class Needs:
    """Which files of a folder to fetch.

    Attributes:
        weights: `config.json` and the weights, in one format.
        tokenizer: the tokenizer's files.
        names: further files that must be there.
        optional: further files, if they are there.
    """

    weights: bool = True
    tokenizer: bool = False
    names: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def files(self, is_there: Callable[[str], object], paths: Mapping[str, Path]) -> Iterator[str]:
        """The files' names, the indispensable last; the caller puts each one's path into `paths` before the next."""
        if self.weights:
            yield CONFIG
        yield from filter(is_there, (*self.optional, *(TOKENIZER_SETTINGS if self.tokenizer else ())))
        yield from self.names
        if self.tokenizer:
            yield from next((form for form in TOKENIZERS if all(map(is_there, form))), TOKENIZERS[0])
        if self.weights:
            name = next(filter(is_there, WEIGHTS), WEIGHTS[0])
            yield name
            if name.endswith(INDEX):
                yield from _shards(paths[name])


NETWORK = Needs()


def resolve(
    source: str | os.PathLike,
    needs: Needs = NETWORK,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that a source names, with the files that are needed fetched if they lie elsewhere.

    Args:
        source: as above. A path that exists on this machine is never looked for elsewhere.
        revision: branch, tag or commit, of a repository; the default is `main`.
        token: for private and gated repositories; `HF_TOKEN` or the token of `hf auth login` by default.
        cache_dir: where downloads are kept; the Hub client's cache by default (`HF_HOME`, `HF_HUB_CACHE`).
        local_files_only: make no request.
    Raises:
        UserError: no such folder or repository, no access, a file that is not there, a damaged download, no network and
            nothing cached. The message names the repository and the way out.
    """
    place = open_source(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    return place.take(needs=needs)


def open_source(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> "Folder | Repository":
    """The folder or repository that a source names, before anything of it is fetched; arguments as of `resolve`."""
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        return Folder(path)
    text = os.fspath(source)
    if text == SHIPPED_NAME:
        if not SHIPPED.is_dir():
            raise UserError(f"{SHIPPED}: the model that ships with the package is missing: name another one")
        return Folder(SHIPPED)
    if isinstance(source, os.PathLike) or path.is_absolute() or text.startswith("."):
        raise UserError(no_folder(source))
    if _ARTIFACT.fullmatch(text):
        from dalle_mini.weights.hub.artifacts import fetch

        return Folder(fetch(text, cache_dir, local_files_only))
    match = _REPOSITORY.fullmatch(text)
    if not match:
        forms = "a repository of the Hub is written owner/name, a wandb artifact entity/project/name:version"
        raise UserError(f"{no_folder(text, [SHIPPED_NAME])}; {forms}")
    repo_id, inside, named = match.groups()
    if inside and os.path.isdir(repo_id):  # the beginning of a path, not an owner
        raise UserError(no_folder(text))
    if named and revision and named != revision:
        raise UserError(f"{text} names one revision and revision={revision!r} another: give one of them")
    return Repository(repo_id, inside.strip("/"), named or revision, token, cache_dir, local_files_only, is_named=True)


def origin(folder: Path) -> dict[str, str] | None:
    """`{"repository": "owner/name", "commit": ...}` of a folder in the Hub's cache, None of any other."""
    # <cache>/models--<owner>--<name>/snapshots/<commit>[/<folder>], which the Hub documents for other programs.
    for commit in (folder, *folder.parents):
        repository = commit.parent.parent
        if commit.parent.name == "snapshots" and repository.name.startswith("models--"):
            return {"repository": repository.name.removeprefix("models--").replace("--", "/", 1), "commit": commit.name}
    return None


@contextlib.contextmanager
def blaming_cache(folder: Path) -> Iterator[None]:
    """Within it, a UserError about a file that was cached from the Hub also says what to delete if that is damaged."""
    try:
        yield
    except UserError as error:
        files = [path for path in folder.glob("*") if str(path) in str(error)] if origin(folder) else []
        if not files:
            raise
        path = max(files, key=lambda path: len(path.name))  # x.safetensors.index.json, not x.safetensors
        is_damaged = _is_damaged(path)
        if is_damaged is False:
            raise
        cause = "the cached copy is damaged:" if is_damaged else "if the cached copy is damaged,"
        raise UserError(f"{error}; {cause} delete {path.resolve()} and run again") from None


class Folder:
    """A folder on this machine, with the interface of `Repository`."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def first(self, *names: str) -> str | None:
        """The first of these files that is there, or None."""
        return next((name for name in names if (self.path / name).is_file()), None)

    def take(self, inside: str = "", needs: Needs = NETWORK) -> Path:
        """The folder, or the one of this name inside. Its reader says what it lacks."""
        return self.path / inside


class _Damaged(UserError):
    """A download is not what the Hub has."""


class Repository:
    """A repository of the Hub at a revision. The arguments are those of `resolve`.

    Args:
        inside: the folder of the repository that names are relative to; "" is the repository itself.
        kind: "model" or "dataset".
        is_named: whether the user gave the name, who may have meant a folder.
    """

    def __init__(
        self,
        repo_id: str,
        inside: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        kind: str = "model",
        is_named: bool = False,
    ):
        constants = client().constants
        from huggingface_hub.utils import validate_repo_id

        self.id, self.revision, self._token, self._kind = repo_id, revision or "main", token, kind
        with explained(repo_id):
            validate_repo_id(repo_id)
        self._inside = f"{inside}/" if inside else ""
        # Where the Hub has nothing either, a message begins with this.
        folder = no_folder(f"{repo_id}/{self._inside}".rstrip("/")) if is_named else ""
        self._no_folder = f"{folder}; nor, as a repository of the Hub: " if is_named else ""
        self._cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._offline = local_files_only or constants.HF_HUB_OFFLINE
        # May the cache answer without the Hub? A branch's copy may be out of date, a commit's never is.
        self._is_settled = self._offline or bool(_COMMIT.fullmatch(self.revision))
        self._unreachable: str | None = None  # why, once a request has failed
        self._is_noted = False  # does the cache know by now which commit the revision is?
        self._has_warned = False

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f" at {self.revision}"
        return f"{self.id}/{self._inside}".rstrip("/") + at

    def first(self, *names: str) -> str | None:
        """The first of these files that is there, or None. Raises UserError where that cannot be known."""
        if self._is_settled or self.listing is None:
            found = next((name for name in names if self._cached(self._inside + name)), None)
            if found:
                return found
        if self.listing is None:
            raise self._absent()
        return next((name for name in names if self._inside + name in self.listing), None)

    def take(self, inside: str = "", needs: Needs = NETWORK) -> Path:
        """Fetch what is not cached of a folder's files and return that folder in the cache.

        Args:
            inside: the folder; "" is the one that the source named.
        """
        prefix = self._inside + (f"{inside}/" if inside else "")
        if self._is_settled or self.listing is None:
            folder = self._take_cached(prefix, needs)
            if folder:
                return folder
        if (listing := self.listing) is None:
            raise self._absent()
        paths: dict[str, Path] = {}
        for name in needs.files(lambda name: prefix + name in listing, paths):
            paths[name] = self.fetch(prefix + name)
        return next(iter(paths.values())).parent

    def _take_cached(self, prefix: str, needs: Needs) -> Path | None:
        """The folder, if the cache has all of it."""
        paths: dict[str, Path] = {}
        for name in needs.files(lambda name: self._cached(prefix + name), paths):
            path = self._cached(prefix + name)
            if path is None:
                return None
            paths[name] = path
        self._note_copy()
        return next(iter(paths.values())).parent

    def cached_folder(self) -> Path:
        """The cache's folder of the revision, whatever it holds of it. Raises UserError where there is none."""
        asked = {"repo_type": self._kind, "revision": self.revision, "cache_dir": self._cache_dir}
        try:
            folder = client().snapshot_download(self.id, **asked, local_files_only=True)
        except client().errors.LocalEntryNotFoundError:
            raise self._absent() from None
        self._note_copy()
        return Path(folder)

    def _note_copy(self) -> None:
        if self._unreachable and not self._has_warned:
            logger.warning("%s: using the copy in the cache", self._unreachable)
            self._has_warned = True

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.id, name, cache_dir=self._cache_dir, revision=self.revision, repo_type=self._kind
        )
        if not isinstance(found, str):
            return None
        # A branch may have moved since the cache last heard of it.
        is_current = self._is_settled or self._info is None or self._info.sha in Path(found).parts
        return Path(found) if is_current else None

    def fetch(self, name: str) -> Path:
        """A file's place in the cache, fetched if need be; the repository must be within reach (`listing`)."""
        if self.listing is None:
            raise self._absent()
        if name not in self.listing:
            raise self._lacking(name, self.listing)
        path = self._cached(name)
        if path is None:
            try:
                path = self._download(name)
            except (Unreachable, _Damaged):  # not every client takes up a broken download, and none compares SHA-256
                path = self._download(name)
        self._is_noted = True
        return path

    def _download(self, name: str) -> Path:
        # The first by the revision's name, which makes the client note its commit, to be found offline; the rest by
        # that commit, so that all are of one.
        revision = self._info.sha if self._is_noted else self.revision
        with explained(f"{name} of {self.id}"), one_file():
            path = self._client.hf_hub_download(
                self.id, name, revision=revision, cache_dir=self._cache_dir, repo_type=self._kind
            )
            path = Path(path)
        if self._info.sha not in path.parts:
            raise UserError(f"{self} changed on the Hub while it was being read: run again")
        if _is_damaged(path):
            for link in (path.resolve(), _blob(path), path):
                link.unlink(missing_ok=True)
            raise _Damaged(f"{name} of {self.id} arrived damaged (wrong SHA-256) and was deleted: run again")
        return path

    @functools.cached_property
    def _client(self):
        return client().HfApi(token=self._token, library_name="dalle-mini", library_version=__version__)

    @functools.cached_property
    def _info(self):
        """The Hub's description of the revision, or None where it may not be asked or does not answer."""
        if self._offline:
            return None
        try:
            with explained(str(self), self._no_folder):
                timeout = client().constants.HF_HUB_ETAG_TIMEOUT
                asked = {"repo_type": self._kind, "revision": self.revision, "timeout": timeout}
                info = self._client.repo_info(self.id, **asked)
                if not is_commit(info.sha):
                    raise OddAnswer(f"with the commit {info.sha!r:.80}")
                return info
        except Unreachable as error:
            self._unreachable = error.reason
            return None

    @functools.cached_property
    def listing(self) -> frozenset[str] | None:
        """Every file of the repository whose name is one; None as of `_info`."""
        if self._info is None:
            return None
        with explained(str(self)):
            if self._info.siblings is None:  # from a mirror that leaves the list out
                asked = {"repo_type": self._kind, "revision": self._info.sha}
                names = self._client.list_repo_files(self.id, **asked)
            else:
                names = [file.rfilename for file in self._info.siblings]
            return frozenset(filter(is_file_name, names))

    def _absent(self) -> UserError:
        if self._offline:
            return UserError(
                f"{self._no_folder}the cache {self._cache_dir} holds no whole copy of {self}, and no request is "
                "allowed (HF_HUB_OFFLINE, --offline or local_files_only): load it online once"
            )
        return UserError(
            f"{self._no_folder}{self._unreachable}; the cache {self._cache_dir} holds no whole copy of {self}: "
            "check the connection and run again, or name a folder"
        )

    def _lacking(self, name: str, listing: frozenset[str]) -> UserError:
        there = f"it holds {listed(sorted(listing), 8) or 'nothing'}"
        if name.endswith(WEIGHTS[0]):
            return UserError(f"{self} has no weights: looked for {', '.join(WEIGHTS)}; {there}")
        parts = [part for part in ("dalle", "vqgan", "clip") if f"{self._inside}{part}/{CONFIG}" in listing]
        if parts:
            names = (f"{self.id}/{self._inside}{part}" for part in parts)
            there = f"it is a bundle, name a part of it: {', '.join(names)}"
        return UserError(f"{self} has no {name.removeprefix(self._inside)}: {there}")


def _shards(index: Path) -> list[str]:
    """The files that an index lists; what is wrong with those is for its reader to say.

    Raises:
        UserError: the index cannot be read: it is not known then what belongs to it.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        return []
    return sorted({file for file in weight_map.values() if is_file_name(file) and "/" not in file})


def _blob(path: Path) -> Path:
    """Where the cache keeps a file of a snapshot, under the ETag that the Hub gave it.

    That may again be a link, to a file that repositories share, whose name is a hash of another kind.
    """
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _is_damaged(path: Path) -> bool | None:
    """Whether a cached file differs from its SHA-256; None where that is not known, as of small files."""
    known = _blob(path).name
    if not _SHA256.fullmatch(known):
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() != known
