"""The picture of ``experiments/locate.py``: causal tracing by layer, and the trial washes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from law.editing.causal_tracing import Effect
from law.reporting.drawing import save
from law.runs.locating import Tracing, Trial, best

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "0.2"


def plot_tracing(tracing: Tracing, trials: Sequence[Trial], path: Path) -> None:
    """Write three panels: interchange and noise tracing over the layers, and each trial's facts left and kept."""
    chosen = best(trials)
    figure = Figure((13, 4), layout="constrained")
    exchanged, restored, washed = figure.subplots(1, 3)
    _band(exchanged, tracing.interchange.effects, BLUE, "o", "subject's state exchanged")
    exchanged.set(title=f"interchange, {tracing.interchange.pairs} pairs", ylabel="fall of log p (nats)")
    for effects, colour, marker, label in (
        (tracing.block, BLACK, "o", "block's output"),
        (tracing.mlp, ORANGE, "s", "MLPs of a window"),
        (tracing.attention, GREEN, "^", "attentions of a window"),
    ):
        _band(restored, effects, colour, marker, label)
    restored.set(title=f"noise tracing, {tracing.traced} facts", ylabel="rise of log p (nats)")
    for axes in (exchanged, restored):
        axes.axvspan(
            chosen.layers[0] - 0.5, chosen.layers[-1] + 0.5, color="0.9", zorder=0, label="proposed R"
        )
        axes.set(xlabel="layer")
        axes.legend(frameon=False)
    for layers in dict.fromkeys(tuple(trial.layers) for trial in trials):
        curve = [trial for trial in trials if tuple(trial.layers) == layers]
        label = f"R = {layers[0]}" + (f"–{layers[-1]}" if len(layers) > 1 else "")
        washed.errorbar(
            [100 * (1 - trial.left) for trial in curve],
            [100 * trial.kept for trial in curve],
            xerr=[100 * trial.error(trial.left, trial.washed) for trial in curve],
            yerr=[100 * trial.error(trial.kept, trial.others) for trial in curve],
            fmt="o-",
            markersize=4,
            linewidth=1,
            label=label,
        )
    washed.plot(100 * (1 - chosen.left), 100 * chosen.kept, "*", color=BLACK, markersize=14, label="proposal")
    washed.set(
        title=f"trial washes of {chosen.washed} facts",
        xlabel="washed facts forgotten (%)",
        ylabel=f"other facts kept (%), of {chosen.others}",
        xlim=(-3, 103),
        ylim=(-3, 103),
    )
    washed.legend(frameon=False)
    for axes in (exchanged, restored, washed):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _band(axes: Axes, effects: Sequence[Effect], colour: str, marker: str, label: str) -> None:
    """A curve over the layers with a band of one standard error."""
    layers, means = range(len(effects)), [effect.mean for effect in effects]
    axes.plot(layers, means, marker, linestyle="-", color=colour, markersize=4, linewidth=1, label=label)
    low, high = ([e.mean + sign * e.stderr for e in effects] for sign in (-1, 1))
    axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
