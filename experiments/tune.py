"""Search for a method's settings with Optuna, on facts that no result uses (docs/how-to/tune.md).

python experiments/tune.py experiment=lab_validation method=memit
python experiments/tune.py --trials 40 experiment=real_validation method=npo dataset.path=counterfact.json
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console

from law.base.errors import LawError
from law.base.files import write_text
from law.facts.source import Part
from law.runs.command_line import run_command
from law.runs.configuration import check_config
from law.runs.folder import METRICS, read_object
from law.runs.search import bounds_of, preset, search

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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=asked.settings)
        choices = compose("config", asked.settings, return_hydra_config=True).hydra.runtime.choices
    check_config(config)
    if config.dataset.part is not Part.validation:
        raise LawError(
            f"dataset.part is {config.dataset.part.value}; expected validation, since settings are not chosen on facts that results "
            "are reported on. Set dataset.part=validation, or experiment=lab_validation."
        )
    name = f"{choices.model}-{choices.dataset}-{choices.method}"
    folder = asked.output or Path("outputs/tune") / name

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        """A trial in a process of its own: an ordinary run, in its folder."""
        place = folder / f"trial-{number:03}"
        overrides = [*asked.settings, *(f"{key}={value:g}" for key, value in settings.items())]
        command = [
            sys.executable,
            str(CONF.parent / "experiments/wash.py"),
            *overrides,
            f"hydra.run.dir={place}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LawError(
                f"Trial {number} failed; {place} has its log. {done.stderr.strip().splitlines()[-1]}"
            )
        return read_object(place / METRICS) or {}

    study = search(folder, name, bounds_of(config), asked.trials, asked.seed, run)
    command = (
        f"python experiments/tune.py --trials {asked.trials} --seed {asked.seed} {' '.join(asked.settings)}"
    )
    text = preset(study.get_trials(deepcopy=False), command)
    write_text(folder / "preset.yaml", [text])
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(text)
    console.print(
        f"Written to {folder / 'preset.yaml'}; its place is conf/preset/{choices.model}/{choices.method}.yaml."
    )


if __name__ == "__main__":
    run_command(main)
