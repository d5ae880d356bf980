"""Write one HTML page about a sweep: ``python experiments/report.py outputs/<name>``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from law.base.console import one_paragraph
from law.reporting.page import write_page


def main() -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(
        description="Write report.html, which needs no network: tables that sort and filter, pictures, answers, all runs."
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    path = write_page(parser.parse_args().folder)
    Console(highlight=False, markup=False, soft_wrap=True).print(f"Wrote {path}. Open it in a browser.")


if __name__ == "__main__":
    with one_paragraph():
        main()
