"""Everything on a second device: what a GPU would refuse is refused, and what is computed is what the CPU computes."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TrainedLab
from small import ARCHITECTURES
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device made in Python",
)

TUNED = "finetune gradient_ascent seul woh grad_diff npo simnpo undial jensun dpo".split()
METHODS = (
    "none",
    "law",
    "memit",
    "sparing",
    "alphaedit",
    "encore",
    "ultraedit",
    "zerounlearn",
    "rmu",
    *TUNED,
    *(f"{name} with LoRA" for name in TUNED),
)
APART = 2e-3
"""The devices' weights may differ by this share of what washing moves. Rounding that an attention does in another
order is what they differ by; a step of Adam makes it up to 4e-4 where a gradient is next to nothing.
"""

Results = dict[str, Any]


def run_script(*arguments: str) -> None:
    script = str(Path(__file__).with_name("second_device_run.py"))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def results(trained_lab: TrainedLab, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What tests/second_device_run.py found, in a process of its own."""
    folder = tmp_path_factory.mktemp("second_device")
    paths = [trained_lab.model_path, trained_lab.facts_path, trained_lab.text_path, folder]
    process = multiprocessing.get_context("forkserver").Process(target=run_script, args=[*map(str, paths)])
    process.start()
    process.join()
    assert process.exitcode == 0, "its traceback is on the standard error"
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def part(results: Results, name: str) -> Any:
    found = results[name]
    assert not (isinstance(found, dict) and "error" in found), found["error"]
    return found


# --- the device itself ----------------------------------------------------------------------------


def test_what_cuda_refuses_is_refused(results: Results) -> None:
    assert part(results, "operators") == {
        "refused": [
            "device + CPU",
            "CPU @ device",
            "CPU * number on the device",
            "CPU[device index]",
            "device[index] = CPU",
            "CPU[index] = device",
            "number += number on the device",
            "stack",
            "where of a CPU's mask",
            "embedding of CPU ids",
            "CPU's generator",
            "numpy",
        ],
        "allowed": [
            "device * number",
            "device % 2",
            "device[CPU index]",
            "device[CPU mask]",
            "device[index] = number",
            "device[slice] = CPU",
            "copy_",
        ],
    }


def test_views_ties_and_counts(results: Results) -> None:
    assert part(results, "backend") == {
        "written through a view": [0, 0, 1, 1],
        "tied": [True, True],
        "copy": {"to_device": 1, "to_host": 1},
        "item": {"item": 1},
        "mask": {"wait": 1},
        "arithmetic": {},
        "accelerator": [True, "second:0"],
    }


# --- washing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_washes_as_on_the_cpu(results: Results, name: str) -> None:
    found = part(results, f"washed {name}")
    assert (found["moved"] > 0.1) == (name != "none")
    assert found["apart"] <= APART * found["moved"]


@pytest.mark.parametrize("first", ["cpu", "second"])
@pytest.mark.parametrize("name", ["law", "ultraedit", "zerounlearn", "finetune", "rmu"])
def test_blocks_on_two_devices_are_washed_alike(results: Results, name: str, first: str) -> None:
    found = part(results, f"spread {name}, {first} first")
    assert found["moved"] > 0.1
    assert found["apart"] <= APART * found["moved"]


def test_every_method_was_washed_with(results: Results) -> None:
    assert {name for name in results if name.startswith("washed ")} == {f"washed {name}" for name in METHODS}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_decoder_is_read_as_on_the_cpu(results: Results, name: str) -> None:
    """Logits, keys, outputs of blocks, what follows tokens read before, and a gradient: relative error."""
    assert part(results, f"architecture {name}") < 1e-5


# --- what the host waits for ------------------------------------------------------------------------


def test_the_ascent_waits_for_the_device_at_its_end_only(results: Results) -> None:
    for three, twelve in part(results, "waits")["ascent"]:
        assert three == twelve == {"item": 5}  # the numbers that are reported


def test_target_values_wait_by_the_step_and_not_by_the_fact(results: Results) -> None:
    two_facts, four_facts = part(results, "waits")["targets"]
    assert two_facts == four_facts
    assert "item" not in two_facts and "wait" not in two_facts


def test_second_moments_wait_by_the_batch_and_not_by_the_layer(results: Results) -> None:
    one_layer, three_layers = part(results, "waits")["moments"]
    assert one_layer == three_layers
    assert "wait" not in one_layer and "to_host" not in one_layer


def test_fine_tuning_reads_its_losses_once_a_step(results: Results) -> None:
    whole, by_the_row = part(results, "waits")["tuning"]
    assert whole["to_host"] == by_the_row["to_host"] == 2  # four facts, two a step
    assert "item" not in by_the_row


# --- scores, files, layers --------------------------------------------------------------------------


def close(found: Any, expected: Any) -> bool:
    """Numbers within 1e-3, everything else equal."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    return found == expected


@pytest.mark.parametrize("file", ["metrics", "predictions", "generations", "changed"])
def test_a_run_leaves_the_same_scores_answers_and_weights(results: Results, file: str) -> None:
    on_cpu, first, from_cache = (run[file] for run in part(results, "whole run"))
    assert on_cpu
    assert close(first, on_cpu), (first, on_cpu)
    assert close(from_cache, on_cpu), (from_cache, on_cpu)


def test_a_runs_scores_are_of_every_kind(results: Results) -> None:
    metrics = part(results, "whole run")[1]["metrics"]
    assert metrics["forget/accuracy_before"] == 1.0
    assert metrics["forget/log_prob"] < metrics["forget/log_prob_before"] < 0
    assert metrics.keys() >= {"fluency/entropy", "fluency/perplexity", "reasoning/lab_larger/acc"}


def test_a_saved_model_is_the_one_on_the_device(results: Results) -> None:
    assert part(results, "checkpoint") == 0.0


def test_layers_are_found_as_on_the_cpu(results: Results) -> None:
    on_cpu, found = part(results, "located")
    assert on_cpu["exchanged"]["lost"][0] > 0.1  # of the first layer's answers, some are lost
    assert close(found, on_cpu), (found, on_cpu)
