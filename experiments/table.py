"""Tabulate the finished runs of a sweep: ``python experiments/table.py outputs/<name>``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from law.base.console import one_paragraph
from law.reporting.frontier_table import write_frontier
from law.reporting.published_numbers import FORMAT
from law.reporting.typesetting import Table
from law.reporting.writing import write_tables

WIDTH = 130
"""Characters in a line of what is written to a file or a pipe."""

LABEL = 40
"""Characters in a line of a row's label."""


def show(console: Console, table: Table, metrics: range) -> None:
    """Print the columns of words and these columns of numbers, in two parts if the console is too narrow."""
    shown, half = [*range(table.names + 1), *metrics], len(metrics) // 2
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for at in shown:
        heading = table.headings[at].replace(" ", "\n") if at in metrics else table.headings[at]
        if at < 1:
            grid.add_column(heading, overflow="fold", max_width=LABEL, vertical="bottom")
        else:
            grid.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*(Text(row[at].text, "bold" if row[at].best else "") for at in shown))
    if half and console.measure(grid, options=console.options.update(max_width=9999)).maximum > console.width:
        show(console, table, metrics[:half])
        console.print()
        show(console, table, metrics[half:])
    else:
        console.print(grid)


def main() -> None:
    """Write the tables and print them."""
    parser = argparse.ArgumentParser(
        description="Write table.md, table.csv, table.tex and tradeoff.png; with --frontier frontier.md, .csv and .tex.",
        epilog=f"Published numbers: {FORMAT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="published numbers to show beside them"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true", help="print all columns, not the short table")
    what.add_argument(
        "--frontier",
        action="store_true",
        help="what each method keeps at 10 and at 5 %% left, from runs at several values of its knob",
    )
    chosen = parser.parse_args()
    if chosen.frontier:
        paths, tables, remarks = write_frontier(chosen.folder)
    else:
        paths, report = write_tables(chosen.folder, chosen.published)
        tables, remarks = [*(report.full if chosen.full else report.short), *report.attacks], report.remarks
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", WIDTH))
    console = Console(highlight=False, markup=False, width=width)
    for table in tables:
        console.print(table.title)
        show(console, table, range(table.names + 1, len(table.headings)))
        console.print(f"\n{table.legend} {table.note}\n")
    for remark in remarks:
        console.print(f"- {remark}")
    if not (chosen.full or chosen.frontier):
        console.print(f"All columns: {paths[0]}, or --full.", soft_wrap=True)
    console.print(f"Wrote {', '.join(map(str, paths))}.", soft_wrap=True)


if __name__ == "__main__":
    with one_paragraph():
        main()
