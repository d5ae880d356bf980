"""The headline numbers as tables: one for each block of a sweep and each way to count what is left."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from law.base.files import replacing, write_text
from law.reporting.blocks import Block, Curve, blocks_of
from law.reporting.frontier_scores import MEASURES, REASONING, Frontiers, Measure, Number, ways_of
from law.reporting.loading import load_sweep
from law.reporting.notes import MEANINGS
from law.reporting.resampling import DRAWS, LEVEL
from law.reporting.tables import list_remarks
from law.reporting.typesetting import Cell, Table, pipes, to_latex

NAMES = {"forget/accuracy": "", "forget/unrefused_accuracy": ", first token not refusing"}
"""What tells the tables of one block apart."""

LEGEND = (
    "Kept at 10 % left: other facts that a method keeps when a tenth of the washed facts is left, read off its frontier. "
    "Reasoning at 10 % left: mean accuracy of the same models{before}. Area: under the frontier, from nothing forgotten to "
    "everything forgotten; 100 is the ideal. Not reached: in some seed no value of the knob leaves so little; in parentheses, how many "
    "seeds reach it. Numbers are in percent."
)
HOW = (
    "In brackets: the {covered:.0f} % interval of a bootstrap over seeds, facts (clustered by subject) and items of reasoning ({draws} draws; "
    "those in which the frontier does not reach the number are left out). Bold: the best of a column, and what is not told apart from it "
    "(paired bootstrap on the same facts and items, p ≥ {level} after Holm's correction over the methods)."
)

Numbers = Mapping[str, Mapping[str, Number]]  # by the title of the measure and the label of the curve


def write_frontier(folder: Path) -> tuple[list[Path], list[Table], list[str]]:
    """Write ``frontier.md``, ``frontier.tex`` and ``frontier.csv`` into the folder of a sweep.

    Returns:
        The files, the tables, and the remarks on the sweep.

    Raises:
        LawError: there is no finished run, or no frontier (:func:`~law.reporting.blocks.blocks_of`).
    """
    sweep = load_sweep(folder)
    remarks = list_remarks(sweep)
    tables: list[Table] = []
    lines: list[dict[str, object]] = []
    for block in blocks_of(sweep):
        for left in ways_of(block):
            numbers = numbers_of(Frontiers(block, left))
            tables.append(frontier_table(block, left, numbers))
            lines += _lines(block, left, numbers)
    paths = [folder / f"frontier.{end}" for end in ("md", "tex", "csv")]
    texts = [f"### {one.title}\n\n{pipes(one)}\n\n{one.legend} {one.note}\n" for one in tables]
    write_text(paths[0], ["\n".join([*texts, *(f"- {remark}" for remark in remarks), ""])])
    write_text(paths[1], [to_latex(tables, remarks)])
    with replacing(paths[2]) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return paths, tables, remarks


def numbers_of(frontiers: Frontiers) -> dict[str, dict[str, Number]]:
    """Every measure that some run of the block can have."""
    reasoned = any(REASONING in run.metrics for run in frontiers.block.runs)
    return {one.title: frontiers.numbers(one) for one in MEASURES if reasoned or not _of_reasoning(one)}


def frontier_table(block: Block, left: str, numbers: Numbers) -> Table:
    """A row for each curve."""
    rows = [
        [Cell(curve.label), Cell(_runs(curve)), *(_cell(of[curve.label]) for of in numbers.values())]
        for curve in block.curves
    ]
    before = {run.metrics.get(f"{REASONING}_before") for run in block.runs} - {None}
    told = "" if len(before) != 1 else f" (unwashed: {100 * before.pop():.1f})"  # type: ignore[operator]
    swept = "; ".join(f"{curve.label} by {curve.knob} ({_values(curve)} values)" for curve in block.curves)
    legend = f"Left: {MEANINGS[left]}. {LEGEND.format(before=told)} Knobs: {swept}."
    note = HOW.format(covered=100 * (1 - LEVEL), draws=f"{DRAWS:,}", level=LEVEL)
    headings = ["method", "runs", *(f"{title} ↑" for title in numbers)]
    return Table(f"{block.title}{NAMES[left]}", headings, rows, names=1, legend=legend, note=note)


def _of_reasoning(measure: Measure) -> bool:
    return measure.title.startswith("reasoning")


def _runs(curve: Curve) -> str:
    done = len(curve.runs)
    return f"{done} of {done + curve.owed}" if curve.owed else str(done)


def _values(curve: Curve) -> int:
    """At how many values of its knob a curve was measured."""
    return len({run.knob for run in curve.runs})


def _cell(one: Number) -> Cell:
    if one.value is None:
        return Cell(f"not reached ({one.reached} of {one.seeds})" if one.reached else "not reached")
    between = "" if one.interval is None else " [{:.1f}, {:.1f}]".format(*(100 * end for end in one.interval))
    return Cell(f"{100 * one.value:.1f}{between}", one.best)


def _lines(block: Block, left: str, numbers: Numbers) -> list[dict[str, object]]:
    """The lines of the CSV file: fractions between 0 and 1; a number that is not reached is empty."""
    return [
        {
            "model": block.model,
            "dataset": block.dataset,
            "block": block.title,
            "left": left,
            "method": curve.label,
            "knob": curve.knob,
            "values": _values(curve),
            "seeds": one.seeds,
            "reached": one.reached,
            "number": title,
            "value": one.value,
            "low": one.interval and one.interval[0],
            "high": one.interval and one.interval[1],
            "p": one.p,
        }
        for title, of in numbers.items()
        for curve in block.curves
        for one in [of[curve.label]]
    ]
