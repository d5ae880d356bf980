"""Tables as text: Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "—": "---", "−": "$-$"}

ACROSS = 6
"""Columns of numbers that a page's width holds in print of a size to be read."""


class Cell(NamedTuple):
    """A cell's text, and whether it is set in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """One model and data set. The first ``names`` columns hold words, the others numbers."""

    model: str
    dataset: str
    headings: list[str]
    rows: list[list[Cell]]
    names: int
    note: str


def to_markdown(tables: list[Table], problems: list[str]) -> str:
    """Pipe tables, padded so that they also read well as plain text, each with its note; then the problems."""
    blocks = []
    for table in tables:
        if len(tables) > 1:
            blocks.append(f"### {table.model}, {table.dataset}")
        rows = _rows(table, _markdown, "**{}**")
        columns = []
        for number, (heading, *cells) in enumerate(zip(*rows, strict=True)):
            width = max(map(len, (heading, *cells)))
            named = number < table.names
            pad, rule = (str.ljust, "-" * width) if named else (str.rjust, "-" * (width - 1) + ":")
            columns.append([pad(text, width) for text in (heading, rule, *cells)])
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)))
        blocks.append(_markdown(table.note))
    if problems:
        blocks.append("\n".join(f"- {_markdown(problem)}" for problem in problems))
    return "\n\n".join(blocks) + "\n"


def to_latex(tables: list[Table], problems: list[str]) -> str:
    r"""Booktabs tables to ``\input``; what they need, and the problems, are comments above them.

    Wide tables are set in parts, one below the other, that repeat the columns of words.
    """
    lines = [r"% needs \usepackage{booktabs,adjustbox}", *(f"% {problem}" for problem in problems)]
    for table in tables:
        label = re.sub(r"[^A-Za-z0-9.]+", "-", f"{table.model}-{table.dataset}")
        lines += [
            r"\begin{table}[tbp]",
            r"\centering\small",
            rf"\caption{{{_latex(f'{table.model}, {table.dataset}. {table.note}')}}}",
            rf"\label{{tab:{label}}}",
        ]
        rows = _rows(table, _latex, r"\textbf{{{}}}")
        for part in _parts(len(table.headings), table.names):
            words = table.names
            head, *body = (" & ".join([*row[:words], *row[part]]) + r" \\" for row in rows)
            lines += [
                r"\par\smallskip",
                r"\begin{adjustbox}{max width=\linewidth}",
                rf"\begin{{tabular}}{{{'l' * words}{'r' * (part.stop - part.start)}}}",
                *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
                *(r"\end{tabular}", r"\end{adjustbox}"),
            ]
        lines.append(r"\end{table}")
    return "\n".join([*lines, ""])


def _parts(columns: int, names: int) -> list[slice]:
    """The columns of numbers in parts that fit a page's width, none much narrower than another."""
    count = max(1, math.ceil((columns - names) / ACROSS))
    ends = [names + (columns - names) * part // count for part in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _rows(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """The headings and the rows, escaped; ``bold`` is the format of the best cells."""
    rows = [[bold.format(escape(c.text)) if c.best else escape(c.text) for c in row] for row in table.rows]
    return [[*map(escape, table.headings)], *rows]
