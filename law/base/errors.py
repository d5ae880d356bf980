"""The one error a user can mend, and how its messages quote a text."""

QUOTED = 60
"""Characters of a text that a message quotes."""


class LawError(Exception):
    """An error the user can mend: says what was wrong, what was expected, and the mend."""


def shortened(text: str) -> str:
    """A text for a message: whole up to :data:`QUOTED` characters, a longer one without its middle."""
    if len(text) <= QUOTED:
        return text
    end = (QUOTED - 5) // 2  # " ... " takes the place of the middle
    return f"{text[: QUOTED - 5 - end]} ... {text[-end:]}"
