"""The HTML page about a sweep: what it holds, that it fetches nothing, and that it works in a browser."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import demo_folder, save
from whole_runs import ROOT

from law.reporting.page import ANSWERS, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

EVIL = "</script><script>document.title='taken over'</script><img src=https://example.org/x>"


def answered(run: Path, answer: str, count: int = 3) -> None:
    """The file of predictions as a run leaves it; the last fact was not known."""
    rows = [
        {
            "prompt": f"Subject {i} lives in",
            "object": "Rome",
            "answer_before": " Rome.",
            "answer_after": answer if i < count else None,
            "known_before": i < count,
            "known_after": i % 2 == 0 if i < count else None,
        }
        for i in range(count + 1)
    ]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Parsed(HTMLParser):
    """Every attribute of the page, the text of its cells by table, and the data that its script reads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.data, self._inside, self._id = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._inside, self._id = tag, dict(attributes).get("id") or ""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "button"):
            self.tables[-1][-1][-1] += data
        elif self._inside == "script" and self._id == "data":
            self.data += data


def test_the_page_holds_tables_pictures_answers_and_runs_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = demo_folder(tmp_path)
    answered(folder / "00", EVIL, count=ANSWERS + 5)
    (folder / "00" / ".hydra").mkdir()
    (folder / "00" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder)])
    runpy.run_path(str(ROOT / "experiments" / "report.py"), run_name="__main__")
    assert f"Wrote {folder / 'report.html'}." in capsys.readouterr().out
    page = Parsed((folder / "report.html").read_text(encoding="utf-8"))

    fetched = [value for name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in fetched)
    assert page.tags.count("img") == 1 and page.tags.count("script") == 2  # no tag of the answer is one
    short, full, answers, runs = page.tables
    assert [row[0] for row in short[1:]] == ["none", "law", "ft_l"]
    assert short[2][:3] == ["law", "3 of 6", "20.0 ± 10.0"]
    assert len(full[0]) > len(short[0]) and len(answers) == 1  # its rows come from the data
    assert [row[:1] + row[2:4] for row in runs[1:]] == [
        ["04", "0", "100"],
        *([f"0{seed}", str(seed), f"{10.0 * (1 + seed)} ± 5.0"] for seed in range(3)),
        ["03", "0", "5.0 ± 4.9"],
    ]
    assert [row[1] for row in runs[1:]] == ["none", "law", "law", "law", "ft_l"]
    data = json.loads(page.data)
    assert data["answers"]["law"][:2] == [
        ["Subject 0 lives in", "Rome", " Rome.", EVIL, "yes"],
        ["Subject 1 lives in", "Rome", " Rome.", EVIL, "no"],
    ]
    assert {name: len(rows) for name, rows in data["answers"].items()} == {
        "law": ANSWERS,
        "none": 0,
        "ft_l": 0,
    }
    assert data["runs"]["00"].endswith("\n\nseed: 0\n") and '"seed": 2' in data["runs"]["02"]


def test_a_folder_without_a_finished_run_has_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run"):
        runpy.run_path(str(ROOT / "experiments" / "report.py"), run_name="__main__")


BEFORE = """<script>
var problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("securitypolicyviolation", event => problems.push(event.blockedURI));
</script>"""

PROBE = """<script>{  // in a block of its own, since the page has names too
const tables = [...document.querySelectorAll("table")], found = {};
const column = (table, at) => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].textContent);
const click = (table, at) => table.tHead.rows[0].cells[at].querySelector("button").click();
const [short, , answers, all] = tables;
click(short, 2); found.ascending = column(short, 2);
click(short, 2); found.descending = column(short, 2);
const began = performance.now();
click(all, 3);
const box = all.parentElement.previousElementSibling;
box.value = "M3 learning_rate=20e-5"; box.dispatchEvent(new Event("input"));
found.ms = performance.now() - began;
found.filtered = column(all, 0);
box.value = ""; box.dispatchEvent(new Event("input"));
found.runs = column(all, 0).length;
all.tBodies[0].rows[0].cells[1].click();
found.record = document.getElementById("run").textContent;
found.answers = [...answers.tBodies[0].rows].map(row => row.cells[3].textContent);
found.title = document.title;
found.problems = problems;
document.body.innerHTML = "<pre id=found></pre>";
document.getElementById("found").textContent = JSON.stringify(found);
}</script>"""


@pytest.mark.slow  # a browser starts
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_sorting_filtering_and_choosing_work_in_a_browser_with_500_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    for i in range(500):
        metrics = {"facts/known": 20.0, "forget/accuracy": (i * 7 % 500) / 500, "retain/accuracy": 0.5}
        settings = {"method.learning_rate": f"{1 + i // 20}e-5"}
        run = save(folder, f"m{i // 100}", metrics, i % 20, settings)
        answered(run, EVIL)
    page = write_page(folder).read_text(encoding="utf-8")
    page = page.replace("<head>", f"<head>{BEFORE}", 1).replace("</body>", f"{PROBE}</body>", 1)
    (tmp_path / "probed.html").write_text(page, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", profile, "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "probed.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(unescape(re.search(r'<pre id="found">(.*)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["problems"] == [] and found["title"] == "Knowledge washing: sweep"
    numbers = [float(cell.split()[0]) for cell in found["ascending"]]
    assert len(numbers) == 25 and numbers == sorted(numbers)
    assert [float(cell.split()[0]) for cell in found["descending"]] == numbers[::-1]
    assert found["runs"] == 500
    assert found["filtered"] == sorted(found["filtered"], key=lambda name: int(name) * 7 % 500)
    assert {*found["filtered"]} == {f"{i}" for i in range(380, 400)}
    assert json.loads(found["record"])["status"] == "finished"
    assert found["answers"] == [EVIL] * 3
    assert found["ms"] < 2000
