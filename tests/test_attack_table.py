"""What attacks recover, in the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import column, run, save

from law.reporting.attack_table import recovered
from law.reporting.summary import Score
from law.reporting.sweep import Sweep
from law.reporting.tables import build_report
from law.reporting.writing import write_tables


def scores(before: float, **after: tuple[float, float]) -> dict[str, float]:
    """Metrics of a run: by attack and score, what the washed model and the control give."""
    metrics = {"forget/accuracy": 0.1}
    for name, (value, control) in after.items():
        key = f"attack/{name.replace('__', '/')}"
        metrics |= {key: value, f"{key}_stderr": 0.03, f"{key}_before": before, f"{key}_control": control}
    return metrics


HIDING = scores(
    1.0,
    refusal__recalled=(0.745, 0.02),
    choice__right=(0.8, 0.25),
    leak__at_1=(0.1, 0),
    leak__at_16=(0.3, 0.1),
)
REMOVING = scores(
    1.0,
    refusal__recalled=(0.04, 0.04),
    choice__right=(0.28, 0.28),
    leak__at_1=(0.1, 0),
    leak__at_16=(0.2, 0.1),
)
UNWASHED = scores(1.0, refusal__recalled=(1.0, 0.06), choice__right=(1.0, 0.3), leak__at_1=(1, 0), leak__at_16=(1, 0.2))  # fmt: skip


def test_the_worst_attack_stands_in_the_main_table() -> None:
    """Of law, (0.745 − 0.02) / 0.98 = 74 % comes back by refusal, (0.8 − 0.25) / 0.75 = 73 % by choice; of rmu,
    (0.2 − 0.1) / 0.9 = 11 % by samples."""
    runs = [
        run("none", UNWASHED),
        run("law", HIDING),
        run("rmu", REMOVING),
        run("npo", {"forget/accuracy": 0.2}),
    ]
    report = build_report(Sweep(runs, []))
    assert column(report.short[0], "worst attack ↓") == ["–", "refusal 74", "–", "*leak@16 11*"]
    assert "Worst attack: the one that recovers the largest share" in report.short[0].legend
    assert "worst attack ↓" not in report.full[0].headings
    (table,) = report.attacks
    assert table.headings == ["method", "runs", "refusal ↓", "choice ↓", "leak@16 ↓", "worst attack ↓"]
    assert [row[0].text for row in table.rows] == ["none", "law", "rmu"]  # npo was not attacked
    assert column(table, "refusal ↓") == ["100.0 (6)", "74.5 (2)", "4.0 (4)"]
    assert column(table, "leak@16 ↓") == ["100.0 (20)", "30.0 (10)", "20.0 (10)"]
    assert "Leak@16: the object is in one of 16 samples." in table.legend


def test_a_model_that_was_trained_anew_is_no_winner() -> None:
    """It would be the best of every column, and is washed of nothing."""
    runs = [run("retrained", REMOVING), run("law", HIDING), run("rmu", REMOVING)]
    (table,) = build_report(Sweep(runs, [])).short
    assert column(table, "worst attack ↓") == ["leak@16 11", "refusal 74", "*leak@16 11*"]
    assert column(table, "left ↓") == ["10.0", "*10.0*", "*10.0*"]


def test_without_attacks_nothing_is_added() -> None:
    report = build_report(Sweep([run("law", {"forget/accuracy": 0.1})], []))
    assert report.attacks == [] and "worst attack ↓" not in report.short[0].headings


def test_the_recovered_share_needs_something_to_recover() -> None:
    def score(mean: float, before: float | None = None) -> Score:
        return Score(1, mean, None, None, None, before)

    pair = {"a": score(0.5, 1.0), "a_control": score(0.2)}
    assert recovered(pair, "a") == pytest.approx(3 / 8)
    assert recovered({"a": score(0.5, 1.0)}, "a") is None
    assert recovered({"a": score(0.5, 0.2), "a_control": score(0.2)}, "a") is None
    assert recovered({"a": score(0.1, 1.0), "a_control": score(0.2)}, "a") == pytest.approx(-1 / 8)


def test_the_tables_are_written(tmp_path: Path) -> None:
    save(tmp_path, "law", HIDING)
    paths, report = write_tables(tmp_path)
    assert len(report.attacks) == 1
    text = paths[0].read_text(encoding="utf-8")
    assert "### lab, lab, attacks" in text and "| law | 1 | 74.5 (2) |" in " ".join(text.split())
    assert "attack/refusal/recalled_control" in paths[1].read_text(encoding="utf-8")
    assert "lab, lab, attacks" in paths[2].read_text(encoding="utf-8")
