"""Measure where in a model facts can be washed, and propose the layers and λ of a preset.

python experiments/locate.py model=lab dataset=lab
python experiments/locate.py model=local model.path=/some/folder dataset=counterfact dataset.path=facts.json
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from law.base.files import write_text
from law.decoders.description import anatomy, habits
from law.decoders.loading import load_model
from law.decoders.prompting import put
from law.decoders.structure import Decoder
from law.reporting.tracing_picture import plot_tracing
from law.runs.command_line import run_command
from law.runs.configuration import build, check_config
from law.runs.locating import Trial, best, candidate_layers, known_facts, trace, trial_washes


@hydra.main(version_base="1.3", config_path="../conf", config_name="locate")
def main(config: DictConfig) -> Trial:
    """Trace known facts, wash a sample of them with candidates for R and λ, and propose the best trial."""
    check_config(config)
    settings = build(config.locate)
    split = build(config.dataset).load()
    model, tokenizer = load_model(build(config.model))
    split, tokenizer = put(split, tokenizer, build(config.prompting))
    console = Console(highlight=False)
    table = Table("part", "read as", title="how the model and its tokenizer are read")
    for part, read in (asdict(anatomy(Decoder(model))) | asdict(habits(tokenizer))).items():
        table.add_row(part.replace("_", " "), str(read) or "none")
    console.print(table)

    known, asked = known_facts(model, tokenizer, chain(split.wash, split.keep), settings)
    console.print(f"{asked} facts were asked to find {len(known)} that the model knows.")
    tracing = trace(model, tokenizer, known, settings)
    table = Table(
        "layer", "exchanged", "answer lost", "answer follows", "block restored", "MLPs", "attentions",
        title=f"change of log p (nats): {tracing.interchange.pairs} pairs exchanged, {tracing.traced} facts with noise",
    )  # fmt: skip
    exchanged = tracing.interchange
    for layer, effects in enumerate(
        zip(exchanged.effects, tracing.block, tracing.mlp, tracing.attention, strict=True)
    ):
        fall, *rises = (f"{effect.mean:.2f} ± {effect.stderr:.2f}" for effect in effects)
        shares = (f"{100 * share[layer]:.0f} %" for share in (exchanged.lost, exchanged.followed))
        table.add_row(str(layer), fall, *shares, *rises)
    console.print(table)

    trials = trial_washes(model, tokenizer, known, candidate_layers(tracing, settings), settings)
    chosen = best(trials)
    table = Table(
        "R", "λ", "left", "kept", title=f"trial washes: {chosen.washed} facts washed, {chosen.others} kept"
    )
    for trial in trials:
        shares = (
            f"{100 * share:.0f} ± {100 * trial.error(share, count):.0f} %"
            for share, count in ((trial.left, trial.washed), (trial.kept, trial.others))
        )
        table.add_row(str(trial.layers), f"{trial.lam:g}", *shares, style="bold" if trial is chosen else "")
    console.print(table)
    folder = Path(config.output)
    plot_tracing(tracing, trials, folder / "locate.png")
    preset = OmegaConf.to_yaml({"layers": chosen.layers, "lam": chosen.lam})
    write_text(folder / "memit.yaml", [preset])
    console.print(
        f"Proposed from {chosen.washed} facts ({folder}/memit.yaml; picture: {folder}/locate.png):\n{preset}"
    )
    return chosen


if __name__ == "__main__":
    run_command(main)
