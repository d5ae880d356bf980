"""Wash a model of facts and score what is forgotten and what is kept.

python experiments/wash.py model=lab dataset=lab method=law
python experiments/wash.py -m method=law,memit,gradient_ascent seed=0,1
torchrun --nproc-per-node 4 experiments/wash.py model=gpt-j-6b dataset=counterfact method=law
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from law.base.processes import failing_together, gathered, processes, rank
from law.decoders.saving import Save
from law.runs.command_line import failures_told, run_command
from law.runs.configuration import build, identity
from law.runs.identity import finished
from law.runs.knob import turned
from law.runs.lock import sole
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> dict[str, float]:
    """Make one run. A run that has finished is not repeated, and one that another process makes is waited for."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with failing_together(), failures_told(), sole(folder):
        return _run(turned(config), folder)


def _run(config: DictConfig, folder: Path) -> dict[str, float]:
    this = identity(config)
    metrics = gathered(None if config.rerun else finished(folder, this))[0]
    if metrics is not None:
        return metrics
    job = Job(
        model=build(config.model),
        source=build(config.dataset),
        method=build(config.method),
        evaluation=build(config.evaluation),
        # of several processes each keeps a record; the first one's is the run's
        tracker=NoTracker() if rank() else build(config.tracker),
        save=Save.nothing if rank() else config.save,
        folder=folder / f"process_{rank()}" if rank() else folder,
        identity=this,
        prompting=build(config.prompting),
        attacks=build(config.attack),
    )
    return wash_and_score(job)


if __name__ == "__main__":
    with processes():
        run_command(main)
