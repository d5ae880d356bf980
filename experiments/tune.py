"""Search for a method's settings with Optuna, on facts that no result uses (docs/how-to/tune.md).

python experiments/tune.py experiment=lab_validation method=memit
python experiments/tune.py --trials 40 experiment=real_validation method=npo dataset.path=counterfact.json
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from law.base.cache import content_hash
from law.base.errors import LawError
from law.base.files import write_text
from law.facts.source import Part
from law.runs.command_line import run_command
from law.runs.configuration import check_config
from law.runs.folder import METRICS, read_object
from law.runs.identity import local, reduced
from law.runs.search import Budget, Killed, bounds_of, preset, search

CONF = Path(__file__).resolve().parents[1] / "conf"


def main() -> None:
    """Make the trials that are missing, and write the chosen settings as a preset beside the study."""
    parser = argparse.ArgumentParser(description="Search for a method's settings, on validation facts.")
    parser.add_argument(
        "settings", nargs="+", help="of every run, such as experiment=lab_validation method=memit"
    )
    parser.add_argument("--trials", type=int, default=20, help="of the study, those before included (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (0)")
    parser.add_argument(
        "--output", type=Path, help="the study's folder (outputs/tune/<model>-<dataset>-<method>)"
    )
    asked = parser.parse_args()
    budget = Budget(asked.trials, asked.seed)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=asked.settings, return_hydra_config=True)
    check_config(config)
    if config.dataset.part is not Part.validation:
        raise LawError(
            f"dataset.part is {config.dataset.part.value}; expected validation, since settings are not chosen on facts that results "
            "are reported on. Set dataset.part=validation, or experiment=lab_validation."
        )
    if config.hydra.mode is RunMode.MULTIRUN:
        raise LawError(
            "The experiment is a sweep; expected one run, whose settings the search varies. Choose experiment=lab_validation or "
            "real_validation."
        )
    bounds, choices = bounds_of(config), config.hydra.runtime.choices
    name = f"{choices.model}-{choices.dataset}-{choices.method}"
    folder = asked.output or Path("outputs/tune") / name
    searched = [reduced(config, lambda path: str(local(path).resolve())), *map(repr, bounds.items())]
    setup = f"{name}, seed {asked.seed}, configuration {content_hash(searched)[:8]}"

    def run(number: int, settings: Mapping[str, float]) -> Mapping[str, float]:
        """An ordinary run, in a process of its own and in a folder of its own."""
        place = folder / f"trial-{number:03}"
        overrides = [*asked.settings, *(f"{key}={value!r}" for key, value in settings.items())]
        wash = [
            sys.executable,
            str(CONF.parent / "experiments/wash.py"),
            *overrides,
            f"hydra.run.dir={place}",
        ]
        done = subprocess.run(wash, capture_output=True, text=True, check=False)
        if done.returncode < 0:
            raise Killed(
                f"The run in {place} was ended by signal {-done.returncode}; expected room for it (9 is also what a system without "
                "memory sends). Give the command again to go on with this trial."
            )
        if done.returncode:
            cause = done.stderr.rpartition("error: ")[
                2
            ]  # what stands before it are progress bars and the log
            raise LawError(f"The run in {place} failed; its log is there. {cause.strip()[-1000:]}")
        return read_object(place / METRICS) or {}

    trials = search(folder, setup, bounds, budget, run)
    present = CONF / "preset" / choices.model / f"{choices.method}.yaml"
    before: Any = OmegaConf.load(present) if present.exists() else OmegaConf.create()
    again = f"--trials {asked.trials} --seed {asked.seed} {shlex.join(asked.settings)}"
    text = preset(trials, before, f"python experiments/tune.py {again}")
    place, console = (
        folder / f"preset-{asked.trials}.yaml",
        Console(highlight=False, markup=False, soft_wrap=True),
    )
    console.print(text)
    if place.exists():
        console.print(f"{place} was written before and stays as it is.")
    else:
        write_text(place, [text])
        console.print(f"Written to {place}; it is meant for {present.relative_to(CONF.parent)}.")


if __name__ == "__main__":
    run_command(main)
