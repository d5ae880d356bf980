"""One HTML page about a sweep that needs nothing else: tables that sort and filter, pictures, answers, and every run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader

from law.base.errors import LawError
from law.base.files import write_text
from law.reporting.drawing import names_in_order
from law.reporting.loading import load_sweep
from law.reporting.pictures import plot_facts_left
from law.reporting.summary import score
from law.reporting.sweep import Run, Setup, Sweep
from law.reporting.tables import SHORT, as_text, build_report, metrics_among
from law.reporting.tradeoff import can_plot_tradeoff, plot_tradeoff
from law.reporting.typesetting import NOTHING, Cell
from law.runs.folder import MANIFEST, PREDICTIONS, read_lines

PAGE = "report.html"

ANSWERS = 50
"""So many washed facts of a row are shown with their answers: a page of 500 rows still opens at once."""

RECALLED = {True: "yes", False: "no", None: NOTHING}


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a sweep.

    Raises:
        LawError: there is no finished run.
    """
    sweep = load_sweep(folder)
    report = build_report(sweep)
    names = names_in_order(sweep.setups)
    headings, rows = _run_table(sweep, names)
    sections = {"scores": "Scores", "columns": "All columns"}
    pictures = [*_pictures(sweep)]
    sections |= {id_: name for id_, name, _ in pictures}
    sections |= {"attacks": "Attacks"} if report.attacks else {}
    sections |= {"answers": "Answers before and after", "runs": "Runs"}
    first = {run.setup: run for run in reversed(sweep.runs)}
    data = {
        "answers": {names[setup]: _answers(run) for setup, run in first.items()},
        "runs": {run.folder.name: _record(run.folder) for run in sweep.runs},
    }
    loader = PackageLoader("law.reporting", package_path="")
    template = Environment(loader=loader, autoescape=True).get_template("page.html")
    page = template.render(
        title=f"Knowledge washing: {folder.resolve().name}",
        sections=sections.items(),
        short=report.short,
        full=report.full,
        attacks=report.attacks,
        remarks=report.remarks,
        pictures=pictures,
        limit=ANSWERS,
        run_headings=headings,
        run_rows=rows,
        data=data,
    )
    write_text(folder / PAGE, [page])
    return folder / PAGE


def _pictures(sweep: Sweep) -> Iterator[tuple[str, str, str]]:
    """An identifier, a name and the PNG in base64 of each picture that the runs have numbers for."""
    if can_plot_tradeoff(sweep):
        yield "frontier", "What washing costs", _drawn(plot_tradeoff, sweep)
    try:
        yield "layers", "Facts left after each layer", _drawn(plot_facts_left, sweep)
    except LawError:  # no method reported them
        return


def _drawn(plot: Callable[[Sweep, Path], None], sweep: Sweep) -> str:
    with TemporaryDirectory() as folder:
        plot(sweep, Path(folder) / "picture.png")
        return base64.b64encode((Path(folder) / "picture.png").read_bytes()).decode()


def _run_table(sweep: Sweep, names: Mapping[Setup, str]) -> tuple[list[str], list[list[Cell]]]:
    """The columns of the short table, of every single run."""
    metrics = metrics_among(SHORT, {key for run in sweep.runs for key in run.metrics})
    rows = []
    for run in sweep.runs:
        found = [score([run], metric.key) for metric in metrics]
        texts = [as_text(m, s.mean, s.spread) if s else NOTHING for m, s in zip(metrics, found, strict=True)]
        rows.append([*map(Cell, (run.folder.name, names[run.setup], str(run.seed), *texts))])
    return ["run", "row", "seed", *(SHORT[metric.key] for metric in metrics)], rows


def _answers(run: Run) -> list[list[str]]:
    """What the table of answers shows of a run; nothing if an earlier version of the code wrote other files."""
    try:
        known = [row for row in read_lines(run.folder / PREDICTIONS) if row["known_before"]]
        return [
            [
                row["prompt"],
                row["object"],
                row["answer_before"],
                row["answer_after"],
                RECALLED[row["known_after"]],
            ]
            for row in known[:ANSWERS]
        ]
    except (OSError, ValueError, KeyError):
        return []


def _record(folder: Path) -> str:
    """The manifest and the configuration of a run as text."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    config = folder / ".hydra" / "config.yaml"
    return f"{text}\n\n{config.read_text(encoding='utf-8')}" if config.is_file() else text
