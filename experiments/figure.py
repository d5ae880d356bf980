"""Draw the finished runs of a sweep: ``python experiments/figure.py washed_facts outputs/washed_facts``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from law.base.console import accept_any_text
from law.base.errors import LawError
from law.reporting.loading import load_sweep
from law.reporting.pictures import PICTURES, Picture, plot_facts_left, plot_setting

if __name__ == "__main__":
    accept_any_text()
    parser = argparse.ArgumentParser(description="Write <what>.png into the folder of the runs.")
    names = ", ".join(("facts_left", *PICTURES))
    parser.add_argument("what", help=f"{names}, or a setting that was swept, such as method.learning_rate")
    parser.add_argument("folder", type=Path, help="the folder of the runs, outputs/<name>")
    chosen = parser.parse_args()
    path = chosen.folder / f"{chosen.what}.png"
    try:
        if chosen.what == "facts_left":
            plot_facts_left(load_sweep(chosen.folder), path)
        elif chosen.what in PICTURES or "." in chosen.what:
            plot_setting(
                load_sweep(chosen.folder), PICTURES.get(chosen.what, Picture(chosen.what, chosen.what)), path
            )
        else:
            raise LawError(
                f"There is no picture {chosen.what!r}. Expected {names}, or a setting that was swept."
            )
    except LawError as error:
        raise SystemExit(str(error)) from None
    Console(highlight=False, markup=False, soft_wrap=True).print(f"Wrote {path}.")
