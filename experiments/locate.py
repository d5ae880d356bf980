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
from law.locate import Reach, interchange
from law.models import load_model


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> list[Reach]:
    """Print, for every layer, the shares of answers that an exchanged subject moves."""
    facts = build(config.dataset).load().wash
    model, tokenizer = load_model(build(config.model))
    reaches = interchange(Decoder(model), tokenizer, facts, build(config.evaluation).batch_size)
    title = f"the subject's last token exchanged, {len(facts)} facts"
    table = Table("layer", "answer lost", "answer follows", title=title)
    for layer, reach in enumerate(reaches):
        table.add_row(str(layer), f"{100 * reach.lost:.1f} %", f"{100 * reach.followed:.1f} %")
    Console().print(table)
    return reaches


if __name__ == "__main__":
    run_command(main)
