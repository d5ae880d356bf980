"""Turn what a run kept of its washed model into a checkpoint that loads anywhere.

python experiments/export.py outputs/<name>/<run>
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from rich.console import Console

from law.runs.command_line import run_command
from law.runs.exporting import export_run


def main() -> None:
    """Export one run, and say where the checkpoint is."""
    parser = argparse.ArgumentParser(
        description="Write the washed model of a run as a checkpoint with a model card."
    )
    parser.add_argument(
        "run", type=Path, help="the folder of the run, which was made with save=delta or save=model"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="the new folder (RUN/exported)")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    target = chosen.to or chosen.run / "exported"
    export_run(chosen.run, target)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{target} loads like any other checkpoint. It answers as the run did; README.md is its model card."
    )


if __name__ == "__main__":
    run_command(main)
