"""Which runs of a sweep make a row of a table, what the row is called, and what is remarked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from run_folders import column, rows_of, save, save_multirun

from law.reporting.labels import common_settings, labels
from law.reporting.loading import load_sweep
from law.reporting.summary import write_csv
from law.reporting.sweep import Missing, Setup, Sweep
from law.reporting.tables import build_report
from law.reporting.writing import write_tables
from law.runs.identity import settings_of


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


def test_a_text_is_shown_without_what_hydras_grammar_escapes() -> None:
    setup = Setup("m", "d", "law", (("prompting.system", r"Answer\,\ in\ one\ word."),))
    assert common_settings([setup]) == ["All rows: prompting.system=Answer, in one word."]


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
        "lab, lab: the runs measure reasoning on different tasks (hellaswag, lab_row; hellaswag_mirror, lab_row), so "
        "their means cannot be"
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
    assert (
        "Reasoning: mean accuracy on a; not on b, where the unwashed model cannot be told from guessing."
        in table.legend
    )


def test_runs_that_end_with_the_same_weights_are_remarked(tmp_path: Path) -> None:
    """Two λ that give the same model, and the same wash with other facts kept, which is no other wash."""
    for seed in (0, 1):
        save(tmp_path, "memit", {}, seed, settings={"method.lam": "1"}, washed_hash=f"same {seed}")
    save(tmp_path, "memit", {}, settings={"method.lam": "2"}, washed_hash="same 0")
    save(tmp_path, "law", {}, settings={"dataset.keep": "1"}, washed_hash="other")
    save(tmp_path, "law", {}, settings={"dataset.keep": "2"}, washed_hash="other")
    (remark,) = load_sweep(tmp_path).remarks
    assert remark == (
        "Runs under different names end with the same washed weights: lab, lab, memit (lam=1), seed 0; lab, lab, "
        "memit (lam=2), seed 0. What tells their names apart had no effect."
    )


def test_a_table_tells_what_each_method_learned_from(tmp_path: Path) -> None:
    metrics = {"forget/accuracy": 0.1}
    save(tmp_path, "none", metrics, learned_from=[])
    save(tmp_path, "seul", metrics, learned_from=[])
    save(tmp_path, "law", metrics, learned_from=["general text"])
    save(tmp_path, "memit", metrics, learned_from=["general text"])
    save(tmp_path, "npo", metrics, learned_from=["general text", "other facts"])
    (table,) = build_report(load_sweep(tmp_path)).short
    assert (
        "Read besides the facts to wash: nothing (seul); general text (law, memit); general text and other facts (npo)."
        in table.note
    )


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
