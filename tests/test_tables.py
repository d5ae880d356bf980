from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from law.errors import LawError
from law.tables import Run, Table, build_table, load_runs, summarise, to_latex, to_markdown, write_tables

SCRIPT = Path(__file__).parents[1] / "experiments" / "table.py"


def save(
    folder: Path,
    label: str,
    metrics: dict[str, float],
    seed: int = 0,
    settings: dict[str, str] | None = None,
    status: str = "finished",
    model: str = "lab",
    dataset: str = "lab",
) -> Path:
    run = folder / f"{len([*folder.glob('*')]):02d}"
    run.mkdir(parents=True)
    choices = {"model": model, "dataset": dataset, "method": label}
    manifest = {"status": status, "settings": settings or {}, "choices": choices, "seed": seed}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def run(label: str, metrics: dict[str, float], model: str = "lab", dataset: str = "lab") -> Run:
    return Run(label, label, model, dataset, {}, metrics)


def table_of(*runs: Run, unfinished: int = 0) -> Table:
    return build_table(summarise([*runs]), unfinished)


def column(table: Table, heading: str) -> list[str]:
    """The cells of a Markdown column, stripped."""
    head, _, *body = [
        line.strip("| ").split(" | ") for line in to_markdown(table).split("\n\n")[0].split("\n")
    ]
    at = [text.strip() for text in head].index(heading)
    return [row[at].strip() for row in body]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of law, one run each of two others, and four unfinished runs."""
    folder = tmp_path / "demo"
    before = {"facts/known": 20, "forget/accuracy_before": 1.0, "reasoning/mean_before": 0.8}
    for seed, forget in enumerate((0.1, 0.2, 0.3)):
        metrics = {"forget/accuracy": forget, "reasoning/arc_easy/acc": 0.7, "reasoning/mean": 0.7}
        save(folder, "law", {**before, **metrics, "time/wash_s": 2.0 + 2 * seed}, seed)
    # The seed of two finished runs may be the same: both count.
    metrics = {
        "forget/accuracy": 0.05,
        "reasoning/arc_easy/acc": 0.5,
        "reasoning/mean": 0.5,
        "time/wash_s": 9.25,
    }
    save(folder, "ft_l (lr=0.001)", {**before, **metrics})
    save(
        folder,
        "none",
        {**before, "forget/accuracy": 1.0, "reasoning/arc_easy/acc": 0.8, "reasoning/mean": 0.8},
    )
    save(folder, "law", before, status="failed")
    save(folder, "law", before, status="running")
    (save(folder, "law", before) / "metrics.json").write_text("{")
    (folder / "killed" / ".hydra").mkdir(parents=True)
    (folder / "wandb" / "latest").mkdir(parents=True)
    (folder / "notes.txt").touch()
    return folder


def test_load_runs_counts_the_unfinished(folder: Path) -> None:
    runs, unfinished = load_runs(folder)
    assert [run.label for run in runs] == ["law"] * 3 + ["ft_l (lr=0.001)", "none"]
    assert unfinished == 4


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"status": "finished"}', "null", "\x00"])
def test_a_broken_manifest_is_an_unfinished_run(folder: Path, manifest: str) -> None:
    (folder / "killed" / "manifest.json").write_text(manifest)
    (folder / "killed" / "metrics.json").write_text('{"forget/accuracy": 0.5}')
    assert load_runs(folder)[1] == 4


def test_markdown(folder: Path) -> None:
    write_tables(folder)
    # law: mean of 10, 20, 30 is 20, deviations -10, 0, 10, so the sample variance is 200 / 2.
    assert (folder / "table.md").read_text() == (
        "| method          | runs | forget acc. ↓ |     arc_easy ↑ |    reasoning ↑ | wash time ↓ |\n"
        "| --------------- | ---: | ------------: | -------------: | -------------: | ----------: |\n"
        "| none            |    1 |         100.0 |           80.0 |           80.0 |           — |\n"
        "| ft_l (lr=0.001) |    1 |       **5.0** |           50.0 |           50.0 |         9.2 |\n"
        "| law             |    3 |   20.0 ± 10.0 | **70.0 ± 0.0** | **70.0 ± 0.0** |   4.0 ± 2.0 |\n"
        "\n"
        "Accuracies and F1 in percent, times in seconds; mean ± standard deviation over several runs. "
        "Runs left out as unfinished: 4.\n"
    )


def test_csv_is_unrounded_and_complete(folder: Path) -> None:
    write_tables(folder)
    frame = pd.read_csv(folder / "table.csv")
    keys = ["facts/known", "forget/accuracy_before", "forget/accuracy", "reasoning/arc_easy/acc"]
    keys += ["reasoning/mean_before", "reasoning/mean", "time/wash_s"]
    pairs = [column for key in keys for column in (key, f"{key}/std")]
    assert [*frame.columns] == ["label", "model", "dataset", "runs", *pairs]
    rows = frame.set_index("label")
    assert [*rows["runs"]] == [1, 1, 3]
    assert rows.loc["law", "forget/accuracy"] == pytest.approx(0.2)
    assert rows.loc["law", "forget/accuracy/std"] == pytest.approx(0.1)
    assert rows.loc["ft_l (lr=0.001)", "time/wash_s"] == 9.25
    assert rows.loc["none", ["forget/accuracy/std", "time/wash_s"]].isna().all()


def test_csv_keeps_metrics_that_are_no_longer_documented() -> None:
    summary = summarise([run("law", {"old/metric": 0.5, "forget/accuracy": 0.25})])
    assert [*summary.columns[5:]] == [
        "forget/accuracy",
        "forget/accuracy/std",
        "old/metric",
        "old/metric/std",
    ]
    assert build_table(summary, 0).headings == ["method", "runs", "forget acc. ↓"]


def test_latex(folder: Path) -> None:
    write_tables(folder)
    comment, *lines = (folder / "table.tex").read_text().splitlines()
    assert comment.startswith("% ")
    assert lines[:3] == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"method & runs & forget acc. $\downarrow$ & arc\_easy $\uparrow$ & reasoning $\uparrow$"
        r" & wash time $\downarrow$ \\",
    ]
    assert lines[4] == r"none & 1 & 100.0 & 80.0 & 80.0 & --- \\"
    assert r"ft\_l (lr=0.001) & 1 & \textbf{5.0} &" in lines[5]
    assert r"law & 3 & 20.0 $\pm$ 10.0 & \textbf{70.0 $\pm$ 0.0} &" in lines[6]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_escaping() -> None:
    table = table_of(run(r"a|b*c_d%e&f#g$h{i}~j^k<l\m", {"forget/accuracy": 0.5}))
    assert r"| a\|b\*c_d%e&f#g$h{i}~j^k\<l\\m |" in to_markdown(table)
    escaped = r"a\textbar{}b*c\_d\%e\&f\#g\$h\{i\}\textasciitilde{}j\textasciicircum{}k"
    escaped += r"\textless{}l\textbackslash{}m"
    assert f"\n{escaped} & 1 &" in to_latex(table)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(folder: Path, tmp_path: Path) -> None:
    write_tables(folder)
    body = rf"\begin{{document}}\input{{{folder}/table}}\end{{document}}"
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}{body}"
    command = ["pdflatex", "-halt-on-error", "-output-directory", str(tmp_path), document]
    subprocess.run(command, check=True, capture_output=True)


def test_bold_ties_at_the_precision_shown_and_never_the_unwashed() -> None:
    runs = [
        run(label, {"forget/accuracy": value}) for label, value in zip("abc", (0.1, 0.1001, 0.2), strict=True)
    ]
    table = table_of(run("none", {"forget/accuracy": 0.0}), *runs)
    assert column(table, "forget acc. ↓") == ["0.0", "**10.0**", "**10.0**", "20.0"]


def test_no_bold_without_a_rival() -> None:
    runs = [run("law", {"forget/accuracy": 0.1}), run("memit", {"reasoning/mean": 0.5})]
    table = table_of(run("none", {"forget/accuracy": 1.0}), *runs)
    assert column(table, "forget acc. ↓") == ["100.0", "10.0", "—"]
    assert column(table, "reasoning ↑") == ["—", "—", "50.0"]


def test_models_are_compared_apart_and_named_only_when_they_differ() -> None:
    values = {
        ("a", "law"): 0.1,
        ("a", "memit"): 0.2,
        ("b", "law"): 0.4,
        ("b", "memit"): 0.3,
        ("b", "none"): 1.0,
    }
    table = table_of(
        *(run(label, {"forget/accuracy": value}, model) for (model, label), value in values.items())
    )
    assert table.headings == ["model", "method", "runs", "forget acc. ↓"]
    assert column(table, "model") == ["a", "a", "b", "b", "b"]
    assert column(table, "method") == ["law", "memit", "none", "law", "memit"]
    assert column(table, "forget acc. ↓") == ["**10.0**", "20.0", "100.0", "40.0", "**30.0**"]


def test_picture(folder: Path) -> None:
    paths, unfinished, _ = write_tables(folder)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex", "tradeoff.png"]
    assert unfinished == 4
    picture = paths[-1].read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_no_picture_without_both_axes(tmp_path: Path) -> None:
    save(tmp_path, "law", {"forget/accuracy": 0.1})
    assert [path.name for path in write_tables(tmp_path)[0]] == ["table.md", "table.csv", "table.tex"]


def test_errors_name_the_mend_and_create_nothing(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"There is no folder .*python experiments/wash\.py"):
        write_tables(tmp_path / "nowhere")
    save(tmp_path / "runs", "law", {}, status="failed")
    with pytest.raises(LawError, match=r"no finished run \(unfinished: 1\).*python experiments/wash\.py"):
        write_tables(tmp_path / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["00"]


def execute(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_script_down_a_pipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(monkeypatch, folder)
    out = capsys.readouterr().out
    assert out.startswith((folder / "table.md").read_text())
    assert str(folder / "tradeoff.png") in out


def test_script_in_a_narrow_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    execute(monkeypatch, folder)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert text.count("│ ft_l (lr=0.001) │") == 2  # two halves, nothing cut short
    assert "unfinished: 4" in text and "…" not in text


def test_script_fails_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="There is no folder") as failure:
        execute(monkeypatch, tmp_path / "nowhere")
    # Python prints a text code to stderr and exits with 1.
    assert isinstance(failure.value.code, str)


def test_settings_that_vary_make_rows_of_their_own(tmp_path: Path) -> None:
    """Two learning rates of one method, two sizes of another; what is the same in both is not told."""
    metrics = {"forget/accuracy": 0.5}
    for seed, (rate, wash) in enumerate([("1e-5", "50"), ("1e-4", "50"), ("1e-4", "50")]):
        settings = {"method.learning_rate": rate, "dataset.wash": wash}
        save(tmp_path, "ascent", metrics, seed=seed, settings=settings)
    for seed, wash in enumerate(["50", "200"]):
        save(tmp_path, "law", metrics, seed=seed, settings={"dataset.wash": wash})
    runs, unfinished = load_runs(tmp_path)
    assert unfinished == 0
    assert Counter(run.label for run in runs) == {
        "ascent (learning_rate=1e-5)": 1,
        "ascent (learning_rate=1e-4)": 2,
        "law (dataset.wash=50)": 1,
        "law (dataset.wash=200)": 1,
    }
