"""Docstrings as Markdown: the package writes formulas, references and tables as reStructuredText does."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import griffe

REFERENCE = re.compile(r":(?:class|func|meth|mod|data):`(~?)([\w.]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *(?=\n)))*)", re.MULTILINE)
RULE = re.compile(r"^ *={3,}(?: +={3,})+ *$")


def to_markdown(text: str, resolve: Callable[[str], str | None]) -> str:
    """A docstring's text in Markdown.

    ``resolve`` gives the full dotted name of what a short name means, or ``None`` where no page describes it.
    """

    def reference(found: re.Match[str]) -> str:
        brief, name = found.groups()
        shown, target = f"`{name.rpartition('.')[2] if brief else name}`", resolve(name)
        return f"[{shown}][{target}]" if target else shown

    def block(found: re.Match[str]) -> str:
        indent, formula = found.groups()
        lines = "\n".join(indent + line.strip() for line in formula.strip().splitlines())
        return f"\n{indent}$$\n{lines}\n{indent}$$\n"

    text = BLOCK.sub(block, text)
    text = FORMULA.sub(r"$\1$", text)
    return _tables(REFERENCE.sub(reference, text))


def _tables(text: str) -> str:
    """Simple tables, which rules of ``=`` enclose, as Markdown tables without a heading."""
    lines: list[str] = []
    starts: list[int] = []  # where the columns of the table begin; empty outside a table
    for line in text.splitlines():
        if RULE.match(line):
            starts = [] if starts else [found.start() for found in re.finditer("=+", line)]
            if starts:
                lines += ["", "| | |", "| --- | --- |"]
        elif starts:
            cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            lines.append(f"| {' | '.join(cells)} |")
        else:
            lines.append(line)
    return "\n".join(lines)


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite the package's own docstrings and those of all that is in it."""
        _rewrite(pkg)


def _rewrite(thing: griffe.Object) -> None:
    if thing.docstring is not None:
        text = textwrap.dedent(thing.docstring.value)
        thing.docstring.value = to_markdown(text, lambda name: _full_name(thing, name))
    for member in thing.members.values():
        if not isinstance(member, griffe.Alias):
            _rewrite(member)


def _full_name(thing: griffe.Object, name: str) -> str | None:
    """The dotted name of what a docstring of ``thing`` calls ``name``, where a page describes it."""
    try:
        found = thing.modules_collection[thing.resolve(name)]
    except (griffe.NameResolutionError, KeyError):
        found = thing.modules_collection[name]
    return found.path if found.has_docstring and not found.name.startswith("_") else None
