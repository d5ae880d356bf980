from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from whole_runs import ROOT

from law.base.cache import Cache
from law.base.cache_sizes import DAY_S, Size, kept_files, prune, sizes
from law.base.item_cache import json_items

MONTH_S = 30 * DAY_S


def fill(folder: Path) -> Cache:
    """One entry of JSON, one of tensors and one of items, as a run leaves them, and remembered hashes of files."""
    cache = Cache(folder)
    cache.json("perplexity", {"a": 1}, lambda: 1.5)
    cache.keep("moments", {"a": 1}, {"c": torch.ones(100)}, seconds=1.0)
    json_items(cache, "answers", {"a": 1}, ["x", "y"], lambda asked: [*asked])
    (folder / "file_hashes.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    return cache


def aged(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))


def test_sizes_are_those_of_the_files_by_name(tmp_path: Path) -> None:
    fill(tmp_path)
    (moments,) = tmp_path.glob("moments-*")
    (answers,) = tmp_path.glob("answers-*/*")
    aged(moments, 31)
    assert sizes([*kept_files(tmp_path)], MONTH_S) == [
        Size("moments", 1, moments.stat().st_size, moments.stat().st_size),
        Size("answers", 1, answers.stat().st_size, 0),
        Size("perplexity", 1, len("1.5\n"), 0),
    ]


def test_what_is_pruned_was_unused_and_is_computed_again(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    (moments,) = tmp_path.glob("moments-*")
    (answers,) = tmp_path.glob("answers-*/*")
    aged(moments, 29)
    aged(answers, 31)
    aged(tmp_path / "notes.txt", 99)
    size = answers.stat().st_size
    assert prune([*kept_files(tmp_path)], MONTH_S) == size
    assert not answers.parent.exists()
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {
        "moments",
        "perplexity",
        "file_hashes.json",
        "notes.txt",
    }
    assert cache.json("perplexity", {"a": 1}, lambda: 2.5) == 1.5
    assert json_items(cache, "answers", {"a": 1}, ["x"], lambda asked: [f"{a} again" for a in asked]) == [
        "x again"
    ]


def test_a_file_that_was_read_is_in_use(tmp_path: Path) -> None:
    fill(tmp_path)
    (path,) = tmp_path.glob("perplexity-*")
    os.utime(path, (time.time() - DAY_S, time.time() - 99 * DAY_S))  # read yesterday
    assert prune([*kept_files(tmp_path)], MONTH_S) == 0


def test_the_command_reports_and_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fill(tmp_path)
    for path in tmp_path.rglob("*.*"):
        aged(path, 40)
    script = str(ROOT / "experiments" / "cache.py")
    monkeypatch.setattr(sys, "argv", ["cache.py", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr().out
    assert "moments" in said and "Removed" not in said and any(tmp_path.glob("moments-*"))
    monkeypatch.setattr(sys, "argv", ["cache.py", str(tmp_path), "--prune"])
    runpy.run_path(script, run_name="__main__")
    assert "Removed 0.0 MB" in capsys.readouterr().out and not any(tmp_path.glob("moments-*"))
    monkeypatch.setattr(sys, "argv", ["cache.py", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="error: There is no folder"):
        runpy.run_path(script, run_name="__main__")
