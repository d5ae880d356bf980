"""Tables of run folders that the test writes; every number in them is worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import column, demo_folder, run, save, tables_of

from law.reporting.loading import load_sweep
from law.reporting.summary import balance, write_csv
from law.reporting.sweep import Missing, Setup, Sweep
from law.reporting.tables import build_report
from law.reporting.writing import write_tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path)


def test_markdown(folder: Path) -> None:
    write_tables(folder)
    text = (folder / "table.md").read_text()
    short, note, heading, full, legend, problems = text.strip().split("\n\n")
    # law: mean of 10, 20, 30 is 20, deviations -10, 0, 10, so the sample variance is 200 / 2. Balance, with
    # 80 % of reasoning and of facts kept: 3 / (1/.9 + 2/.8), 3 / (1/.8 + 2/.8), 3 / (1/.7 + 2/.8) = 83.08, 80,
    # 76.36, of mean 79.81 and standard deviation 3.36; of ft_l, with 50 % of facts and 40 % of reasoning kept,
    # 3 / (1/.95 + 2 + 1/.4) = 54.03
    assert full == (
        "| method |   runs | forget acc. ↓ |  retain acc. ↑ |     arc_easy ↑ |    reasoning ↑ | reasoning kept ↑ |      balance ↑ | wash time ↓ |\n"
        "| ------ | -----: | ------------: | -------------: | -------------: | -------------: | ---------------: | -------------: | ----------: |\n"
        "| none   |      1 |           100 |            100 |           80.0 |           80.0 |              100 |            0.0 |           – |\n"
        "| law    | 3 of 6 |   20.0 ± 10.0 | **80.0 ± 0.0** | **70.0 ± 0.0** | **70.0 ± 0.0** |   **80.0 ± 0.0** | **79.8 ± 3.4** |   4.0 ± 2.0 |\n"
        "| ft_l   |      1 | **5.0 ± 4.9** |           50.0 |           50.0 |           50.0 |             40.0 |           54.0 |         9.2 |"
    )
    assert short == (
        "| method |   runs |        left ↓ |         kept ↑ |    reasoning ↑ | time ↓ |\n"
        "| ------ | -----: | ------------: | -------------: | -------------: | -----: |\n"
        "| none   |      1 |           100 |            100 |           80.0 |      – |\n"
        "| law    | 3 of 6 |   20.0 ± 10.0 | **80.0 ± 0.0** | **70.0 ± 0.0** |    4.0 |\n"
        "| ft_l   |      1 | **5.0 ± 4.9** |           50.0 |           50.0 |    9.2 |"
    )
    assert heading == "All columns:"
    assert note.startswith("Left: washed facts that the model still recalls. Kept: other facts")
    assert (
        "Reasoning: mean accuracy on arc_easy. Time: seconds of washing; what a cache spared counts" in note
    )
    assert "Numbers are in percent, except time." in note
    assert (
        "± is the sample standard deviation over runs. Where there is one run, ± is the standard error over items."
        in note
    )
    assert "its object occurs anywhere in the answer" in note
    assert "Balance: harmonic mean of facts forgotten, facts kept and reasoning kept" in legend
    assert problems.splitlines() == [
        "- lab, lab, law, seed 3 failed: LawError: λ is NaN",
        "- lab, lab, law, seed 4 unfinished: 06 is running, or was killed",
        "- lab, lab, law, seed 5 unfinished: 07/metrics.json cannot be read",
        "- No manifest.json that can be read in killed.",
    ]


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"status": "finished"}', "null", "\x00"])
def test_a_broken_manifest_is_reported(folder: Path, manifest: str) -> None:
    (folder / "killed" / "manifest.json").write_text(manifest)
    (folder / "killed" / "metrics.json").write_text('{"forget/accuracy": 0.5}')
    sweep = load_sweep(folder)
    assert len(sweep.runs) == 5
    assert sweep.remarks == ["No manifest.json that can be read in killed."]


def test_csv_has_a_line_for_each_metric_with_its_error_items_and_value_before(folder: Path) -> None:
    write_tables(folder)
    frame = pd.read_csv(folder / "table.csv")
    assert [*frame["label"].unique()] == ["none", "law", "ft_l"]
    assert [*frame["metric"].unique()] == [
        *(
            "facts/known",
            "forget/accuracy",
            "retain/accuracy",
            "reasoning/arc_easy/acc",
            "reasoning/mean",
            "reasoning/kept",
            "balance",
            "time/wash_s",
        )
    ]
    lines = frame.set_index(["label", "metric"])
    law, ft_l = lines.loc[("law", "forget/accuracy")], lines.loc[("ft_l", "forget/accuracy")]
    assert (law["runs"], law["n"], law["before"], law["unit"], law["better"]) == (
        3,
        20,
        1,
        "fraction",
        "lower",
    )
    assert (law["mean"], law["std"], law["stderr"]) == pytest.approx((0.2, 0.1, 0.05))
    assert (ft_l["runs"], ft_l["mean"], ft_l["stderr"]) == (1, 0.05, 0.0494)
    assert pd.isna(ft_l["std"])
    assert lines.loc[("none", "facts/known"), ["std", "stderr", "n", "before"]].isna().all()


def test_csv_keeps_metrics_that_are_no_longer_documented(tmp_path: Path) -> None:
    sweep = Sweep([run("law", {"old/metric": 0.5, "forget/accuracy": 0.25})], [])
    write_csv(sweep, tmp_path / "table.csv")
    assert [*pd.read_csv(tmp_path / "table.csv")["metric"]] == ["forget/accuracy", "old/metric"]
    assert build_report(sweep).full[0].headings == ["method", "runs", "forget acc. ↓"]


def test_suffixes_and_what_is_no_column_stay_out_of_the_table() -> None:
    keys = "facts/known forget/accuracy forget/exact_match forget/qa_f1 forget/paraphrase_accuracy retain/accuracy"
    keys += " retain/same_subject_accuracy retain/neighbour_accuracy retain/log_prob reasoning/b/acc reasoning/a/acc"
    keys += (
        " reasoning/a/acc_norm reasoning/mean reasoning/kept fluency/perplexity fluency/entropy time/wash_s"
    )
    metrics = {f"{key}{suffix}": 0.5 for key in keys.split() for suffix in ("", "_before", "_stderr", "_n")}
    (table,) = tables_of(run("law", metrics))
    assert table.headings == [
        *("method", "runs", "forget acc. ↓", "forget F1 ↓", "paraphrase acc. ↓", "retain acc. ↑"),
        *(
            "same-subject acc. ↑",
            "neighbour acc. ↑",
            "a ↑",
            "b ↑",
            "reasoning ↑",
            "reasoning kept ↑",
            "balance ↑",
        ),
        *("perplexity ↓", "wash time ↓"),
    ]


def test_perplexities_have_their_own_precision() -> None:
    values = (3.5472, 12.0, 2345678.0)
    (table,) = tables_of(*(run(m, {"fluency/perplexity": v}) for m, v in zip("abc", values, strict=True)))
    assert column(table, "perplexity ↓") == ["*3.55*", "12.00", "2.3e+06"]


def test_balance() -> None:
    # 3 / (1/0.8 + 1/0.5 + 1/1) with a gain in reasoning that does not count: 3 / 4.25
    metrics = {"forget/accuracy": 0.2, "retain/accuracy": 0.5, "reasoning/kept": 1.5}
    assert balance(metrics) == pytest.approx(12 / 17)
    assert balance(metrics | {"reasoning/kept": -0.1}) == 0  # worse than a guess
    assert balance({"forget/accuracy": 0.2}) is None


def test_without_kept_facts_there_is_no_balance() -> None:
    """Gradient ascent that destroys all knowledge and keeps 83 % of reasoning would have a balance of 91."""
    washed = {"forget/accuracy": 0.0, "reasoning/kept": 0.83}
    assert balance(washed) is None
    (table,) = tables_of(run("gradient_ascent", washed), run("law", washed | {"retain/accuracy": 0.5}))
    # 3 / (1 + 1/0.83 + 2) = 0.7133
    assert column(table, "balance ↑") == ["71.3", "–"]
    (table,) = tables_of(run("gradient_ascent", washed), run("law", washed))
    assert "balance ↑" not in table.headings
    assert "No facts were kept (dataset.keep), so the effect on other facts was not measured." in table.note


share = st.floats(0, 1)


@given(share, share, share)
def test_balance_lies_between_its_parts_and_leaves_no_part_out(
    forget: float, retain: float, reasoning: float
) -> None:
    metrics = {"forget/accuracy": forget, "retain/accuracy": retain}
    value = balance(metrics | {"reasoning/kept": reasoning})
    parts = [1 - forget, retain, reasoning]
    assert value is not None
    assert min(parts) - 1e-12 <= value <= max(parts) + 1e-12
    assert value <= 3 * min(parts) + 1e-12


def test_bold_ties_at_the_precision_shown_and_never_the_unwashed() -> None:
    runs = [run(name, {"forget/accuracy": v}) for name, v in zip("abc", (0.1, 0.1001, 0.2), strict=True)]
    (table,) = tables_of(run("none", {"forget/accuracy": 0.0}), *runs)
    assert column(table, "forget acc. ↓") == ["0.0", "*10.0*", "*10.0*", "20.0"]


def test_no_bold_without_a_rival_nor_for_a_time() -> None:
    runs = [
        run("law", {"forget/accuracy": 0.1, "time/wash_s": 1}),
        run("memit", {"reasoning/mean": 0.5, "time/wash_s": 2}),
    ]
    (table,) = tables_of(run("none", {"forget/accuracy": 1.0}), *runs)
    assert column(table, "forget acc. ↓") == ["100", "10.0", "–"]
    assert column(table, "reasoning ↑") == ["–", "–", "50.0"]
    assert column(table, "wash time ↓") == ["–", "1.0", "2.0"]


def test_a_table_for_each_model_and_dataset_with_its_own_best_and_columns(tmp_path: Path) -> None:
    values = {
        ("a", "law"): 0.1,
        ("a", "memit"): 0.2,
        ("b", "law"): 0.4,
        ("b", "memit"): 0.3,
        ("b", "none"): 1.0,
    }
    for (model, method), value in values.items():
        neighbours = {"retain/neighbour_accuracy": 0.5} if model == "b" else {}
        save(tmp_path, method, {"forget/accuracy": value, **neighbours}, model=model, dataset="zsre")
    tables = write_tables(tmp_path)[1].full
    assert [table.title for table in tables] == ["a, zsre", "b, zsre"]
    assert column(tables[0], "method") == ["law", "memit"]
    assert column(tables[1], "method") == ["none", "law", "memit"]
    assert column(tables[0], "forget acc. ↓") == ["*10.0*", "20.0"]
    assert column(tables[1], "forget acc. ↓") == ["100", "40.0", "*30.0*"]
    assert "neighbour acc. ↑" in tables[1].headings and "neighbour acc. ↑" not in tables[0].headings
    text = (tmp_path / "table.md").read_text()
    assert re.findall("^### (.*)$", text, re.MULTILINE) == ["a, zsre", "b, zsre"]


def test_methods_stand_in_their_own_order_and_values_by_size() -> None:
    methods = "zeta rmu dpo jensun undial simnpo npo grad_diff woh seul gradient_ascent finetune memit law none alpha".split()
    (table,) = tables_of(*(run(method, {"forget/accuracy": 0.5}) for method in methods))
    assert column(table, "method") == [
        *(
            "none",
            "law",
            "memit",
            "finetune",
            "gradient_ascent",
            "seul",
            "woh",
            "grad_diff",
            "npo",
            "simnpo",
            "undial",
            "jensun",
            "dpo",
            "rmu",
        ),
        *("alpha", "zeta"),
    ]
    setups = [Setup("m", "d", "law", (("method.lam", lam),)) for lam in ("1e4", "9", "20", "none")]
    ordered = Sweep([], [Missing(setup, 0, "not run") for setup in setups]).setups
    assert [setup.settings[0][1] for setup in ordered] == ["9", "20", "1e4", "none"]
