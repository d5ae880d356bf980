"""The registry of metrics and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from law.results import METRICS, as_markdown, describe


def test_the_page_is_the_registry() -> None:
    page = Path(__file__).parents[1] / "docs" / "metrics.md"
    assert page.read_text() == as_markdown(), (
        "docs/metrics.md is out of date; write law.results.as_markdown() to it"
    )


def test_keys_are_unique_and_described() -> None:
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys)
    assert describe("forget/accuracy").better == "lower"
    task = describe("reasoning/arc_easy/acc_before")
    assert (task.key, task.title, task.unit) == (
        "reasoning/arc_easy/acc_before",
        "arc_easy before",
        "fraction",
    )


@pytest.mark.parametrize("key", ["forget/acuracy", "reasoning//acc", "reasoning/a/b", "acc"])
def test_an_undocumented_key_is_refused(key: str) -> None:
    with pytest.raises(KeyError, match="not documented"):
        describe(key)
