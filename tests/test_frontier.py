"""Frontiers against numbers worked out by hand, against np.interp on the envelope, and against closed-form errors."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from run_folders import save, save_multirun

from law.base.errors import LawError
from law.evaluation.estimates import clustered_mean
from law.reporting.blocks import blocks_of
from law.reporting.critical_difference import plot_critical_difference, ranks_of
from law.reporting.frontier import along, area
from law.reporting.frontier_picture import frontier_of, marks_of, plot_frontier
from law.reporting.frontier_scores import MEASURES, Frontiers
from law.reporting.frontier_table import write_frontier
from law.reporting.loading import load_sweep
from law.reporting.resampling import draw_weights, holm, interval, p_value

SCRIPTS = Path(__file__).parents[1] / "experiments"


# --- the curve ----------------------------------------------------------------------------------

# the unwashed model, three points of the envelope, and one that (0.9, 0.5) surpasses
FORGOTTEN = np.array([[0.0, 0.5, 0.9, 1.0, 0.7]])
KEPT = np.array([[1.0, 0.8, 0.5, 0.1, 0.4]])
REASONING = np.array([[0.9, 0.8, 0.7, 0.5, 0.2]])


@pytest.mark.parametrize(
    ("wanted", "kept", "reasoning"),
    [
        (0.0, 1.0, 0.9),
        (0.25, 0.9, 0.85),  # half way from (0, 1) to (0.5, 0.8)
        (0.6, 0.725, 0.775),  # a quarter of the way from (0.5, 0.8) to (0.9, 0.5)
        (0.9, 0.5, 0.7),
        (0.95, 0.3, 0.6),  # half way from (0.9, 0.5) to (1, 0.1)
        (1.0, 0.1, 0.5),
    ],
)
def test_kept_and_reasoning_are_interpolated_on_the_envelope(
    wanted: float, kept: float, reasoning: float
) -> None:
    found = along(FORGOTTEN, KEPT, wanted, REASONING)
    assert [one.item() for one in found] == pytest.approx([kept, reasoning])


def test_the_area_is_that_of_the_trapezoids() -> None:
    """0.5 · (1 + 0.8)/2 + 0.4 · (0.8 + 0.5)/2 + 0.1 · (0.5 + 0.1)/2 = 0.45 + 0.26 + 0.03."""
    assert area(FORGOTTEN, KEPT).item() == pytest.approx(0.74)
    assert area(FORGOTTEN[:, :2], KEPT[:, :2]).item() == pytest.approx(0.45)  # nothing beyond 0.5
    assert area(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])).item() == pytest.approx(1)
    assert area(np.array([[0.0]]), np.array([[1.0]])).item() == 0


def test_what_no_point_forgets_is_not_reached() -> None:
    forgotten, kept = np.array([[0.0, 0.85], [0.0, 0.9 - 1e-12]]), np.array([[1.0, 0.6], [1.0, 0.6]])
    (found,) = along(forgotten, kept, 0.9)
    assert np.isnan(found[0]) and found[1] == pytest.approx(0.6)  # 18 of 20 may be 0.8999…


def test_a_point_that_forgets_and_keeps_everything_else_replaces_the_unwashed_model() -> None:
    forgotten, kept, reasoning = (np.array([row]) for row in ([0, 0.4], [1, 1], [0.9, 0.7]))
    assert [one.item() for one in along(forgotten, kept, 0.2, reasoning)] == pytest.approx([1, 0.7])


def envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one surpasses, by rising share forgotten."""
    ordered = sorted({*points}, reverse=True)
    best: list[tuple[float, float]] = []
    for f, k in ordered:
        if not best or k > best[-1][1]:
            best.append((f, k))
    return best[::-1]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9), st.integers(0, 40)
)
def test_any_points_against_interpolation_on_their_envelope(
    drawn: list[tuple[int, int]], wanted: int
) -> None:
    points = [(0.0, 1.0), *((f / 20, k / 20) for f, k in drawn)]
    f, k = (np.array([one]) for one in zip(*points, strict=True))
    x, y = zip(*envelope(points), strict=True)
    (found,) = along(f, k, wanted / 40)
    if wanted / 40 > x[-1]:
        assert np.isnan(found.item())
    else:
        assert found.item() == pytest.approx(np.interp(wanted / 40, x, y))
    edges = [(0.0, y[0]), *zip(x, y, strict=True)]
    by_hand = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(edges))
    assert area(f, k).item() == pytest.approx(by_hand)


# --- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.2, 0.5, 0.9], [0.0, 1.0], [0.1] * 5 + [0.7] * 5])
def test_the_variance_of_a_drawn_mean_is_the_unbiased_one_of_a_mean(values: list[float]) -> None:
    weights = draw_weights(len(values), np.random.default_rng(1), 40_000)
    assert (weights[0] == 1).all()
    means = weights[1:] @ values / weights[1:].sum(1)
    assert means.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.03)


def test_one_item_is_in_every_draw() -> None:
    assert (draw_weights(1, np.random.default_rng(0), 3) == np.ones((4, 1))).all()


def test_holms_correction() -> None:
    """0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 · 1, which may not be below 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_p_value_is_twice_the_rarer_side_with_the_data_on_it() -> None:
    draws = np.array([0.5, *[1.0] * 8, -1.0, np.nan])  # the first is the data
    assert p_value(draws) == pytest.approx(2 * (1 + 1) / (1 + 9))
    assert p_value(np.zeros(10)) == 1.0


# --- runs ---------------------------------------------------------------------------------------


def outcome(
    folder: Path,
    washed: Sequence[bool],
    kept: Sequence[bool],
    unrefused: Sequence[bool],
    right: Sequence[int] = (),
) -> None:
    """The files of a run that say what became of its facts and items; two facts in a row share their subject, one was not known."""
    rows = [
        {"id": f"w{i}", "subject": f"s{i // 2}", "known_before": True, "known_after": a, "known_unrefused": b}
        for i, (a, b) in enumerate(zip(washed, unrefused, strict=True))
    ]
    rows.append(
        {"id": "u", "subject": "u", "known_before": False, "known_after": None, "known_unrefused": None}
    )
    others = [
        {
            "id": f"k{i}",
            "subject": f"t{i // 2}",
            "known_before": True,
            "known_after": a,
            "known_unrefused": None,
        }
        for i, a in enumerate(kept)
    ]
    items = [{"task": "arc", "item": i, "before": i < 18, "after": one} for i, one in enumerate(right)]
    for name, lines in (("predictions.jsonl", rows), ("kept.jsonl", others), ("reasoning.jsonl", items)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def point(
    folder: Path,
    method: str,
    at: int,
    left: int,
    kept: int,
    seed: int = 0,
    reasoning: float = 0.8,
    unrefused: int = 20,
    **more: object,
) -> Path:
    """A run at one point of a knob: so many of 20 washed facts are left, and so many of 10 others are kept, and a share of 20 items is solved."""
    metrics = {"forget/accuracy": left / 20, "forget/unrefused_accuracy": unrefused / 20}
    metrics |= {"retain/accuracy": kept / 10, "reasoning/mean": reasoning, "reasoning/mean_before": 0.9}
    metrics["reasoning/arc/acc"] = reasoning
    knob = {"setting": "method.lam", "value": 10.0**at}
    run = save(folder, method, metrics, seed, {"point": str(at)}, knob=knob, **more)
    halves = ([i < count for i in range(size)] for count, size in ((left, 20), (kept, 10), (unrefused, 20)))
    outcome(run, *halves, [i < round(20 * reasoning) for i in range(20)])
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MEMIT over two seeds; NPO, the same but for one kept fact; gradient ascent that keeps next to nothing; RMU, not far enough."""
    for seed, kept in ((0, 8), (1, 6)):
        for method, fewer in (("memit", 0), ("npo", 1)):
            point(tmp_path, method, 0, 10, 9, seed, 0.85)
            point(tmp_path, method, 1, 2, kept - fewer, seed, 0.8)
            point(tmp_path, method, 2, 0, 4, seed, 0.7, unrefused=1)
        point(tmp_path, "gradient_ascent", 0, 10, 1, seed)
        point(tmp_path, "gradient_ascent", 1, 0, 0, seed)
        point(tmp_path, "rmu", 0, 10, 10, seed)
    point(tmp_path, "rmu", 1, 2, 5, 1)
    return tmp_path


def test_the_headline_numbers_by_hand(folder: Path) -> None:
    """MEMIT at 5 % left: half way from 8 (6) to 4 of 10 kept, from 0.8 to 0.7 in reasoning. NPO at 10 % left: 7 and 5."""
    (block,) = blocks_of(load_sweep(folder))
    frontiers = Frontiers(block, "forget/accuracy")
    ten, five, reasoning, whole = (frontiers.numbers(measure) for measure in MEASURES)
    assert (ten["memit"].value, ten["npo"].value) == pytest.approx((0.7, 0.6))
    assert (five["memit"].value, five["npo"].value) == pytest.approx((0.55, 0.5))
    assert reasoning["memit"].value == pytest.approx(0.8)
    # (1 + .9)/2 · .5 + (.9 + .8)/2 · .4 + (.8 + .4)/2 · .1 = .475 + .34 + .06, and with .6 for .8 .475 + .3 + .05
    assert whole["memit"].value == pytest.approx((0.875 + 0.825) / 2)
    assert (ten["rmu"].value, ten["rmu"].reached, ten["rmu"].seeds, ten["rmu"].p) == (None, 1, 2, None)
    # (0, 1) to (0.5, 1) of both seeds, then to (0.9, 0.5) of one: 0.5 and 0.5 + 0.75 · 0.4
    assert whole["rmu"].value == pytest.approx((0.5 + 0.8) / 2)


def test_the_spread_of_a_share_over_draws_is_its_cluster_robust_error(tmp_path: Path) -> None:
    """240 other facts about 120 subjects: 60 subjects keep both facts, 20 keep one, and 40 keep none."""
    kept = [True] * 120 + [True, False] * 20 + [False] * 80
    for at, method in enumerate(("memit", "memit", "npo")):
        outcome(
            point(tmp_path, method, at, 2, 8), [i < 2 for i in range(20)], kept, [False] * 20, [1, 0] * 100
        )
    (block,) = blocks_of(load_sweep(tmp_path))
    points = Frontiers(block, "forget/accuracy").points
    shares = points["memit"][0].kept[:, 1]
    estimate = clustered_mean([float(one) for one in kept], [i // 2 for i in range(240)])
    assert shares[0] == pytest.approx(estimate.value)
    assert shares[1:].std() == pytest.approx(estimate.stderr, rel=0.05)
    low, high = interval(shares)
    assert (high - low) / 2 == pytest.approx(1.96 * estimate.stderr, rel=0.08)
    assert (shares == points["npo"][0].kept[:, 1]).all()  # every curve has the same draws
    reasoning = points["memit"][0].reasoning
    assert reasoning[0] == pytest.approx([18 / 200, 0.5, 0.5])
    assert reasoning[1:, 1].std() == pytest.approx((0.25 / 199) ** 0.5, rel=0.05)


def test_what_is_told_apart_from_the_best_is_not_bold(folder: Path) -> None:
    paths, tables, _ = write_frontier(folder)
    first = tables[0]
    assert [table.title for table in tables] == ["lab, lab", "lab, lab, first token not refusing"]
    assert first.headings == [
        *("method", "runs", "kept at 10 % left ↑", "kept at 5 % left ↑", "reasoning at 10 % left ↑", "area ↑")
    ]
    rows = {row[0].text: row[1:] for row in first.rows}
    assert [*rows] == ["memit", "gradient_ascent", "npo", "rmu"]
    memit, ascent, npo, rmu = rows.values()
    assert [cell.text for cell in (memit[0], ascent[0], rmu[0])] == ["6", "4", "3"]
    assert memit[1].text.startswith("70.0 [") and memit[1].best
    assert npo[1].text.startswith("60.0 [")
    assert not ascent[1].best and not ascent[4].best
    assert rmu[1] == ("not reached (1 of 2)", False) and rmu[2] == ("not reached", False)
    assert "memit by lam (3 values)" in first.legend and "(unwashed: 90.0)" in first.legend
    second = {row[0].text: row[2].text for row in tables[1].rows}
    assert second["rmu"] == "not reached" and second["memit"].startswith("43.2 [")  # 1 − 0.9 / 0.95 · 0.6
    with paths[2].open(encoding="utf-8", newline="") as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 2 * 4 * 4
    assert {line["method"]: line["value"] for line in lines[:4]}["rmu"] == ""
    assert float(lines[0]["p"]) == 1 and float(lines[1]["p"]) < 0.05
    text = paths[0].read_text(encoding="utf-8")
    assert "**70.0 [" in text and "### lab, lab, first token not refusing" in text


def test_jobs_without_a_finished_run_are_counted(folder: Path) -> None:
    save_multirun(folder, ["method=rmu", "point=0,1", "seed=0,1"])
    rows = {row[0].text: row[1].text for row in write_frontier(folder)[1][0].rows}
    assert (rows["rmu"], rows["memit"]) == ("3 of 4", "6")


def test_other_settings_and_data_sets_have_tables_of_their_own(tmp_path: Path) -> None:
    for size in ("50", "200"):
        for at in (0, 1):
            run = point(tmp_path, "memit", at, 2, 8)
            told = json.loads((run / "manifest.json").read_text())
            told["settings"] |= {"dataset.wash": size, "evaluation.recall": "substring"}
            (run / "manifest.json").write_text(json.dumps(told))
    titles = [block.title for block in blocks_of(load_sweep(tmp_path))]
    assert titles == ["lab, lab, dataset.wash=50", "lab, lab, dataset.wash=200"]


def test_a_value_typed_by_hand_is_a_point_of_the_same_curve(tmp_path: Path) -> None:
    point(tmp_path, "memit", 0, 10, 9)
    metrics = {"forget/accuracy": 0.1, "reasoning/arc/acc": 0.8}
    run = save(tmp_path, "memit", metrics, settings={"method.lam": "500"})
    told = json.loads((run / "manifest.json").read_text()) | {
        "knob": {"setting": "method.lam", "value": 500.0}
    }
    (run / "manifest.json").write_text(json.dumps(told))
    (curve,) = blocks_of(load_sweep(tmp_path))[0].curves
    assert (curve.label, curve.knob, len(curve.points(0))) == ("memit", "lam", 2)


def test_what_is_no_frontier_is_refused(tmp_path: Path) -> None:
    run = point(tmp_path, "memit", 0, 10, 9)
    with pytest.raises(
        LawError, match=r"No method has finished runs at two values of its knob.*experiment=frontier"
    ):
        write_frontier(tmp_path)
    other = point(tmp_path, "memit", 1, 2, 8)
    (other / "kept.jsonl").unlink()
    with pytest.raises(
        LawError, match=r"does not tell what became of each fact and item \(FileNotFoundError.*rerun=true"
    ):
        write_frontier(tmp_path)
    outcome(other, [False] * 19, [True] * 10, [True] * 19, [1] * 20)
    with pytest.raises(
        LawError, match=f"seed 0: {run.name} and {other.name} score other facts or reasoning items; expected"
    ):
        write_frontier(tmp_path)
    outcome(other, [False] * 20, [True] * 10, [True] * 20, [1] * 20)
    text = (other / "kept.jsonl").read_text().replace('"t0"', '"(redacted)"')
    (other / "kept.jsonl").write_text(text)
    with pytest.raises(LawError, match="since it was made with redact=true"):
        write_frontier(tmp_path)
    outcome(other, [False] * 20, [], [True] * 20)
    with pytest.raises(LawError, match=r"scored no other facts; expected some.*Set dataset\.keep"):
        write_frontier(tmp_path)
    assert not (tmp_path / "frontier.md").exists()


# --- pictures -----------------------------------------------------------------------------------


def test_the_picture_has_the_mean_frontier_with_its_band_and_the_points(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks_of(load_sweep(folder))
    row = Frontiers(block, "forget/accuracy")
    memit, *_, rmu = block.curves
    drawn = frontier_of(row, memit, 0)
    heights = dict(zip(np.round(drawn.at, 6), drawn.height, strict=True))
    # seeds (0.5, 0.9), (0.9, 0.8 or 0.6), (1, 0.4): at 70 the means of 85 and 75
    assert [heights[at] for at in (0, 50, 70, 90, 100)] == pytest.approx([100, 90, 80, 70, 40])
    assert all(low - 1e-9 <= high for low, high in zip(drawn.low, drawn.high, strict=True))
    reasoning = frontier_of(row, memit, 1)
    assert reasoning.height[0] == pytest.approx(90) and reasoning.height[-1] == pytest.approx(70)
    assert max(frontier_of(row, rmu, 0).at) == pytest.approx(50)  # one seed goes no further
    x, y = marks_of(row, memit, 0)
    assert (x, y) == (pytest.approx([50, 90, 100]), pytest.approx([90, 70, 40]))

    figures: list[Figure] = []
    write = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: (figures.append(self), write(self, *given, **named))
    )
    plot_frontier(load_sweep(folder), tmp_path / "x.png")
    assert len(figures[0].axes) == 4
    assert [axes.get_xlabel() for axes in figures[0].axes[::2]] == [
        "washed facts forgotten (%)",
        "washed facts forgotten, first token not refusing (%)",
    ]
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["memit", "gradient_ascent", "npo", "rmu"]


def blocks(folder: Path, seeds: int) -> Path:
    """Three methods; in each seed the areas are in the same order, but for the last two, which change places in every other seed."""
    for seed in range(seeds):
        for method, kept in (("law", 9), ("memit", 8 - 2 * (seed % 2)), ("npo", 7)):
            point(folder, method, 0, 10, kept, seed, unrefused=10)
            point(folder, method, 1, 0, 0, seed, unrefused=0)
    return folder


def test_mean_ranks_and_the_critical_difference(tmp_path: Path) -> None:
    """Ranks 1, 1.5 and 2.5 … of three methods over ten blocks: q = 2.343 (Demšar's table), CD = 2.343 · √(12 / 60)."""
    ranks = ranks_of([load_sweep(blocks(tmp_path, 10))], "forget/accuracy")
    assert ranks.methods == ["law", "memit", "npo"] and ranks.blocks == 10
    assert ranks.means == pytest.approx([1, 2.5, 2.5])
    assert ranks.critical == pytest.approx(2.343 * (12 / 60) ** 0.5, rel=1e-3)
    assert ranks.groups == [(1, 2)]
    # Friedman: 12 · 10 / (3 · 4) · (1 + 2.5² + 2.5² − 3 · 4) = 15, with 2 degrees of freedom p = e^(−15/2)
    assert ranks.p == pytest.approx(np.exp(-7.5))
    plot_critical_difference([load_sweep(tmp_path)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_blocks_or_methods_are_refused(tmp_path: Path) -> None:
    sweep = load_sweep(blocks(tmp_path / "a", 9))
    with pytest.raises(
        LawError, match="There are 9 blocks of one model, data set and seed; expected at least 10"
    ):
        ranks_of([sweep], "forget/accuracy")
    point(tmp_path / "b", "law", 0, 10, 5, model="other")
    point(tmp_path / "b", "law", 1, 0, 5, model="other")
    with pytest.raises(
        LawError, match=r"1 methods \(law\) have a frontier in every block; expected at least 3"
    ):
        ranks_of([sweep, load_sweep(tmp_path / "b")], "forget/accuracy")


def execute(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(SCRIPTS / script), run_name="__main__")


def test_scripts(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    execute(monkeypatch, "table.py", folder, "--frontier")
    out = capsys.readouterr().out
    assert "70.0 [" in out and "not reached (1 of 2)" in out and "first token not refusing" in out
    assert f"Wrote {folder / 'frontier.md'}, {folder / 'frontier.tex'}, {folder / 'frontier.csv'}." in out
    execute(monkeypatch, "figure.py", "frontier", folder)
    assert capsys.readouterr().out == f"Wrote {folder / 'frontier.png'}.\n"
    for words, problem in (
        (("critical_difference", folder), "There are 2 blocks"),
        (("frontier", folder, folder), "frontier of 2 folders was asked for; expected one folder"),
    ):
        with pytest.raises(SystemExit, match=problem):
            execute(monkeypatch, "figure.py", *words)
