"""Say how far a sweep is: ``python experiments/status.py outputs/<name> --watch``."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from law.base.console import one_paragraph
from law.reporting.status import JobStatus, outlook, sweep_status

REFRESH_S = 5.0

COLOURS = {"finished": "green", "running": "blue", "failed": "red", "stopped": "magenta", "waiting": "dim"}


def view(jobs: list[JobStatus]) -> Group:
    """The outlook, then a line for each run."""
    grid = Table.grid(padding=(0, 2))
    for job in jobs:
        grid.add_row(Text(job.state, COLOURS[job.state]), Text(job.name), Text(job.told))
    return Group(Text(outlook(jobs)), grid)


def main() -> None:
    """Print the state of every run, once or until none runs or waits."""
    parser = argparse.ArgumentParser(
        description="Say which runs of a sweep have finished, run, failed or wait."
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    parser.add_argument("--watch", action="store_true", help=f"look again every {REFRESH_S:g} seconds")
    chosen = parser.parse_args()
    console = Console(highlight=False, markup=False, soft_wrap=not chosen.watch)
    jobs = sweep_status(chosen.folder)
    if not chosen.watch:
        console.print(view(jobs))
        return
    with suppress(KeyboardInterrupt), Live(view(jobs), console=console, auto_refresh=False) as live:
        while any(job.state in ("running", "waiting") for job in jobs):
            time.sleep(REFRESH_S)
            jobs = sweep_status(chosen.folder)
            live.update(view(jobs), refresh=True)


if __name__ == "__main__":
    with one_paragraph():
        main()
