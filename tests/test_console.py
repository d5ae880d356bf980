"""Commands on consoles whose encoding lacks λ."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from law.runs.command_line import run_command

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", b"lambda = 3 \xb1 1 ?"), ("ascii", b"lambda = 3 +- 1 ?")]
)
def test_text_is_spelled_where_the_encoding_lacks_a_character(encoding: str, shown: bytes) -> None:
    """In a process of its own, whose streams have the encoding from its start."""
    script = "from law.base.console import accept_any_text\naccept_any_text()\nprint('λ = 3 ± 1 Ω', end='')"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert done.stdout == shown


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def log_a_symbol(_: DictConfig) -> None:
    logging.getLogger("law").info("λ = 3 ± 1 Ω")


def test_a_command_logs_every_line_and_its_file_is_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", f"hydra.run.dir={tmp_path}"])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp1252")
    run_command(log_a_symbol)
    said = capsysbinary.readouterr()
    assert b"Logging error" not in said.err
    assert b"INFO law: lambda = 3 \xb1 1 ?" in said.out
    (log,) = tmp_path.glob("*.log")
    assert "INFO law: λ = 3 ± 1 Ω" in log.read_text(encoding="utf-8")
