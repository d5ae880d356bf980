"""Turn what a run kept of its washed model into a checkpoint that loads anywhere.

python experiments/export.py outputs/<name>/<run>
python experiments/export.py outputs/<name>/<run> --gguf q8_0   # with a GGUF file beside it, for llama.cpp
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from rich.console import Console

from law.decoders.gguf_writing import GGUFType
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
    parser.add_argument(
        "--gguf", choices=[kind.value for kind in GGUFType], help="add a GGUF file with matrices of this type"
    )
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    target = chosen.to or chosen.run / "exported"
    export_run(chosen.run, target, GGUFType(chosen.gguf) if chosen.gguf else None)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{target} loads like any other checkpoint. README.md is its model card.")


if __name__ == "__main__":
    run_command(main)
