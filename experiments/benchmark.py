"""How much faster each stage is than the textbook, and how both grow: ``make benchmark``.

The textbook is ``tests/reference``: one fact at a time, whole forward passes, a pass over the text for each
layer, ascent on K itself. Both run in one process by turns, on the same random weights, facts and texts. Their
outputs are compared first. Where the textbook is slow, it gets fewer items, so seconds are given for one item. The
weights are frozen in both.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from benchmark_stages import SHAPES, Stage, load, stages
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from law.base.errors import LawError
from law.base.files import write_json

log = logging.getLogger("law.benchmark")


def seconds(work: Callable[[int], Any], n: int, units: int) -> float:
    """Seconds per unit of one run on ``n`` items, ``units`` units."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    began = perf_counter()
    work(n)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return (perf_counter() - began) / units


def attainable(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two matrices of 4,096 x 4,096: what the device does at best."""
    matrix = torch.randn(4096, 4096, dtype=torch.float32).to(device, dtype)
    return 2 * 4096**3 / min(seconds(lambda _: matrix @ matrix, 0, 1) for _ in range(5))


def profile(work: Callable[[int], Any], n: int) -> dict[str, float]:
    """The share of a run's seconds on ``n`` items that the five heaviest operators take themselves, by their names."""
    with torch.profiler.profile() as found:
        whole = 1e6 * seconds(work, n, 1)
    spent = {
        event.key: event.self_device_time_total or event.self_cpu_time_total for event in found.key_averages()
    }
    heaviest = sorted(spent, key=lambda name: -spent[name])[:5]
    return {name: spent[name] / whole for name in heaviest}


def measure(stage: Stage, repeats: int, device: str, exact: bool) -> list[dict[str, Any]]:
    """Compare the outputs, then time both in turns.

    Raises:
        LawError: the outputs differ by more than the stage's bound.
    """
    first, first_reference = stage.sizes[0], stage.reference_sizes[0]
    with FlopCounterMode(display=False) as counter:
        ours = stage.ours(first)
    flops = counter.get_total_flops() / stage.units(first)
    error = stage.error(ours, stage.reference(first_reference))
    if exact and not error <= stage.bound:
        raise LawError(
            f"{stage.name}: ours differs from the textbook by {error:.1e}; expected {stage.bound:.0e}."
        )
    share = profile(stage.ours, first)
    best = attainable(device, stage.dtype)
    reference_units = stage.reference_units or stage.units
    times: dict[str, dict[int, list[float]]] = {
        "ours": {n: [] for n in stage.sizes},
        "reference": {n: [] for n in stage.reference_sizes},
    }
    for _ in tqdm(range(repeats), desc=stage.name, disable=None):
        for n in stage.reference_sizes:
            times["reference"][n].append(seconds(stage.reference, n, reference_units(n)))
        for n in stage.sizes:
            times["ours"][n].append(seconds(stage.ours, n, stage.units(n)))
    pairs = list(zip(stage.sizes, stage.reference_sizes, strict=True)) if stage.same_size else []
    rows = []
    for n, n_reference in pairs or [(stage.sizes[-1], stage.reference_sizes[-1])]:
        a, b = times["reference"][n_reference], times["ours"][n]
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        rows.append(
            {
                "stage": stage.name,
                "unit": stage.unit,
                "n": n,
                "reference_n": n_reference,
                "ratio_median": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "ours_s": median(b),
                "reference_s": median(a),
                "ours_flop_per_s": flops / median(b),
                "attainable_flop_per_s": best,
                "profile": share,
                "error": error,
                "growth": {who: growth(stage, sizes) for who, sizes in times.items()},
            }
        )
    return rows


def growth(stage: Stage, times: dict[int, list[float]]) -> dict[str, Any]:
    """Median seconds of a whole run at each size, and the exponent p of the fit seconds ∝ nᵖ."""
    n = list(times)
    whole = [median(times[i]) * stage.units(i) for i in n]
    slope = float(np.polyfit(np.log(n), np.log(whole), 1)[0])
    return {"n": n, "seconds": whole, "exponent": slope}


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios with their spread, and how a whole run grows with its items."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    names = [f"{row['stage']} (n = {row['n']:,})" for row in rows]
    middle = np.array([row["ratio_median"] for row in rows])
    spread = [middle - [r["ratio_min"] for r in rows], [r["ratio_max"] for r in rows] - middle]
    bars.barh(names, middle, xerr=spread, log=True)
    bars.axvline(1, color="black", linewidth=0.8)
    bars.set_xlabel("times as fast as the textbook (median, least and most)")
    bars.invert_yaxis()
    seen = {row["stage"]: row["growth"] for row in rows}
    for color, (stage, who) in enumerate(seen.items()):
        for name, style in (("ours", "-o"), ("reference", "--x")):
            label = f"{stage}, {name}: n^{who[name]['exponent']:.2f}"
            curves.loglog(who[name]["n"], who[name]["seconds"], style, color=f"C{color}", label=label)
    curves.set_xlabel("n (facts, documents)")
    curves.set_ylabel("seconds a run")
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure every stage against the textbook.")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="outside float32, errors are written, not judged")
    parser.add_argument(
        "--stages", nargs="+", help="beginnings of the names of stages; all of them by default"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--scale", type=int, default=1, help="multiplies the items ours takes; 16 suits a GPU"
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen.out.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[chosen.shape]
    model, tokenizer = load(shape, chosen.device, chosen.dtype, chosen.data)
    setting = {"shape": chosen.shape, "device": chosen.device, "dtype": chosen.dtype} | {
        "threads": torch.get_num_threads(),
        "repeats": chosen.repeats,
    }
    rows: list[dict[str, Any]] = []
    for stage in stages(shape, model, tokenizer, chosen.data, chosen.scale):
        if chosen.stages is None or stage.name.startswith(tuple(chosen.stages)):
            for row in measure(stage, chosen.repeats, chosen.device, chosen.dtype == "float32"):
                rows.append(setting | row)
                log.info(
                    json.dumps(
                        {k: v for k, v in row.items() if k not in ("growth", "profile")}, ensure_ascii=False
                    )
                )
            write_json(chosen.out / "results.json", rows)
    picture(rows, chosen.out / "benchmark.png")
