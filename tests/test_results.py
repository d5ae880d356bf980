"""The registry of metrics, the page made from it, and the standard errors that come with a score."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.evaluation.estimates import Estimate, clustered_mean, entries, mean, ratio
from law.evaluation.metrics import METRICS, as_markdown, describe


def test_the_page_is_the_registry() -> None:
    page = Path(__file__).parents[1] / "docs" / "metrics.md"
    assert page.read_text() == as_markdown(), (
        "docs/metrics.md is out of date; write law.evaluation.metrics.as_markdown() to it"
    )


def test_keys_are_unique_and_described() -> None:
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys)
    assert not [key for key in keys if key.endswith(("_before", "_stderr", "_n"))]
    assert describe("forget/accuracy").better == "lower"


@pytest.mark.parametrize(
    ("key", "title", "unit", "better"),
    [
        ("reasoning/arc_easy/acc", "arc_easy", "fraction", "higher"),
        ("reasoning/arc_easy/acc_before", "arc_easy before", "fraction", "neither"),
        ("reasoning/arc_easy/acc_norm", "arc_easy (norm)", "fraction", "higher"),
        ("reasoning/arc_easy/chance", "arc_easy (chance)", "fraction", "neither"),
        ("reasoning/arc_easy/acc_norm_n", "arc_easy (norm) n", "count", "neither"),
        ("forget/log_prob_stderr", "forget log p s.e.", "nats", "neither"),
        ("forget/log_prob_before_stderr", "forget log p before s.e.", "nats", "neither"),
    ],
)
def test_suffixes_are_described(key: str, title: str, unit: str, better: str) -> None:
    metric = describe(key)
    assert (metric.key, metric.title, metric.unit, metric.better) == (key, title, unit, better)


@pytest.mark.parametrize(
    "key",
    [
        *("forget/acuracy", "reasoning//acc", "reasoning/a/b", "acc"),
        *(
            "facts/known_before",
            "time/wash_s_stderr",
            "forget/accuracy_stderr_before",
            "forget/accuracy_before_n",
            "reasoning/arc_easy/chance_before",
        ),
    ],
)
def test_an_undocumented_key_is_refused(key: str) -> None:
    with pytest.raises(KeyError, match="not documented"):
        describe(key)


def test_entries_have_the_documented_suffixes() -> None:
    found = entries("retain/accuracy", Estimate(1.0, 0.0, 4), Estimate(0.5, 0.25, 4))
    assert found == {
        "retain/accuracy_before": 1.0,
        "retain/accuracy_before_stderr": 0.0,
        "retain/accuracy": 0.5,
        "retain/accuracy_stderr": 0.25,
        "retain/accuracy_n": 4,
    }
    assert all(describe(key) for key in found)
    assert entries("retain/accuracy", None, None) == {}


def test_clusters_by_hand() -> None:
    # mean 3/4, clusters {1, 1}, {0}, {1}: Σ (S - N · 3/4)² = 1/4 + 9/16 + 1/16 = 7/8
    found = clustered_mean([1, 0, 1, 1], ["a", "b", "a", "c"])
    assert found is not None
    assert found == Estimate(0.75, pytest.approx(math.sqrt(3 / 2 * 7 / 8) / 4), 4)
    assert clustered_mean([2, 4], ["a", "a"]) == Estimate(3, None, 2)
    assert clustered_mean([], []) is None
    assert ratio([(0.0, 0)]) is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_independent_items_give_the_usual_standard_error(values: list[float]) -> None:
    found = mean(values)
    assert found is not None
    assert found.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_a_proportion_has_the_binomial_standard_error(values: list[bool]) -> None:
    found = mean([float(value) for value in values])
    p, n = sum(values) / len(values), len(values)
    assert found is not None
    assert found.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(2, 4))
def test_saying_everything_several_times_is_no_more_evidence(values: list[float], times: int) -> None:
    once = mean(values)
    several = clustered_mean(values * times, [*range(len(values))] * times)
    assert once is not None and several is not None
    assert several.stderr == pytest.approx(once.stderr, abs=1e-9)
    assert several.n == times * once.n
