"""The two errors a user can cause or meet; the command line turns each into one line and an exit status."""


class MbjaxError(Exception):
    """Base of every error that is shown to a user as one line: what, where, and what to do."""

    exit_status = 1


class InputError(MbjaxError):
    """The input is wrong (a file, an option, a prompt): exit status 2."""

    exit_status = 2


class FailureError(MbjaxError):
    """The input may be right but the work failed (full disk, no network): exit status 1."""

    exit_status = 1
