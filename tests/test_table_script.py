"""What experiments/table.py writes and prints, with published numbers and the picture of the trade-off."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from run_folders import column, demo_folder, save

from law.base.errors import LawError
from law.reporting.published_numbers import FORMAT, load_published
from law.reporting.writing import write_tables

SCRIPT = Path(__file__).parents[1] / "experiments" / "table.py"
PUBLISHED = """
- {model: lab, dataset: lab, method: law, metric: forget/accuracy, value: 0.015, table: 2, page: 7, source: A paper}
- {model: lab, dataset: lab, method: woh, metric: reasoning/arc_easy/acc, value: 0.5, table: "3", page: 8, source: A paper}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path)


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


def test_the_demos_short_table_fits_in_the_width_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The widest numbers that the four rows of the demo have had."""
    monkeypatch.delenv("COLUMNS", raising=False)
    keys = (
        "forget/accuracy forget/unrefused_accuracy forget/paraphrase_accuracy retain/accuracy "
        "retain/neighbour_accuracy reasoning/mean attack/relearning/recalled"
    )
    for method, value, perplexity, error, time in [
        ("none", 1.0, 3.53, 0.08, 0.0),
        ("law", 0.313, 3.55, 0.08, 146.1),
        ("gradient_ascent", 0.832, 267.45, 10.6, 3.1),
    ]:
        metrics = {"fluency/perplexity": perplexity, "fluency/perplexity_stderr": error, "time/wash_s": time}
        metrics |= dict.fromkeys(keys.split(), value) | {f"{key}_stderr": 0.027 for key in keys.split()}
        metrics |= {"attack/relearning/recalled_before": 1.0, "attack/relearning/recalled_control": 0.1}
        save(tmp_path, method, metrics)
    execute(monkeypatch, tmp_path)
    lines = capsys.readouterr().out.partition("Left:")[0].splitlines()
    assert sum("gradient_ascent" in line for line in lines) == 1  # not in two parts
    assert max(map(len, lines)) <= 130


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
