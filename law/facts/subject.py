"""Finds a subject in a prompt, or an object in an answer, as a whole word."""

from __future__ import annotations

import re
from unicodedata import category

WORD = ("Lu", "Ll", "Lt", "Nd", "Mn", "Mc", "Me")
"""Unicode's categories of letters that have a case, digits and combining marks."""

_INSIDE_NUMBER = re.compile(r"(?<=\d)(?=[.,]\d)|(?<=\d[.,])(?=\d)")


def places(subject: str, prompt: str) -> list[int]:
    """Where the subject begins in the prompt, for each time that it occurs as a whole word.

    ``Iran`` does not occur in ``Iranian``, nor ``Apollo 1`` in ``Apollo 11``. Two neighbouring characters
    belong to one word if each is in :data:`WORD`, or if the second is a combining mark. A comma or point between
    two digits belongs to their number: ``1`` does not occur in ``1,000``.

    Letters without a case separate no words here, so beside them every occurrence counts. Their scripts
    write no spaces (Chinese, Japanese, Thai) or attach particles to names (Korean, Arabic, Hebrew).
    """
    found, at = [], prompt.find(subject)
    while at >= 0:
        end = at + len(subject)
        if not (_within_a_word(prompt, at) or _within_a_word(prompt, end)):
            found.append(at)
        at = prompt.find(subject, at + 1)
    return found


def template(subject: str, prompt: str, at: int) -> str:
    """The prompt with ``{}`` in the subject's place, which begins at index ``at``."""
    return f"{prompt[:at]}{{}}{prompt[at + len(subject) :]}"


def _within_a_word(text: str, at: int) -> bool:
    """Whether the characters before and after index ``at`` belong to one word or number."""
    if not 0 < at < len(text):
        return False
    if _INSIDE_NUMBER.match(text, at):
        return True
    before, after = category(text[at - 1]), category(text[at])
    return after.startswith("M") or (before in WORD and after in WORD)
