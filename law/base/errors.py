"""The one error a user can mend."""


class LawError(Exception):
    """An error the user can mend: says what was wrong, what was expected, and the mend."""
