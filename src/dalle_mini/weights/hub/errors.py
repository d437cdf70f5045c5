"""Errors of the Hub's client as one line that names the repository and the way out."""

import contextlib
import errno
from collections.abc import Iterator
from types import ModuleType

from dalle_mini.errors import UserError
from dalle_mini.runtime.files import reason
from dalle_mini.weights.hub.answers import check_answers

_BUSY = (408, 425, 429)  # HTTP: come again, as any 5xx


class Unreachable(UserError):
    """The Hub, or the way to it, fails for a `reason`: a copy in the cache may do instead."""

    def __init__(self, reason: str):
        super().__init__(f"{reason}: check the connection and run again")
        self.reason = reason


def client() -> ModuleType:
    """`huggingface_hub`, whose answers are checked from now on.

    Raises:
        UserError: the environment's settings of it make no sense, such as HF_HUB_ETAG_TIMEOUT=soon.
    """
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors

        check_answers()
    except Exception as error:  # a number that is none, a proxy that is none, by whatever it raises
        raise UserError(
            f"the Hub's client cannot start ({reason(error)}): look at the variables HF_* and *_PROXY"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def explained(subject: str, no_folder: str = "") -> Iterator[None]:
    """Within it, the client's exceptions become UserErrors about the subject, such as "config.json of owner/name".

    A message that there is no such repository begins with `no_folder`, which says that there is no such folder either.
    """
    errors = client().errors
    try:
        yield
    except MemoryError:
        raise
    except UserError as error:  # about an answer, or a limit
        raise UserError(f"{subject}: {error}") from None
    except errors.HFValidationError as error:
        raise UserError(f"{subject}: this is no name of a repository ({reason(error)})") from None
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(subject, error.__cause__ or error) from None
    except errors.HfHubHTTPError as error:
        raise _refusal(subject, error, no_folder) from None
    except UnicodeError as error:
        raise UserError(f"{subject}: HF_TOKEN or token= holds what no token does ({reason(error)})") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{subject} does not fit on the disk ({error.strerror}): free some room, or keep downloads elsewhere "
                "with --cache-dir (cache_dir=) or HF_HOME"
            ) from None
        if error.filename:
            raise UserError(
                f"{subject} cannot be kept in {error.filename} ({error.strerror}): keep downloads elsewhere with "
                "--cache-dir (cache_dir=) or HF_HOME"
            ) from None
        raise _unreachable(subject, error) from None
    except Exception as error:  # of the libraries below, by version; of proxies; of answers that make no sense
        raise _unreachable(subject, error) from None


def _unreachable(subject: str, error: BaseException) -> Unreachable:
    from huggingface_hub import constants

    return Unreachable(f"{subject}: the exchange with {constants.ENDPOINT} failed ({reason(error)})")


def _refusal(subject: str, error, no_folder: str) -> UserError:
    """The Hub has answered, and the answer is no."""
    from huggingface_hub import errors

    status = error.response.status_code
    if status in _BUSY or status >= 500:
        return _unreachable(subject, error)
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{subject}: the repository is gated: accept its terms on its page on the Hub, then set HF_TOKEN or pass "
            "token="
        )
    if status in (401, 403):
        return UserError(
            f"{no_folder}{subject}: the Hub denies access (HTTP {status}): there is no such repository, or it is "
            "private or gated: check the name, and set HF_TOKEN or pass token="
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{subject}: the repository has no such revision: name a branch, a tag or a commit of it")
    if status == 404:
        return UserError(
            f"{no_folder}{subject}: the Hub has nothing of this name: check it, and set HF_TOKEN or pass token= if it "
            "is private"
        )
    return UserError(f"{subject}: the Hub refuses (HTTP {status}: {reason(error)})")
