"""Draw the finished runs of a sweep: ``python experiments/figure.py washed_facts outputs/washed_facts``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from law.base.console import one_paragraph
from law.base.errors import LawError
from law.reporting.loading import load_sweep
from law.reporting.pictures import PICTURES, Picture, plot_facts_left, plot_setting


def main() -> None:
    """Draw the picture and say where it is."""
    parser = argparse.ArgumentParser(description="Write <what>.png into the folder of the runs.")
    names = ", ".join(("facts_left", *PICTURES))
    parser.add_argument("what", help=f"{names}, or a setting that was swept, such as method.learning_rate")
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    chosen = parser.parse_args()
    path = chosen.folder / f"{chosen.what}.png"
    if chosen.what == "facts_left":
        plot_facts_left(load_sweep(chosen.folder), path)
    elif chosen.what in PICTURES or "." in chosen.what:
        picture = PICTURES.get(chosen.what, Picture(chosen.what, chosen.what))
        plot_setting(load_sweep(chosen.folder), picture, path)
    else:
        raise LawError(f"There is no picture {chosen.what!r}; expected {names}, or a setting that was swept.")
    Console(highlight=False, markup=False, soft_wrap=True).print(f"Wrote {path}.")


if __name__ == "__main__":
    with one_paragraph():
        main()
