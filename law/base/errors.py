"""The error for everything that the user can correct, and how its messages quote a text."""

import difflib
from collections.abc import Iterable

QUOTED = 60
"""Characters of a text that a message quotes."""


class LawError(Exception):
    """An error that the user can correct. The message says what was wrong, what was expected, and what to change."""


def shortened(text: str) -> str:
    """A text for a message: whole up to :data:`QUOTED` characters, a longer one without its middle."""
    if len(text) <= QUOTED:
        return text
    end = (QUOTED - 5) // 2  # " ... " takes the place of the middle
    return f"{text[: QUOTED - 5 - end]} ... {text[-end:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question whether the known word nearest to ``word`` was meant, after a space; nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut after 300 characters; the error's class where it has no text.

    There is no full stop at its end.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
