"""Attack the washed models of finished runs: ``python experiments/attack.py outputs/<name> attack=all``.

The runs must have kept their models (``save=delta``). What was found before is taken from the cache.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console

from law.base.errors import LawError
from law.reporting.loading import load_sweep
from law.runs.attacking import attack_run
from law.runs.command_line import run_command
from law.runs.configuration import build, check_config
from law.runs.lock import sole

CONF = Path(__file__).parents[1] / "conf"


def main() -> None:
    """Attack every finished run of a folder, and say which could not be attacked."""
    parser = argparse.ArgumentParser(
        description="Write the scores of attacks into the folders of finished runs."
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    parser.add_argument(
        "settings",
        nargs="*",
        default=["attack=all"],
        help="such as attack=quick attack.leak.seed=1 (attack=all)",
    )
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=chosen.settings)
    check_config(config)
    attacks = build(config.attack)
    if not attacks.chosen():
        raise LawError("No attack is chosen; expected at least one. Set attack=quick or attack=all.")
    problems = []
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for run in load_sweep(chosen.folder).runs:
        try:
            with sole(run.folder):
                attack_run(run.folder, attacks)
        except LawError as error:
            problems.append(str(error))
        else:
            console.print(f"{run.folder} is attacked.")
    if problems:
        raise LawError(" ".join(problems))
    console.print(f"python experiments/table.py {chosen.folder} shows what was recovered.")


if __name__ == "__main__":
    run_command(main)
