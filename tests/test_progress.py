"""What a stage tells while it runs: lines of the log, since a test has no terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base import progress as module
from law.base.cache import Cache
from law.base.progress import duration, progress, tracked
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings, second_moments


@pytest.fixture(autouse=True)
def _everything_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_long_stage_is_told_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    """1,000 documents take 25 s each time: a line is due after 50, 100, ... seconds."""
    now = [100.0]
    with progress("second moments", 10_000, "documents", clock=lambda: now[0]) as bar:
        for _ in range(10):
            now[0] += 25
            bar.update(1000)
    assert caplog.messages == [
        "second moments: 10,000 documents",
        "second moments: 2,000 of 10,000 documents (20 %), about 3 min left",
        "second moments: 4,000 of 10,000 documents (40 %), about 2 min left",
        "second moments: 6,000 of 10,000 documents (60 %), about 2 min left",
        "second moments: 8,000 of 10,000 documents (80 %), about 50 s left",
        "second moments: 10,000 documents in 4 min",
    ]


def test_what_an_earlier_process_has_done_does_not_count_as_fast(caplog: pytest.LogCaptureFixture) -> None:
    """Of 1,000, 900 were done before; 50 take 40 s, and so do the other 50."""
    now = [0.0]
    with progress("moments", 1000, "documents", done=900, clock=lambda: now[0]) as bar:
        now[0] += 40
        bar.update(50)
    assert caplog.messages[:2] == [
        "moments: 900 of 1,000 documents (90 %)",
        "moments: 950 of 1,000 documents (95 %), about 40 s left",
    ]


def test_without_a_total_the_time_so_far_is_told(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with progress("moments", None, "documents", clock=lambda: now[0]) as bar:
        now[0] += 150
        bar.update(13)
    assert caplog.messages[1:] == ["moments: 13 documents in 2 min", "moments: 13 documents in 2 min"]


def test_a_stage_that_fails_has_no_end(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), progress("moments", 2, "documents"):
        raise KeyError
    assert caplog.messages == ["moments: 2 documents"]


def test_a_loop_and_one_that_is_left(caplog: pytest.LogCaptureFixture) -> None:
    assert list(tracked("abc", "spelling", "letters")) == ["a", "b", "c"]
    assert caplog.messages == ["spelling: 3 letters", "spelling: 3 letters in 0.0 s"]


def test_only_the_first_process_writes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "rank", lambda: 1)
    list(tracked("abc", "spelling", "letters"))
    assert caplog.messages == []


def test_a_terminal_has_a_bar_and_no_lines(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(tracked("abc", "spelling", "letters"))
    assert caplog.messages == [] and "spelling:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (25, "25 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_second_moments_tell_how_much_is_left(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text has three documents, though 100,000 are asked for; each batch holds one."""
    text = tmp_path / "general.txt"
    text.write_text("You can buy bread.\n\nYou can buy salt.\nYou can buy wine.\n", encoding="utf-8")
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    settings = MomentSettings(str(text), batch_size=1)
    c = second_moments(Decoder(tiny_model), tiny_tokenizer, [0], settings, Cache(None))[0]
    assert torch.isfinite(c).all()
    told = [message for message in caplog.messages if message.startswith("second moments:")]
    assert told[0] == "second moments: 3 documents" and told[-1].startswith("second moments: 3 documents in")
    assert told[1].startswith("second moments: 1 of 3 documents (33 %), about ")
