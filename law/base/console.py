"""What commands print: text whose characters the console's encoding may lack, and errors as one paragraph."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from law.base.errors import LawError

SPELLED = {
    "↓": "v",
    "↑": "^",
    "→": "->",
    "±": "+-",
    "–": "-",
    "−": "-",
    "…": "...",
    "≤": "<=",
    "‖": "|",
    "Δ": "Delta",
    "α": "alpha",
    "β": "beta",
    "δ": "delta",
    "λ": "lambda",
}
"""In ASCII, the characters that messages and tables use."""


@contextmanager
def one_paragraph() -> Iterator[None]:
    """End the program with one paragraph and exit status 1 after an error that the user can correct."""
    accept_any_text()
    try:
        yield
    except (LawError, OSError) as error:
        sys.exit(f"error: {error}")


def accept_any_text() -> None:
    """Let standard output and standard error take any text, whatever their encoding.

    A console with the encoding cp1252 or ASCII cannot show λ. Python would stop with an error there, and
    ``logging`` would lose the line. After this call it shows "lambda". A character without an entry in
    ``SPELLED`` becomes "?".
    """
    codecs.register_error("law.spelled", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="law.spelled")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # one character at a time: an encoding may lack λ and have the ± beside it
    return SPELLED.get(error.object[error.start], "?"), error.start + 1
