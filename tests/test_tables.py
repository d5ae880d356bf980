"""Tables of run folders that the test writes; every number in them is worked out by hand."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from law.base.errors import LawError
from law.reporting.labels import labels
from law.reporting.loading import load_sweep
from law.reporting.published_numbers import FORMAT, load_published
from law.reporting.summary import balance, write_csv
from law.reporting.sweep import Missing, Run, Setup, Sweep
from law.reporting.tables import build_report
from law.reporting.typesetting import Cell, Table, to_latex, to_markdown
from law.reporting.writing import write_tables
from law.runs.identity import settings_of

SCRIPT = Path(__file__).parents[1] / "experiments" / "table.py"
CHOICES = {"model": "lab", "dataset": "lab", "method": "law"}
ORIGIN = {"setup_hash": "5e709", "inputs_hash": "f11e5", "code_hash": "c0de1", "recall": "substring"}


def save(
    folder: Path,
    method: str,
    metrics: dict[str, float],
    seed: int = 0,
    settings: dict[str, str] | None = None,
    **more: object,
) -> Path:
    """A run folder; ``more`` goes into the manifest, model and dataset into its choices."""
    run = folder / f"{len([*folder.glob('*')]):02d}"
    run.mkdir(parents=True)
    choices = {
        **CHOICES,
        "method": method,
        **{key: more.pop(key) for key in ("model", "dataset") if key in more},
    }
    manifest = {"status": "finished", "settings": settings or {}, "choices": choices, "seed": seed}
    manifest |= ORIGIN | more
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def save_multirun(folder: Path, overrides: Sequence[str], params: dict[str, str] | None = None) -> None:
    """What Hydra writes when a sweep starts, as far as it is read."""
    hydra = {
        "sweeper": {"params": params},
        "overrides": {"task": [*overrides], "hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"choices": CHOICES},
        "sweep": {"dir": "outputs/${name}"},
    }
    OmegaConf.save({"hydra": hydra, "name": "paper", "seed": 0}, folder / "multirun.yaml")


def run(method: str, metrics: dict[str, float], model: str = "lab", dataset: str = "lab") -> Run:
    return Run(Setup(model, dataset, method), 0, metrics, Path(method))


def tables_of(*runs: Run) -> list[Table]:
    """The full tables."""
    return build_report(Sweep([*runs], [])).full


def column(table: Table, heading: str) -> list[str]:
    """A column's cells, the best between asterisks."""
    at = table.headings.index(heading)
    return [f"*{row[at].text}*" if row[at].best else row[at].text for row in table.rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of law, one run each of two others, and four folders without a finished run."""
    folder = tmp_path / "demo"
    before = {"facts/known": 20, "forget/accuracy_before": 1.0, "reasoning/mean_before": 0.8}
    for seed, forget in enumerate((0.1, 0.2, 0.3)):
        metrics = {"forget/accuracy": forget, "forget/accuracy_stderr": 0.05, "forget/accuracy_n": 20}
        metrics |= {"reasoning/arc_easy/acc": 0.7, "reasoning/mean": 0.7, "time/wash_s": 2.0 + 2 * seed}
        metrics["retain/accuracy"] = 0.8
        save(folder, "law", before | metrics, seed)
    metrics = {"forget/accuracy": 0.05, "forget/accuracy_stderr": 0.0494, "forget/accuracy_n": 20}
    metrics |= {
        "reasoning/arc_easy/acc": 0.5,
        "reasoning/mean": 0.5,
        "time/wash_s": 9.25,
        "retain/accuracy": 0.5,
    }
    save(folder, "ft_l", before | metrics)
    metrics = {
        "forget/accuracy": 1.0,
        "retain/accuracy": 1.0,
        "reasoning/arc_easy/acc": 0.8,
        "reasoning/mean": 0.8,
    }
    save(folder, "none", before | metrics)
    save(folder, "law", before, 3, status="failed", error="LawError: λ is\nNaN")
    save(folder, "law", before, 4, status="running")
    (save(folder, "law", before, 5) / "metrics.json").write_text("{")
    (folder / "killed" / ".hydra").mkdir(parents=True)
    (folder / "wandb" / "latest").mkdir(parents=True)
    (folder / "notes.txt").touch()
    return folder


def test_markdown(folder: Path) -> None:
    write_tables(folder)
    text = (folder / "table.md").read_text()
    short, note, heading, full, legend, problems = text.strip().split("\n\n")
    # law: mean of 10, 20, 30 is 20, deviations -10, 0, 10, so the sample variance is 200 / 2. Balance, with
    # reasoning at 7/8 of the unwashed and 80 % kept: 3 / (1/.9 + 1/.8 + 8/7), 3 / (1/.8 + 1/.8 + 8/7),
    # 3 / (1/.7 + 1/.8 + 8/7) = 85.62, 82.35, 78.50, of mean 82.16 and standard deviation 3.56; of ft_l, with
    # 50 % kept, 3 / (1/.95 + 2 + 8/5) = 64.48
    assert full == (
        "| method |   runs | forget acc. ↓ |  retain acc. ↑ |     arc_easy ↑ |    reasoning ↑ |      balance ↑ | wash time ↓ |\n"
        "| ------ | -----: | ------------: | -------------: | -------------: | -------------: | -------------: | ----------: |\n"
        "| none   |      1 |           100 |            100 |           80.0 |           80.0 |            0.0 |           – |\n"
        "| law    | 3 of 6 |   20.0 ± 10.0 | **80.0 ± 0.0** | **70.0 ± 0.0** | **70.0 ± 0.0** | **82.2 ± 3.6** |   4.0 ± 2.0 |\n"
        "| ft_l   |      1 | **5.0 ± 4.9** |           50.0 |           50.0 |           50.0 |           64.5 |         9.2 |"
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
    assert "Reasoning: mean accuracy on arc_easy. Time: seconds of washing." in note
    assert "Numbers are in percent, except time." in note
    assert (
        "± is the sample standard deviation over runs. Where there is one run, ± is the standard error over items."
        in note
    )
    assert "its object occurs anywhere in the answer" in note
    assert "Balance: harmonic mean of facts forgotten, facts kept and reasoning" in legend
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
    keys += " reasoning/a/acc_norm reasoning/mean fluency/perplexity fluency/entropy time/wash_s"
    metrics = {f"{key}{suffix}": 0.5 for key in keys.split() for suffix in ("", "_before", "_stderr", "_n")}
    (table,) = tables_of(run("law", metrics))
    assert table.headings == [
        *("method", "runs", "forget acc. ↓", "forget F1 ↓", "paraphrase acc. ↓", "retain acc. ↑"),
        *("same-subject acc. ↑", "neighbour acc. ↑", "a ↑", "b ↑", "reasoning ↑", "balance ↑"),
        *("perplexity ↓", "wash time ↓"),
    ]


def test_perplexities_have_their_own_precision() -> None:
    values = (3.5472, 12.0, 2345678.0)
    (table,) = tables_of(*(run(m, {"fluency/perplexity": v}) for m, v in zip("abc", values, strict=True)))
    assert column(table, "perplexity ↓") == ["*3.55*", "12.00", "2.3e+06"]


def test_balance() -> None:
    # 3 / (1/0.8 + 1/0.5 + 1/1) with a gain in reasoning that does not count: 3 / 4.25
    metrics = {
        "forget/accuracy": 0.2,
        "retain/accuracy": 0.5,
        "reasoning/mean": 0.9,
        "reasoning/mean_before": 0.6,
    }
    assert balance(metrics) == pytest.approx(12 / 17)
    assert balance(metrics | {"reasoning/mean_before": 0.0}) is None
    assert balance({"forget/accuracy": 0.2}) is None


def test_without_kept_facts_there_is_no_balance() -> None:
    """Gradient ascent that destroys all knowledge and keeps 83 % of reasoning would have a balance of 91."""
    washed = {"forget/accuracy": 0.0, "reasoning/mean": 0.83, "reasoning/mean_before": 1.0}
    assert balance(washed) is None
    (table,) = tables_of(run("gradient_ascent", washed), run("law", washed | {"retain/accuracy": 0.5}))
    # 3 / (1 + 1/0.83 + 2) = 0.7133
    assert column(table, "balance ↑") == ["71.3", "–"]
    (table,) = tables_of(run("gradient_ascent", washed), run("law", washed))
    assert "balance ↑" not in table.headings
    assert "No facts were kept (dataset.keep), so the effect on other facts was not measured." in table.note


share = st.floats(0, 1)


@given(share, share, share, st.floats(0.01, 1))
def test_balance_lies_between_its_parts_and_leaves_no_part_out(
    forget: float, retain: float, after: float, before: float
) -> None:
    metrics = {"forget/accuracy": forget, "retain/accuracy": retain}
    value = balance(metrics | {"reasoning/mean": after, "reasoning/mean_before": before})
    parts = [1 - forget, retain, min(1, after / before)]
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
    methods = "zeta rmu npo grad_diff woh seul gradient_ascent finetune memit law none alpha".split()
    (table,) = tables_of(*(run(method, {"forget/accuracy": 0.5}) for method in methods))
    assert column(table, "method") == [
        *("none", "law", "memit", "finetune", "gradient_ascent", "seul", "woh", "grad_diff", "npo", "rmu"),
        *("alpha", "zeta"),
    ]
    setups = [Setup("m", "d", "law", (("method.lam", lam),)) for lam in ("1e4", "9", "20", "none")]
    ordered = Sweep([], [Missing(setup, 0, "not run") for setup in setups]).setups
    assert [setup.settings[0][1] for setup in ordered] == ["9", "20", "1e4", "none"]


def rows_of(folder: Path, heading: str = "forget acc. ↓") -> dict[str, dict[str, tuple[str, str]]]:
    """Of each full table by its title: runs and a column by label."""
    return {
        table.title: {
            row[0].text: (row[1].text, cell)
            for row, cell in zip(table.rows, column(table, heading), strict=True)
        }
        for table in build_report(load_sweep(folder)).full
    }


def test_settings_that_vary_make_rows_of_their_own(tmp_path: Path) -> None:
    """Two learning rates of one method, two sizes of another: the first method has one of these sizes."""
    metrics = {"forget/accuracy": 0.5}
    for seed, (rate, wash) in enumerate([("1e-5", "50"), ("1e-4", "50"), ("1e-4", "50")]):
        save(tmp_path, "ascent", metrics, seed, {"method.learning_rate": rate, "dataset.wash": wash})
    for seed, wash in enumerate(["50", "200"]):
        save(tmp_path, "law", metrics, seed, {"dataset.wash": wash})
    sweep = load_sweep(tmp_path)
    named = labels(sweep.setups)
    counts = {named[setup]: sum(run.setup == setup for run in sweep.runs) for setup in sweep.setups}
    assert counts == {
        "law (wash=50)": 1,
        "law (wash=200)": 1,
        "ascent (learning_rate=1e-5, wash=50)": 1,
        "ascent (learning_rate=1e-4, wash=50)": 2,
    }
    assert not sweep.missing


def test_labels_show_what_differs_and_the_note_lists_the_rest() -> None:
    everywhere = {"dataset.keep": "400", "evaluation.reasoning.limit": "40", "dataset.wash": "20"}
    chosen = {
        "none": [{}],
        "law": [{"method.lam": "1", "method.iterations": "9"}, {"method.lam": "2", "method.iterations": "9"}],
        "memit": [{"method.initial.lam": "3", "method.search": "true"}],
    }
    setups = [
        Setup("m", "d", method, tuple(sorted((everywhere | settings).items())))
        for method, several in chosen.items()
        for settings in several
    ]
    # both kinds of lam are told apart by the part before it
    assert [*labels(setups).values()] == ["none", "law (method.lam=1)", "law (method.lam=2)", "memit"]
    (table,) = build_report(Sweep([], [Missing(setup, 0, "not run") for setup in setups])).full
    assert (
        "All rows: dataset.keep=400, dataset.wash=20, evaluation.reasoning.limit=40. "
        "All rows of law: method.iterations=9. All rows of memit: method.initial.lam=3, method.search=true."
    ) in table.note


def test_settings_of_the_method_stand_first_in_a_label() -> None:
    settings = [("1", "20"), ("2", "30")]
    setups = [Setup("m", "d", "law", (("dataset.wash", w), ("method.lam", lam))) for lam, w in settings]
    assert [*labels(setups).values()] == ["law (lam=1, wash=20)", "law (lam=2, wash=30)"]


@pytest.mark.parametrize(
    ("field", "part"),
    [("setup_hash", "configuration"), ("inputs_hash", "input files"), ("code_hash", "code")],
)
def test_runs_that_differ_although_their_settings_agree_are_not_averaged(
    tmp_path: Path, field: str, part: str
) -> None:
    """A preset, a file of facts or the code was edited after the first seed."""
    for seed, (digest, value) in enumerate([("a1b2c3", 0.1), ("c3d4e5", 0.3), ("c3d4e5", 0.5)]):
        save(tmp_path, "law", {"forget/accuracy": value}, seed, **{field: digest})
    save(tmp_path, "memit", {"forget/accuracy": 0.2}, **{field: "c3d4e5"})
    assert rows_of(tmp_path) == {
        "lab, lab": {
            f"law ({part} a1b2)": ("1", "*10.0*"),
            f"law ({part} c3d4)": ("2", "40.0 ± 14.1"),
            "memit": ("1", "20.0"),
        }
    }
    remarks = load_sweep(tmp_path).remarks
    assert remarks[0] == (
        f"Runs with the same settings differ in their {part} and stand in rows of their own: lab, lab, law."
    )
    versions = ["The runs were made with 2 versions of the code: a1b2 (law), c3d4 (law, memit)."]
    assert remarks[1:] == (versions if part == "code" else [])


def test_a_job_without_a_run_belongs_to_the_newest_row(tmp_path: Path) -> None:
    """After an edit the jobs that are still owed would run with it, so that is the row that lacks them."""
    save_multirun(tmp_path, ["method=law", "seed=0,1,2"])
    new, old = {"setup_hash": "new", "ended": "2026-02"}, {"setup_hash": "old", "ended": "2026-01"}
    save(tmp_path, "law", {"forget/accuracy": 0.3}, 1, **new)
    save(tmp_path, "law", {"forget/accuracy": 0.1}, 0, **old)
    save(tmp_path, "law", {}, 2, status="failed", error="LawError: no.", setup_hash="old")
    assert rows_of(tmp_path) == {
        "lab, lab": {
            "law (configuration new)": ("1 of 3", "30.0"),
            "law (configuration old)": ("1", "*10.0*"),
        }
    }


def test_runs_of_earlier_versions_stay_readable_and_are_remarked(tmp_path: Path) -> None:
    """Their manifests lack the hashes: alone they share a row, beside newer ones they have a row of their own."""
    earlier: dict[str, object] = {"setup_hash": None, "inputs_hash": None, "code_hash": None}
    for seed, value in enumerate((0.1, 0.3)):
        save(tmp_path, "law", {"forget/accuracy": value}, seed, **earlier)
        save(tmp_path, "memit", {"forget/accuracy": value}, seed, **earlier)
    save(tmp_path, "memit", {"forget/accuracy": 0.5}, 2)
    assert rows_of(tmp_path) == {
        "lab, lab": {
            "law": ("2", "*20.0 ± 14.1*"),
            "memit": ("1", "50.0"),
            "memit (earlier version)": ("2", "*20.0 ± 14.1*"),
        }
    }
    assert load_sweep(tmp_path).remarks == [
        "An earlier version of the code made some runs of these methods and did not record configuration, input "
        "files and code. These runs stand in rows of their own: lab, lab, memit.",
        "It could not be checked whether the runs of a row share configuration, input files and code, since an "
        "earlier version of the code made them and did not record these: lab, lab, law; lab, lab, memit (earlier "
        "version).",
    ]


def test_all_that_differs_is_named(tmp_path: Path) -> None:
    for seed, digest in enumerate(("a1b2", "c3d4")):
        save(tmp_path, "law", {}, seed, setup_hash=digest, inputs_hash=digest, code_hash=digest)
    sweep = load_sweep(tmp_path)
    assert [*labels(sweep.setups).values()] == [
        "law (configuration a1b2, input files a1b2, code a1b2)",
        "law (configuration c3d4, input files c3d4, code c3d4)",
    ]
    assert "differ in their configuration, input files and code and stand" in sweep.remarks[0]


def test_reasoning_on_different_tasks_is_not_compared(tmp_path: Path) -> None:
    """``source: auto`` took local rows for one run, when the network had failed."""
    for seed, (method, source, value) in enumerate(
        [
            ("law", "", 0.4),
            ("law", "_mirror", 0.9),
            ("memit", "", 0.5),
            ("npo", "", 0.45),
            ("rmu", "_mirror", 0.8),
        ]
    ):
        tasks = [f"hellaswag{source}", "lab_row"]
        metrics = {"forget/accuracy": 0.1, "reasoning/mean": value}
        save(
            tmp_path,
            method,
            metrics | {f"reasoning/{task}/acc": value for task in tasks},
            seed,
            reasoning_tasks=tasks,
        )
    save(tmp_path, "woh", {"forget/accuracy": 0.2}, reasoning_tasks=[])  # measured no reasoning
    assert rows_of(tmp_path, "reasoning ↑") == {
        "lab, lab, reasoning on hellaswag": {
            "law": ("1", "40.0"),
            "memit": ("1", "*50.0*"),
            "woh": ("1", "–"),
            "npo": ("1", "45.0"),
        },
        "lab, lab, reasoning on hellaswag_mirror": {"law": ("1", "*90.0*"), "rmu": ("1", "80.0")},
    }
    (remark,) = load_sweep(tmp_path).remarks
    assert remark.startswith(
        "lab, lab: the runs measure reasoning on different tasks, so their means cannot be"
    )
    assert "evaluation.reasoning.source" in remark
    legends = [table.legend for table in build_report(load_sweep(tmp_path)).short]
    assert "mean accuracy on 2 tasks (hellaswag, lab_row)." in legends[0]
    assert "mean accuracy on 2 tasks (hellaswag_mirror, lab_row)." in legends[1]


def test_tasks_on_which_the_unwashed_model_guesses_do_not_count(tmp_path: Path) -> None:
    """They are measured and shown; the mean is over the others, and says so."""
    metrics = {"reasoning/a/acc": 0.9, "reasoning/b/acc": 0.25, "reasoning/mean": 0.9}
    save(tmp_path, "law", metrics, reasoning_tasks=["b", "a"], tasks_at_chance=["b"])
    save(tmp_path, "memit", metrics, reasoning_tasks=["a", "b"], tasks_at_chance=["b"])
    (table,) = build_report(load_sweep(tmp_path)).full
    assert column(table, "b ↑") == ["*25.0*", "*25.0*"]
    assert "Reasoning: mean accuracy on a; not on b, where the unwashed model only guesses." in table.legend


def test_rules_of_recall_are_not_compared(tmp_path: Path) -> None:
    save(tmp_path, "law", {"forget/accuracy": 0.4}, recall="whole_word")
    save(tmp_path, "memit", {"forget/accuracy": 0.5})
    tables = build_report(load_sweep(tmp_path)).short
    assert [table.title for table in tables] == [
        "lab, lab, recall by whole_word",
        "lab, lab, recall by substring",
    ]
    assert "in the answer in whole words." in tables[0].note
    assert "anywhere in the answer, even within a word." in tables[1].note
    (remark,) = load_sweep(tmp_path).remarks
    assert "by different rules whether a fact is recalled (substring, whole_word)" in remark


def test_the_quantised_file_behind_a_model_is_named(tmp_path: Path) -> None:
    made_from = {"file": "tiny.Q4_1.gguf", "tensors": {"Q4_1": 210, "F32": 61, "Q8_0": 1}}
    save(tmp_path, "law", {"forget/accuracy": 0.4}, model="tiny", model_source=made_from)
    save(tmp_path, "law", {"forget/accuracy": 0.5})
    sweep = load_sweep(tmp_path)
    sentence = "The weights were converted to float32 from tiny.Q4_1.gguf (Q4_1, Q8_0)."
    tables = build_report(sweep).short
    assert {table.title: sentence in table.note for table in tables} == {"lab, lab": False, "tiny, lab": True}
    write_csv(sweep, tmp_path / "table.csv")
    lines = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    named = dict(zip(lines["model"], lines["source"], strict=True))
    assert named == {"lab": "", "tiny": "tiny.Q4_1.gguf (Q4_1, Q8_0)"}


def test_other_versions_of_packages_are_remarked(tmp_path: Path) -> None:
    for seed, version in enumerate(("2.12", "2.13")):
        save(tmp_path, "law", {"forget/accuracy": 0.4}, seed, versions={"torch": version, "peft": "1"})
    assert load_sweep(tmp_path).remarks == [
        "lab, lab, law: the runs of one row used different versions of torch."
    ]


def test_which_overrides_are_settings() -> None:
    overrides = [
        "name=x",
        "seed=1",
        "method=law",
        "model=lab",
        "tracker=none",
        "tracker.mode=online",
        "rerun=true",
    ]
    kept = ["+method.lam=1", "evaluation=paper", "dataset.path=a=b"]
    assert settings_of(overrides + kept) == {"method.lam": "1", "evaluation": "paper", "dataset.path": "a=b"}


def test_the_latest_of_several_runs_of_one_setup_and_seed_counts(tmp_path: Path) -> None:
    for day, value in (("02", 0.2), ("03", 0.3), ("01", 0.1)):
        save(tmp_path, "law", {"forget/accuracy": value}, ended=f"2026-01-{day}T00:00:00+00:00")
    sweep = load_sweep(tmp_path)
    assert [run.metrics["forget/accuracy"] for run in sweep.runs] == [0.3]
    (remark,) = sweep.remarks
    assert remark.startswith("lab, lab, law, seed 0: finished more than once")


def test_jobs_of_the_sweep_that_have_not_finished_show_why(tmp_path: Path) -> None:
    """The sweep's parameters, one of them replaced on the command line, as ``-m experiment=paper model=lab``."""
    params = {
        "model": "gpt2-xl,gpt-j-6b",
        "method": "none,law,memit,rmu",
        "seed": "0,1",
        "method.lam": "1e-6,3",
    }
    save_multirun(tmp_path, ["experiment=paper", "model=lab"], params)
    small = {"method.lam": "1e-06"}  # as Hydra writes it down
    for seed in (0, 1):
        save(tmp_path, "law", {"forget/accuracy": 0.1}, seed, small)
    save(tmp_path, "memit", {"forget/accuracy": 0.2}, 0, small)
    save(tmp_path, "memit", {}, 1, small, status="failed", error="LawError: no.")
    for seed in (0, 1):
        save(tmp_path, "rmu", {}, seed, small, status="failed", error="RuntimeError: out of memory")
    report = write_tables(tmp_path)[1]
    (table,) = report.full
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows == {
        "none (lam=1e-06)": ["0 of 2", "not run"],
        "none (lam=3)": ["0 of 2", "not run"],
        "law (lam=1e-06)": ["2", "10.0 ± 0.0"],
        "law (lam=3)": ["0 of 2", "not run"],
        "memit (lam=1e-06)": ["1 of 2", "20.0"],
        "memit (lam=3)": ["0 of 2", "not run"],
        "rmu (lam=1e-06)": ["0 of 2", "failed"],
        "rmu (lam=3)": ["0 of 2", "not run"],
    }
    assert report.remarks == [
        "lab, lab, memit (lam=1e-06), seed 1 failed: LawError: no.",
        "lab, lab, rmu (lam=1e-06), seed 0, 1 failed: RuntimeError: out of memory",
    ]
    frame = pd.read_csv(tmp_path / "table.csv").set_index("label")
    assert frame.loc["rmu (lam=1e-06)", "runs"] == 0 and pd.isna(frame.loc["rmu (lam=1e-06)", "metric"])


def test_a_multirun_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    save(tmp_path, "law", {"forget/accuracy": 0.1})
    save_multirun(tmp_path, ["method=law,"])
    (remark,) = load_sweep(tmp_path).remarks
    assert remark.startswith("multirun.yaml does not tell which runs to expect")


def check_latex(text: str) -> list[list[int]]:
    """Balanced environments and braces, as many ``&`` in each row as columns less one; returns the columns' counts."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    opened: list[str] = []
    counts = []
    for line in lines:
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        bare = re.sub(r"\\[\\{}%&#$_]", "", line)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0, line
        assert not set("_#%^~") & set(re.sub(r"\\label\{.*?\}", "", bare)), line
        if found := re.search(r"\\begin\{tabular\}\{([lr]+)\}", line):
            counts.append([len(found[1])])
        elif line.endswith(r" \\"):
            counts[-1].append(bare.count("&") + 1)
        else:
            assert "&" not in bare
    assert not opened
    assert all(len({*rows}) == 1 for rows in counts)
    return counts


def test_latex(folder: Path) -> None:
    write_tables(folder)
    text = (folder / "table.tex").read_text()
    assert check_latex(text) == [[4, 4, 4, 4, 4], [5, 5, 5, 5, 5]]
    lines = text.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs,adjustbox}"
    assert lines[1] == "% lab, lab, law, seed 3 failed: LawError: λ is NaN"
    assert r"\label{tab:lab-lab}" in lines
    first, second = (lines.index(rf"\begin{{tabular}}{{l{'r' * numbers}}}") for numbers in (3, 4))
    assert lines[first + 1 : first + 6] == [
        r"\toprule",
        r"method & runs & forget acc. $\downarrow$ & retain acc. $\uparrow$ \\",
        r"\midrule",
        r"none & 1 & 100 & 100 \\",
        r"law & 3 of 6 & 20.0 $\pm$ 10.0 & \textbf{80.0 $\pm$ 0.0} \\",
    ]
    assert lines[second + 4 : second + 6] == [
        r"none & 80.0 & 80.0 & 0.0 & -- \\",
        r"law & \textbf{70.0 $\pm$ 0.0} & \textbf{70.0 $\pm$ 0.0} & \textbf{82.2 $\pm$ 3.6} & 4.0 $\pm$ 2.0 \\",
    ]


def test_escaping() -> None:
    table = Table("m_1, d", ["method"], [[Cell(r"a|b*c_d%e&f#g$h{i}~j^k<l\m")]], 1, "50 % − 3", "")
    assert r"| a\|b\*c_d%e&f#g$h{i}~j^k\<l\\m |" in to_markdown([table], [table], [])
    escaped = r"a\textbar{}b*c\_d\%e\&f\#g\$h\{i\}\textasciitilde{}j\textasciicircum{}k"
    escaped += r"\textless{}l\textbackslash{}m"
    latex = to_latex([table], [])
    assert f"\n{escaped} \\\\\n" in latex
    assert r"\caption{m\_1, d. 50 \% $-$ 3}" in latex


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])), min_size=2, max_size=2),
        max_size=3,
    )
)
def test_any_text_makes_latex_that_balances(rows: list[list[str]]) -> None:
    table = Table("m, d", ["a", "b"], [[Cell(text, best=True) for text in row] for row in rows], 1, "", "")
    assert check_latex(to_latex([table], [])) == [[2] * (2 + len(rows))]


@given(st.integers(1, 3), st.integers(0, 40))
def test_wide_tables_are_set_in_parts(names: int, numbers: int) -> None:
    """Every column once, in order, behind the columns of words; parts of six numbers at most, alike in width."""
    headings = [f"h{i}" for i in range(names + numbers)]
    text = to_latex([Table("m, d", headings, [], names, "", "")], [])
    heads = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    assert all(head[:names] == headings[:names] for head in heads)
    parts = [head[names:] for head in heads]
    assert [heading for part in parts for heading in part] == headings[names:]
    widths = [len(part) for part in parts]
    assert max(widths) <= 6 and max(widths) - min(widths) <= 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(folder: Path, tmp_path: Path) -> None:
    write_tables(folder)
    body = rf"\begin{{document}}\input{{{folder}/table}}\end{{document}}"
    document = rf"\documentclass{{article}}\usepackage{{booktabs,adjustbox}}{body}"
    command = ["pdflatex", "-halt-on-error", "-output-directory", str(tmp_path), document]
    subprocess.run(command, check=True, capture_output=True)


PUBLISHED = """
- {model: lab, dataset: lab, method: law, metric: forget/accuracy, value: 0.015, table: 2, page: 7, source: A paper}
- {model: lab, dataset: lab, method: woh, metric: reasoning/arc_easy/acc, value: 0.5, table: "3", page: 8, source: A paper}
"""


def test_published_numbers_stand_beside_measured_ones_and_win_nothing(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(PUBLISHED)
    (table,) = write_tables(folder, file)[1].full
    assert column(table, "method") == ["none", "law", "law (published)", "woh (published)", "ft_l"]
    assert column(table, "forget acc. ↓") == ["100", "20.0 ± 10.0", "1.5", "–", "*5.0 ± 4.9*"]
    assert column(table, "arc_easy ↑") == ["80.0", "*70.0 ± 0.0*", "–", "50.0", "50.0"]
    assert table.note.endswith("Published: table 2, page 7 of A paper; table 3, page 8 of A paper.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.015", "1.5", "entry 1: the value of forget/accuracy is 1.5; expected a fraction"),
        ("0.015", "much", "entry 1: .*much.* Expected the fields model, dataset"),
        (
            "forget/accuracy",
            "forget/accuracy_before",
            "'forget/accuracy_before' is not a metric that tables show",
        ),
        ("forget/accuracy", "forget/acuracy", "'forget/acuracy' is not a metric"),
        ("page: 7, ", "", "entry 1: .*page"),
        ("page: 7", "pages: 7", "entry 1: .*pages"),
        ("source: A paper}\n- {model", "source: ''}\n- {model", "entry 1: source is empty"),
        (
            "method: woh, metric: reasoning/arc_easy/acc",
            "method: law, metric: forget/accuracy",
            "entries 1 and 2 both give lab, lab, law, forget/accuracy",
        ),
        (PUBLISHED, "model: lab", "is not a list of published numbers"),
        (PUBLISHED, "- [", "cannot be read"),
    ],
)
def test_malformed_published_numbers_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "published.yaml"
    assert old in PUBLISHED
    file.write_text(PUBLISHED.replace(old, new, 1))
    with pytest.raises(LawError, match=message):
        load_published(file)


def test_the_documented_format_of_published_numbers_is_read(tmp_path: Path) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(FORMAT.partition("\n\n")[2])
    (entry,) = load_published(file)
    assert (entry.model, entry.table, entry.page, entry.value) == ("gpt2-xl", "2", 7, 0.25)


def test_picture_of_the_tradeoff(folder: Path) -> None:
    paths, _ = write_tables(folder)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex", "tradeoff.png"]
    picture = paths[-1].read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_no_picture_without_both_axes(tmp_path: Path) -> None:
    save(tmp_path, "law", {"forget/accuracy": 0.1})
    assert [path.name for path in write_tables(tmp_path)[0]] == ["table.md", "table.csv", "table.tex"]


def test_errors_name_the_mend_and_create_nothing(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"There is no folder .*python experiments/wash\.py"):
        write_tables(tmp_path / "nowhere")
    save(tmp_path / "runs", "law", {}, status="failed", error="LawError: no such file")
    with pytest.raises(
        LawError, match=r"no finished run \(unfinished: 1\).*experiments/wash\.py.* no such file"
    ):
        write_tables(tmp_path / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["00"]


def execute(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder), *more])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_script_prints_the_short_table_and_where_the_full_one_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    execute(monkeypatch, folder)
    out = capsys.readouterr().out
    assert re.search(r"left +kept +reasoning +time\n", out)
    assert "arc_easy" not in out.partition("Left:")[0]
    assert "- lab, lab, law, seed 3 failed: LawError: λ is NaN" in out
    assert f"All columns: {folder / 'table.md'}, or --full." in out
    assert str(folder / "tradeoff.png") in out


def test_script_prints_all_columns_on_demand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    execute(monkeypatch, folder, "--full")
    out = capsys.readouterr().out
    assert "arc_easy" in out.partition("\n\n")[0] and "4.0 ± 2.0" in out and "--full" not in out


def test_the_demos_short_table_fits_in_a_hundred_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The widest numbers that the four rows of the demo have had."""
    monkeypatch.setenv("COLUMNS", "100")
    keys = (
        "forget/accuracy forget/paraphrase_accuracy retain/accuracy retain/neighbour_accuracy reasoning/mean"
    )
    for method, value, perplexity, error, time in [
        ("none", 1.0, 3.53, 0.08, 0.0),
        ("law", 0.313, 3.55, 0.08, 146.1),
        ("gradient_ascent", 0.832, 267.45, 10.6, 3.1),
    ]:
        metrics = {"fluency/perplexity": perplexity, "fluency/perplexity_stderr": error, "time/wash_s": time}
        metrics |= dict.fromkeys(keys.split(), value) | {f"{key}_stderr": 0.027 for key in keys.split()}
        save(tmp_path, method, metrics)
    execute(monkeypatch, tmp_path)
    lines = capsys.readouterr().out.partition("Left:")[0].splitlines()
    assert sum("gradient_ascent" in line for line in lines) == 1  # not in two parts
    assert max(map(len, lines)) <= 100


def test_script_in_a_narrow_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    execute(monkeypatch, folder)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert len(re.findall("^ft_l +1 ", text, re.MULTILINE)) == 2  # two parts, nothing cut short
    assert "seed 3 failed: LawError" in " ".join(text.split()) and "…" not in text


def test_script_on_a_console_that_lacks_the_arrows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sys.stdout.reconfigure(encoding="cp1252")
    execute(monkeypatch, folder)
    out = capsysbinary.readouterr().out.decode("cp1252")
    assert "20.0 ± 10.0" in out and "lambda is NaN" in out


def test_script_fails_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="There is no folder") as failure:
        execute(monkeypatch, tmp_path / "nowhere")
    # Python prints a text code to stderr and exits with 1.
    assert isinstance(failure.value.code, str)
