"""Tabulate the finished runs of a sweep: ``python experiments/table.py outputs/<name>``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from law.base.console import accept_any_text
from law.base.errors import LawError
from law.reporting.published_numbers import FORMAT
from law.reporting.tables import write_tables
from law.reporting.typesetting import Table, to_markdown


def show(console: Console, table: Table, metrics: range) -> None:
    """Print the names and these columns, in two halves where the terminal is too narrow for all."""
    shown, half, grid = [*range(table.names + 1), *metrics], len(metrics) // 2, Grid()
    for at in shown:
        grid.add_column(table.headings[at], justify="left" if at < table.names else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(row[at].text, "bold" if row[at].best else "") for at in shown))
    if half and console.measure(grid, options=console.options.update(max_width=9999)).maximum > console.width:
        show(console, table, metrics[:half])
        show(console, table, metrics[half:])
    else:
        console.print(grid)


if __name__ == "__main__":
    accept_any_text()
    parser = argparse.ArgumentParser(
        description="Write table.md, table.csv, table.tex and tradeoff.png.",
        epilog=f"Published numbers: {FORMAT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="published numbers to show beside them"
    )
    chosen = parser.parse_args()
    try:
        paths, tables, problems = write_tables(chosen.folder, chosen.published)
    except LawError as error:
        raise SystemExit(str(error)) from None
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        for table in tables:
            console.print(f"{table.model}, {table.dataset}")
            show(console, table, range(table.names + 1, len(table.headings)))
            console.print(table.note)
        console.print("\n".join(problems))
    else:
        console.print(to_markdown(tables, problems))
    console.print(f"Wrote {', '.join(map(str, paths))}.")
