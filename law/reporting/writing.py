"""Write the tables and the picture of a sweep beside its runs."""

from __future__ import annotations

from pathlib import Path

from law.base.files import write_text
from law.reporting.loading import load_sweep
from law.reporting.published_numbers import load_published
from law.reporting.summary import write_csv
from law.reporting.tables import Report, build_report
from law.reporting.tradeoff import can_plot_tradeoff, plot_tradeoff
from law.reporting.typesetting import to_latex, to_markdown


def write_tables(folder: Path, published: Path | None = None) -> tuple[list[Path], Report]:
    """Write ``table.md`` (short and full tables, and those of attacks), ``table.tex``, ``table.csv`` and ``tradeoff.png``.

    There is no picture if no run has scores for both of its axes.

    Returns:
        The files, and what they hold.

    Raises:
        LawError: no finished run, or published numbers that are malformed.
    """
    quoted = load_published(published) if published else []
    sweep = load_sweep(folder)
    report = build_report(sweep, quoted)
    paths = [folder / name for name in ("table.md", "table.csv", "table.tex")]
    write_text(paths[0], [to_markdown(report.short, report.full, report.attacks, report.remarks)])
    write_csv(sweep, paths[1])
    write_text(paths[2], [to_latex([*report.full, *report.attacks], report.remarks)])
    if can_plot_tradeoff(sweep):
        paths.append(folder / "tradeoff.png")
        plot_tradeoff(sweep, paths[-1])
    return paths, report
