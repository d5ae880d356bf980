"""Folders of finished runs, as the tests of tables write them, and what they look up in tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from law.reporting.loading import load_sweep
from law.reporting.sweep import Run, Setup, Sweep
from law.reporting.tables import build_report
from law.reporting.typesetting import Table

CHOICES = {"model": "lab", "dataset": "lab", "method": "law"}
ORIGIN = {"setup_hash": "5e709", "inputs_hash": "f11e5", "code_hash": "c0de1", "recall": "substring"}


def save(
    folder: Path,
    method: str,
    metrics: dict[str, float],
    seed: int = 0,
    settings: dict[str, str] | None = None,
    **more: object,
) -> Path:
    """A run folder; ``more`` goes into the manifest, model and dataset into its choices."""
    run = folder / f"{len([*folder.glob('*')]):02d}"
    run.mkdir(parents=True)
    choices = {
        **CHOICES,
        "method": method,
        **{key: more.pop(key) for key in ("model", "dataset") if key in more},
    }
    manifest = {"status": "finished", "settings": settings or {}, "choices": choices, "seed": seed}
    manifest |= ORIGIN | more
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def save_multirun(folder: Path, overrides: Sequence[str], params: dict[str, str] | None = None) -> None:
    """What Hydra writes when a sweep starts, as far as it is read."""
    hydra = {
        "sweeper": {"params": params},
        "overrides": {"task": [*overrides], "hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"choices": CHOICES},
        "sweep": {"dir": "outputs/${name}"},
    }
    OmegaConf.save({"hydra": hydra, "name": "paper", "seed": 0}, folder / "multirun.yaml")


def run(method: str, metrics: dict[str, float], model: str = "lab", dataset: str = "lab") -> Run:
    return Run(Setup(model, dataset, method), 0, metrics, Path(method))


def tables_of(*runs: Run) -> list[Table]:
    """The full tables."""
    return build_report(Sweep([*runs], [])).full


def column(table: Table, heading: str) -> list[str]:
    """A column's cells, the best between asterisks."""
    at = table.headings.index(heading)
    return [f"*{row[at].text}*" if row[at].best else row[at].text for row in table.rows]


def demo_folder(tmp_path: Path) -> Path:
    """Three seeds of law, one run each of two others, and four folders without a finished run."""
    folder = tmp_path / "demo"
    before = {"facts/known": 20, "forget/accuracy_before": 1.0, "reasoning/mean_before": 0.8}
    for seed, forget in enumerate((0.1, 0.2, 0.3)):
        metrics = {"forget/accuracy": forget, "forget/accuracy_stderr": 0.05, "forget/accuracy_n": 20}
        metrics |= {
            "reasoning/arc_easy/acc": 0.7,
            "reasoning/mean": 0.7,
            "reasoning/kept": 0.8,
            "time/wash_s": 2.0 + 2 * seed,
        }
        metrics["retain/accuracy"] = 0.8
        save(folder, "law", before | metrics, seed)
    metrics = {"forget/accuracy": 0.05, "forget/accuracy_stderr": 0.0494, "forget/accuracy_n": 20}
    metrics |= {
        "reasoning/arc_easy/acc": 0.5,
        "reasoning/mean": 0.5,
        "reasoning/kept": 0.4,
        "time/wash_s": 9.25,
        "retain/accuracy": 0.5,
    }
    save(folder, "ft_l", before | metrics)
    metrics = {
        "forget/accuracy": 1.0,
        "retain/accuracy": 1.0,
        "reasoning/arc_easy/acc": 0.8,
        "reasoning/mean": 0.8,
        "reasoning/kept": 1.0,
    }
    save(folder, "none", before | metrics)
    save(folder, "law", before, 3, status="failed", error="LawError: λ is\nNaN")
    save(folder, "law", before, 4, status="running")
    (save(folder, "law", before, 5) / "metrics.json").write_text("{")
    (folder / "killed" / ".hydra").mkdir(parents=True)
    (folder / "wandb" / "latest").mkdir(parents=True)
    (folder / "notes.txt").touch()
    return folder


def rows_of(folder: Path, heading: str = "forget acc. ↓") -> dict[str, dict[str, tuple[str, str]]]:
    """Of each full table by its title: runs and a column by label."""
    return {
        table.title: {
            row[0].text: (row[1].text, cell)
            for row, cell in zip(table.rows, column(table, heading), strict=True)
        }
        for table in build_report(load_sweep(folder)).full
    }
