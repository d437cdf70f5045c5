"""The one exception that means "the user's input is wrong"."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the file or field and the way out.

    The command line prints it as `error: ...` and exits with code 2; from Python it is a `ValueError`.
    """
