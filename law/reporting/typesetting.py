"""Tables as text: Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--", "−": "$-$"}

NOTHING = "–"
"""A cell without a number."""

ACROSS = 6
"""How many columns of numbers fit a page's width in readable print."""


class Cell(NamedTuple):
    """A cell's text, and whether it is set in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """The table of one panel.

    Args:
        title: the panel's.
        headings: one for each column.
        rows: a cell for each column.
        names: how many columns hold words; they come first. The others hold numbers.
        legend: what the columns are.
        note: how to read the numbers.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    names: int
    legend: str
    note: str


def to_markdown(
    short: Sequence[Table], full: Sequence[Table], attacks: Sequence[Table], remarks: Sequence[str]
) -> str:
    """For each panel the short table with legend and note, then the full one with its legend; then the tables of
    attacks with theirs, and the remarks.

    The tables are padded, so that they also read well as plain text.
    """
    blocks = []
    for brief, whole in zip(short, full, strict=True):
        if len(short) > 1:
            blocks.append(f"### {brief.title}")
        blocks += [pipes(brief), _markdown(f"{brief.legend} {brief.note}".strip())]
        blocks += ["All columns:", pipes(whole), _markdown(whole.legend)]
    for table in attacks:
        blocks += [f"### {table.title}", pipes(table), _markdown(f"{table.legend} {table.note}")]
    if remarks:
        blocks.append("\n".join(f"- {_markdown(remark)}" for remark in remarks))
    return "\n\n".join(filter(None, blocks)) + "\n"


def pipes(table: Table) -> str:
    """One table in Markdown, without its title, legend and note."""
    columns = []
    for number, (heading, *cells) in enumerate(zip(*_rows(table, _markdown, "**{}**"), strict=True)):
        width = max(map(len, (heading, *cells)))
        named = number < table.names
        pad, rule = (str.ljust, "-" * width) if named else (str.rjust, "-" * (width - 1) + ":")
        columns.append([pad(text, width) for text in (heading, rule, *cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def to_latex(tables: Sequence[Table], remarks: Sequence[str]) -> str:
    r"""Booktabs tables to ``\input``. Comments above them name the packages they need, and hold the remarks.

    A wide table is set in parts, one below the other, that repeat the columns of words.
    """
    lines = [r"% needs \usepackage{booktabs,adjustbox}", *(f"% {remark}" for remark in remarks)]
    for table in tables:
        label = re.sub(r"[^A-Za-z0-9.]+", "-", table.title)
        lines += [
            r"\begin{table}[tbp]",
            r"\centering\small",
            rf"\caption{{{_latex(f'{table.title}. {table.legend} {table.note}'.strip())}}}",
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
    """The columns of numbers in parts that fit a page's width and differ in width by one column at most."""
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
