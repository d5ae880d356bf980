"""Measure, layer by layer, where the subject's last token still decides the answer.

python experiments/locate.py model=lab dataset=lab
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from law.architectures import Decoder
from law.cli import run_command
from law.config import build
from law.locate import interchange
from law.models import load_model


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> list[float]:
    """Print the share of answers that follow an exchanged subject, for every layer."""
    facts = build(config.dataset).load().wash
    model, tokenizer = load_model(build(config.model))
    shares = interchange(Decoder(model), tokenizer, facts, build(config.evaluation).batch_size)
    table = Table("layer", "answers that follow the exchanged subject", title=f"{len(facts)} facts")
    for layer, share in enumerate(shares):
        table.add_row(str(layer), f"{100 * share:.1f} %")
    Console().print(table)
    return shares


if __name__ == "__main__":
    run_command(main)
