"""Measure where in a model facts can be washed, and propose the layers and λ of a preset.

python experiments/locate.py model=lab dataset=lab
python experiments/locate.py model=local model.path=/some/folder dataset=counterfact dataset.path=facts.json
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from law.decoders.description import anatomy, habits
from law.decoders.loading import load_model
from law.decoders.structure import Decoder
from law.editing.causal_tracing import interchange
from law.reporting.pictures import plot_reach
from law.runs.command_line import run_command
from law.runs.configuration import LocateConfig, build, check_config
from law.runs.locating import Proposal, known_facts, propose


@hydra.main(version_base="1.3", config_path="../conf", config_name="locate")
def main(config: DictConfig) -> Proposal:
    """Print and plot, for every layer, the share of answers that an exchanged subject moves; propose R and λ."""
    check_config(config, LocateConfig)
    settings = build(config.locate)
    facts = build(config.dataset).load().wash
    model, tokenizer = load_model(build(config.model))
    known = known_facts(model, tokenizer, facts, settings.batch_size)
    reaches = interchange(Decoder(model), tokenizer, known, settings.batch_size)
    proposal = propose(model, tokenizer, known, reaches, settings)

    console = Console(highlight=False)
    table = Table("part", "read as", title="how the model and its tokenizer are read")
    for part, read in (asdict(anatomy(Decoder(model))) | asdict(habits(tokenizer))).items():
        table.add_row(part.replace("_", " "), str(read) or "none")
    console.print(table)
    table = Table(
        "layer", "answer lost", "answer follows", title=f"subject's last token exchanged, {len(known)} facts"
    )
    for layer, reach in enumerate(reaches):
        table.add_row(str(layer), f"{100 * reach.lost:.1f} %", f"{100 * reach.followed:.1f} %")
    console.print(table)
    table = Table("λ", "residual placed", title=f"layer {proposal.layers[0]} of {proposal.layers}")
    for lam, share in proposal.placed.items():
        table.add_row(f"{lam:g}", f"{100 * share:.1f} %")
    console.print(table)
    folder = Path(config.output)
    plot_reach(reaches, proposal, folder / "reach.png")
    preset = OmegaConf.to_yaml({"layers": proposal.layers, "lam": proposal.lam})
    (folder / "memit.yaml").write_text(preset, encoding="utf-8")
    console.print(
        f"Proposed for {len(known)} facts ({folder}/memit.yaml; picture: {folder}/reach.png):\n{preset}"
    )
    return proposal


if __name__ == "__main__":
    run_command(main)
