"""Every error a user can cause, each kind with the exit code that the command line returns for it.

Messages say what is wrong, where, what was found, what was wanted and what to do next, in one or two lines.
"""


class MoekdError(Exception):
    """Base of the errors that are the user's to fix; shown without a traceback."""

    exit_code = 3


class SettingsError(MoekdError):
    """A setting, a config file or a command-line argument is wrong."""

    exit_code = 2


class DataError(MoekdError):
    """An input file is missing, unreadable or holds what it must not hold."""

    exit_code = 5


class OutputError(MoekdError):
    """The result cannot be written: full disk, read-only folder, or a folder in use by another run."""

    exit_code = 6


class MissingExtraError(MoekdError):
    """A package of an optional extra is not installed; the message names the extra."""

    exit_code = 7


class RewriteError(MoekdError):
    """A rewrite of code would not have kept the code's meaning; a defect of ours, shown with the difference."""
