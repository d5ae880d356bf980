"""List the facts of a data set that a model knows, for ``dataset.ids``.

python experiments/known_facts.py model=smollm2-135m dataset=counterfact
python experiments/wash.py model=smollm2-135m dataset=counterfact dataset.ids=outputs/known_facts/… dataset.wash=200
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from law.base.files import write_json
from law.decoders.loading import load_model
from law.decoders.prompting import put
from law.evaluation.known_facts import list_known_facts
from law.evaluation.scores import Scorer
from law.runs.command_line import run_command
from law.runs.configuration import build, check_config

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="known_facts")
def main(config: DictConfig) -> None:
    """Ask the model for every fact, and write the ids of those that it knows."""
    check_config(config)
    source, scorer = build(config.dataset), Scorer(build(config.evaluation))
    split = source.load()
    model, tokenizer = load_model(build(config.model))
    split, tokenizer = put(split, tokenizer, build(config.prompting))
    examined = scorer.on(model, tokenizer, cached=True)
    found = list_known_facts(
        [*split.wash, *split.keep],
        split.others,
        examined.answers,
        scorer.settings.recall,
        source.known.value == "subject",
    )
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model_hash": examined.hash, **found})
    log.info("%d of %d facts are known (%s): %s", len(found["ids"]), found["asked"], found["kinds"], path)


if __name__ == "__main__":
    run_command(main)
