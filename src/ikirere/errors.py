"""Errors that are for people: one clear line, no traceback."""


class UserError(Exception):
    """Something the user can mend. The message is one line that names the key, file, line or row,
    says what was accepted, and what to do. The command line prints it and exits with code 2."""


class Refused(UserError):
    """An operation that would have harmed something (a held run folder, an altered artifact)."""
