"""Tables in LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import demo_folder

from law.reporting.typesetting import Cell, Table, to_latex, to_markdown
from law.reporting.writing import write_tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path)


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
    assert check_latex(text) == [[5, 5, 5, 5, 5], [5, 5, 5, 5, 5]]
    lines = text.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs,adjustbox}"
    assert lines[1] == "% lab, lab, law, seed 3 failed: LawError: λ is NaN"
    assert r"\label{tab:lab-lab}" in lines
    first, second = (i for i, line in enumerate(lines) if line == r"\begin{tabular}{lrrrr}")
    assert lines[first + 1 : first + 6] == [
        r"\toprule",
        r"method & runs & forget acc. $\downarrow$ & retain acc. $\uparrow$ & arc\_easy $\uparrow$ \\",
        r"\midrule",
        r"none & 1 & 100 & 100 & 80.0 \\",
        r"law & 3 of 6 & 20.0 $\pm$ 10.0 & \textbf{80.0 $\pm$ 0.0} & \textbf{70.0 $\pm$ 0.0} \\",
    ]
    assert lines[second + 4 : second + 6] == [
        r"none & 80.0 & 100 & 0.0 & -- \\",
        r"law & \textbf{70.0 $\pm$ 0.0} & \textbf{80.0 $\pm$ 0.0} & \textbf{79.8 $\pm$ 3.4} & "
        r"4.0 $\pm$ 2.0 \\",
    ]


def test_escaping() -> None:
    table = Table("m_1, d", ["method"], [[Cell(r"a|b*c_d%e&f#g$h{i}~j^k<l\m")]], 1, "50 % − 3", "")
    assert r"| a\|b\*c_d%e&f#g$h{i}~j^k\<l\\m |" in to_markdown([table], [table], [], [])
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
