"""Train a lab model on a world, and measure what it knows and how it reasons.

python experiments/train_lab.py
python experiments/train_lab.py world=counterfact dataset.path=facts.json 'world.text=[text.txt]'
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from law.lab.make import make_lab
from law.runs.command_line import run_command
from law.runs.configuration import build, train_settings


@hydra.main(version_base="1.3", config_path="../conf", config_name="train_lab")
def main(config: DictConfig) -> dict[str, float]:
    """Train, or go on training, and write the checkpoint to ``output``."""
    return make_lab(build(config.world), train_settings(config))


if __name__ == "__main__":
    run_command(main)
