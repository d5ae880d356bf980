"""The picture of attacks: what each recovers of the washed facts, by method."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from law.base.errors import LawError
from law.reporting.attack_table import columns_of
from law.reporting.comparability import panels_of
from law.reporting.drawing import Handles, finish, looks_of, meaning_of_bars, plain, tidy
from law.reporting.labels import labels
from law.reporting.summary import score
from law.reporting.sweep import Sweep

ASKED = "forget/accuracy"
WIDTH = 0.7
"""The share of the room between two attacks that the marks of all methods take."""


def plot_attacks(sweep: Sweep, path: Path) -> None:
    """The score of each attack (:data:`~law.reporting.attack_table.COLUMNS`), a mark for each setup, a row for each panel.

    The first place is the washed prompt itself, without an attack. The pentagon is the unwashed model, and the line the
    facts that nobody knew. Bars are the sample standard deviation over runs, or the standard error over the facts of one run.

    Raises:
        LawError: no run was attacked.
    """
    washed = [run for run in sweep.runs if run.setup.method != "none"]
    columns = columns_of(run.metrics for run in washed)
    if not columns:
        raise LawError(
            f"No washed run of {path.parent} was attacked; expected some with attack=quick or attack=all. Attack finished runs "
            f"that kept their washed model by python experiments/attack.py {path.parent}."
        )
    attacks = {ASKED: "asked as\nwashed"} | {key: title for key, (title, _) in columns.items()}
    panels = panels_of({run.setup for run in washed})
    named = {setup: label for panel in panels for setup, label in labels(panel.setups).items()}
    looks = looks_of(named)
    figure = Figure((1.0 * len(attacks) + 1.5, 3.8 * len(panels) + 0.4), layout="constrained")
    handles: Handles = {}
    for (axes,), panel in zip(figure.subplots(len(panels), 1, squeeze=False), panels, strict=True):
        mine = [run for run in washed if run.setup in panel.setups]
        for place, key in enumerate(attacks):
            for i, setup in enumerate(panel.setups):
                found = score([run for run in mine if run.setup == setup], key)
                if found is not None:
                    colour, marker = looks[named[setup]]
                    handles[named[setup]] = axes.errorbar(
                        place + WIDTH * ((i + 0.5) / len(panel.setups) - 0.5),
                        100 * found.mean,
                        yerr=100 * (found.spread or 0),
                        color=colour,
                        marker=marker,
                        linestyle="none",
                        capsize=2,
                    )
            every, guessed = score(mine, key), score(mine, f"{key}_control")
            ends = place - WIDTH / 2, place + WIDTH / 2
            if every is not None and every.before is not None:
                handles["unwashed model"] = axes.scatter(
                    place, 100 * every.before, 120, "white", marker="p", edgecolors="black", zorder=1
                )
            if guessed is not None:
                (handles["facts that nobody knew"],) = axes.plot(
                    ends, [100 * guessed.mean] * 2, color="0.5", linestyle="--", zorder=1
                )
        tidy(axes, "", "washed facts recovered (%)")
        axes.set_xticks(range(len(attacks)), attacks.values())
        axes.set_ylim(-5, 105)
        if len(panels) > 1:
            axes.set_title(plain(panel.title), fontsize="medium", loc="left")
    finish(figure, handles, f"What attacks recover of the washed facts ({meaning_of_bars(washed)})", path)
