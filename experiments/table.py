"""Tabulate the finished runs of an experiment: ``python experiments/table.py outputs/<name>``."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from law.errors import LawError
from law.tables import Table, to_markdown, write_tables


def show(console: Console, table: Table, metrics: range) -> None:
    """Print the names and these columns, in two halves where the terminal is too narrow for all."""
    shown, half, grid = [*range(table.names + 1), *metrics], len(metrics) // 2, Grid()
    for at in shown:
        grid.add_column(table.headings[at], justify="left" if at < table.names else "right", overflow="fold")
    for row, best in zip(table.cells.to_numpy(), table.best.to_numpy(), strict=True):
        grid.add_row(*(Text(row[at], "bold" if best[at] else "") for at in shown))
    if half and console.measure(grid, options=console.options.update(max_width=9999)).maximum > console.width:
        show(console, table, metrics[:half])
        show(console, table, metrics[half:])
    else:
        console.print(grid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write table.md, table.csv, table.tex and tradeoff.png.")
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    try:
        paths, _, table = write_tables(parser.parse_args().folder)
    except LawError as error:
        raise SystemExit(str(error)) from None
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        show(console, table, range(table.names + 1, len(table.headings)))
    console.print(table.note if console.is_terminal else to_markdown(table))
    console.print(f"Wrote {', '.join(map(str, paths))}.")
