"""The one exception a user's mistake becomes."""


class UserError(Exception):
    """A mistake of the user: one line that says what, where and what to do; the command exits with code 2."""
