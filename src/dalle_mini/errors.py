"""The one exception that means "the user's input is wrong"."""

from collections.abc import Iterable

from dalle_mini.addresses import without_secrets


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the file or field and the way out.

    The command line prints it as `error: ...` and exits with code 2; from Python it is a `ValueError`. Line
    breaks, which come from names and from other libraries' messages, become spaces; addresses are told without what
    lets others in.
    """

    def __init__(self, message: object):
        super().__init__(without_secrets(" ".join(line.strip() for line in str(message).splitlines()).strip()))


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first names of a possibly long list, each cut, for a message of one line: 'a, b and 7 more'."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:200]}..." for name in names[:limit]) + rest


def shown(value: object, limit: int = 60) -> str:
    """`value` as Python writes it, cut, for a message of one line."""
    try:
        text = repr(value)
        return text if len(text) <= limit else f"{text[:limit]}..."
    except ValueError:  # a number of more than 4300 digits
        return "a value too long to show"
