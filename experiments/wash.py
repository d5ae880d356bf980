"""Wash a model of facts and score what is forgotten and what is kept.

python experiments/wash.py model=lab dataset=lab method=law
python experiments/wash.py -m method=law,memit,gradient_ascent seed=0,1
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from law.cli import run_command
from law.config import build, identity
from law.run import Job, finished, wash_and_score

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> dict[str, float]:
    """One run; a configuration that has finished already is not run again."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    this = identity(config)
    metrics = None if config.rerun else finished(folder, this)
    if metrics is not None:
        log.info("%s has finished before; rerun=true runs it again", folder)
        return metrics
    job = Job(
        model=build(config.model),
        source=build(config.dataset),
        method=build(config.method),
        evaluation=build(config.evaluation),
        tracker=build(config.tracker),
        save=config.save,
        folder=folder,
        identity=this,
    )
    return wash_and_score(job)


if __name__ == "__main__":
    run_command(main)
