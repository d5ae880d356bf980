"""Say how large a cache is, and remove what nobody has used for a while: ``python experiments/cache.py --prune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from law.base.cache_sizes import DAY_S, kept_files, prune, sizes
from law.base.console import one_paragraph


def main() -> None:
    """Print the size of each kind of result; with --prune, remove those that are long unused."""
    parser = argparse.ArgumentParser(
        description="Say how large a cache is. What is removed from it is computed again when a run needs it."
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs/cache"), help="the cache (outputs/cache)"
    )
    parser.add_argument(
        "--days",
        type=float,
        default=30.0,
        help="a result is unused after so many days without reading it (30)",
    )
    parser.add_argument(
        "--prune", action="store_true", help="remove unused results; let no run go on meanwhile"
    )
    chosen = parser.parse_args()
    files = [*kept_files(chosen.folder)]
    grid = Grid(box=box.SIMPLE_HEAD)
    for heading in ("result", "files", "MB", f"MB unused for {chosen.days:g} days"):
        grid.add_column(heading, justify="left" if heading == "result" else "right")
    for size in sizes(files, chosen.days * DAY_S):
        grid.add_row(
            size.name, f"{size.files:,}", *(f"{number / 1e6:,.1f}" for number in (size.size, size.unused))
        )
    console = Console(highlight=False, markup=False)
    console.print(grid)
    if chosen.prune:
        console.print(f"Removed {prune(files, chosen.days * DAY_S) / 1e6:,.1f} MB.")


if __name__ == "__main__":
    with one_paragraph():
        main()
