"""Commands on consoles whose encoding lacks λ: in processes of their own, since the encoding is set at their start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOGS_A_SYMBOL = f"""
import logging
import hydra
from law.runs.command_line import run_command

@hydra.main(version_base="1.3", config_path={str(ROOT / "conf")!r}, config_name="config")
def main(config):
    logging.getLogger("law").info("λ = 3 ± 1 Ω")

run_command(main)
"""


def run_on(encoding: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    """A Python command whose standard streams have this encoding; it has to succeed."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, check=True
    )


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", b"lambda = 3 \xb1 1 ?"), ("ascii", b"lambda = 3 +- 1 ?")]
)
def test_text_is_spelled_where_the_encoding_lacks_a_character(encoding: str, shown: bytes) -> None:
    script = "from law.base.console import accept_any_text\naccept_any_text()\nprint('λ = 3 ± 1 Ω', end='')"
    assert run_on(encoding, "-c", script).stdout == shown


def test_a_command_logs_every_line_and_its_file_is_utf_8(tmp_path: Path) -> None:
    done = run_on("cp1252", "-c", LOGS_A_SYMBOL, f"hydra.run.dir={tmp_path}")
    assert b"Logging error" not in done.stderr
    assert b"INFO law: lambda = 3 \xb1 1 ?" in done.stdout
    (log,) = tmp_path.glob("*.log")
    assert "INFO law: λ = 3 ± 1 Ω" in log.read_text(encoding="utf-8")
