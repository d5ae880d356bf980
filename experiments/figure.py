"""Draw the finished runs of a sweep: ``python experiments/figure.py washed_facts outputs/washed_facts``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from law.base.console import one_paragraph
from law.base.errors import LawError
from law.reporting.attack_picture import plot_attacks
from law.reporting.critical_difference import plot_critical_difference
from law.reporting.frontier_picture import plot_frontier
from law.reporting.loading import load_sweep
from law.reporting.pictures import PICTURES, Picture, plot_facts_left, plot_setting

DRAW = {"attacks": plot_attacks, "facts_left": plot_facts_left, "frontier": plot_frontier}
RANKS = "critical_difference"
"""The picture of several sweeps."""


def main() -> None:
    """Draw the picture and say where it is."""
    parser = argparse.ArgumentParser(description="Write <what>.png into the folder of the runs.")
    names = ", ".join((*DRAW, RANKS, *PICTURES))
    parser.add_argument("what", help=f"{names}, or a setting that was swept, such as method.learning_rate")
    parser.add_argument(
        "folder", type=Path, nargs="+", help=f"the folder of the runs, outputs/<name>; several for {RANKS}"
    )
    chosen = parser.parse_args()
    folder = chosen.folder[0]
    path = folder / f"{chosen.what}.png"
    if chosen.what == RANKS:
        plot_critical_difference([*map(load_sweep, chosen.folder)], path)
    elif len(chosen.folder) > 1:
        raise LawError(
            f"{chosen.what} of {len(chosen.folder)} folders was asked for; expected one folder, since only {RANKS} compares "
            "several. Draw them one by one."
        )
    elif chosen.what in DRAW:
        DRAW[chosen.what](load_sweep(folder), path)
    elif chosen.what in PICTURES or "." in chosen.what:
        picture = PICTURES.get(chosen.what, Picture(chosen.what, chosen.what))
        plot_setting(load_sweep(folder), picture, path)
    else:
        raise LawError(f"There is no picture {chosen.what!r}; expected {names}, or a setting that was swept.")
    Console(highlight=False, markup=False, soft_wrap=True).print(f"Wrote {path}.")


if __name__ == "__main__":
    with one_paragraph():
        main()
