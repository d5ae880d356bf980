"""W&B in online mode, with a server that refuses, stalls, or dies in between: the run goes on, and loses nothing."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from whole_runs import ROOT

from law.runs import tracker
from law.runs.identity import Identity
from law.runs.tracker import Guarded, Mode, Wandb

IDENTITY = Identity("demo", {"model": "lab", "dataset": "zsre", "method": "law"}, {}, 0)

pytestmark = pytest.mark.slow  # W&B's own process waits for the server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker, "START_S", 3.0)
    monkeypatch.setattr(tracker, "FINISH_S", 3.0)
    monkeypatch.setenv("WANDB_API_KEY", "5e" * 20)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()  # it remembers the environment of its first run


class Answers(BaseHTTPRequestHandler):
    """As much of a W&B server as it takes to begin a run and to upload one."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(body)  # type: ignore[attr-defined]
        asked = json.loads(body or b"{}")
        project = {"id": "p", "name": "law", "entity": {"id": "e", "name": "me"}}
        data: object = {"model": {**project, "bucket": None}}
        if "upsertBucket" in asked.get("query", ""):
            run = {"id": "r", "name": asked["variables"]["name"], "displayName": "r", "project": project}
            run |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0}
            data = {"upsertBucket": {"bucket": run, "inserted": True}}
        if "createRunFiles" in asked.get("query", ""):
            data = {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.received = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def conclude(tracked: Guarded, folder: Path) -> None:
    """The rest of a run after its start."""
    tracked.log({"targets/first_nll": 3.5})
    (folder / "predictions.jsonl").write_text('{"prompt": "Anna speaks", "answer": " Frenglish"}\n')
    tracked.conclude({"forget/accuracy": 0.125}, folder / "predictions.jsonl")
    tracked.finish(False)
    wandb.teardown()  # waits for what is still to be written


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the run's log; W&B has one of its own."""
    ours = (record for record in caplog.records if record.name.startswith("law."))
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("stalls", [False, True], ids=["refuses", "stalls"])
def test_a_run_that_reaches_no_server_is_kept_offline(
    stalls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        if stalls:
            listening.listen()  # connections are taken, and never answered
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        began, tracked = time.monotonic(), Guarded(Wandb(mode=Mode.online))
        tracked.start(IDENTITY, tmp_path)
        conclude(tracked, tmp_path)
        assert time.monotonic() - began < 60
    warnings = told(caplog)
    assert len(warnings) == 1 and "it is kept offline, and `make sync` uploads it" in warnings[0]
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"targets/first_nll" in log.read_bytes() and b"forget/accuracy" in log.read_bytes()


def test_a_server_that_dies_in_between_costs_a_warning_and_make_sync_uploads_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracked = Guarded(Wandb(mode=Mode.online))
    with answering() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        tracked.start(IDENTITY, tmp_path)
        assert told(caplog) == []
    began = time.monotonic()
    conclude(tracked, tmp_path)
    assert time.monotonic() - began < 120
    warnings = told(caplog)
    assert len(warnings) <= 1 and all("the tracker failed at" in warning for warning in warnings)
    (log,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert b"targets/first_nll" in log.read_bytes()

    with answering() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "wandb sync" in line)
        options = [word for word in command.split() if word.startswith("--")]
        sync = [sys.executable, "-m", "wandb", "sync", *options, str(tmp_path / "wandb")]
        subprocess.run(sync, cwd=tmp_path, check=True)
        received = b"".join(server.received)
    assert b"targets/first_nll" in received and b"forget/accuracy" in received
