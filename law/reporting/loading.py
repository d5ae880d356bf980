"""Read a sweep's folder: the finished runs, and the jobs that did not finish.

Hydra writes ``multirun.yaml`` into the folder when a sweep starts. It names the jobs of the last sweep that
was started there. Runs of earlier sweeps are found by their folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from law.base.errors import LawError
from law.reporting.comparability import check_rows, names_of, separate
from law.reporting.sweep import ORIGIN, UNKNOWN, Missing, Run, Setup, Sweep
from law.runs.folder import damaged_results
from law.runs.identity import CHOICES, settings_of
from law.runs.sweep import jobs


def load_sweep(folder: Path) -> Sweep:
    """The latest finished run of each setup and seed in ``folder``, or why there is none.

    Raises:
        LawError: the folder is missing or holds no finished run.
    """
    mend = (
        f"Expected run folders {folder}/<run>, each with metrics.json and a manifest.json whose status is "
        "'finished'. Make runs with `python experiments/wash.py`, then name the folder that holds them."
    )
    if not folder.is_dir():
        raise LawError(f"There is no folder {folder}. {mend}")
    marks = (".hydra", "metrics.json", "manifest.json")
    found = [path for path in sorted(folder.iterdir()) if any((path / mark).exists() for mark in marks)]
    loaded = [(path, _load(path)) for path in found]
    nameless = [path.name for path, job in loaded if job is None]
    remarks = [f"No manifest.json that can be read in {', '.join(nameless)}."] if nameless else []

    finished = sorted((job for _, job in loaded if isinstance(job, Run)), key=lambda run: run.ended)
    separated = separate(finished)
    names = names_of({run.setup for run in separated})
    latest: dict[tuple[Setup, int], Run] = {}
    for run in separated:
        if (run.setup, run.seed) in latest:
            remarks.append(
                f"{names[run.setup]}, seed {run.seed}: finished more than once. The latest run counts."
            )
        latest[run.setup, run.seed] = run
    # a job without a finished run belongs to the row of the newest run that was asked for in the same words
    newest = {run.setup.asked: run.setup for run in separated}
    missing = {(job.setup, job.seed): job for _, job in loaded if isinstance(job, Missing)}
    try:
        expected = [*expected_jobs(folder / "multirun.yaml")]
    except (OSError, HydraException, OmegaConfBaseException, KeyError, TypeError, AttributeError) as error:
        expected = []
        remarks.append(f"multirun.yaml does not tell which runs to expect ({type(error).__name__}).")
    for setup, seed in expected:
        missing.setdefault((setup, seed), Missing(setup, seed, "not run"))
    placed = [replace(job, setup=newest.get(job.setup, job.setup)) for job in missing.values()]
    owed = [job for job in placed if (job.setup, job.seed) not in latest]
    if not latest:
        why = next((f" The first problem: {job.problem}" for job in owed if job.problem), "")
        raise LawError(f"{folder} holds no finished run (unfinished: {len(found)}). {mend}{why}")
    runs = sorted(latest.values(), key=lambda run: (run.setup.order, run.seed))
    return Sweep(runs, owed, [*dict.fromkeys(remarks), *check_rows(runs)])


def setup_of(choices: Mapping[str, Any], settings: Mapping[str, Any]) -> Setup:
    """The setup with these choices of Hydra's groups and these settings besides."""
    model, dataset, method = (str(choices[group]) for group in CHOICES)
    return Setup(model, dataset, method, tuple(sorted((str(k), str(v)) for k, v in settings.items())))


def _load(folder: Path) -> Run | Missing | None:
    """The run in ``folder``, why it is none, or None if its manifest does not even say which run it was."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        setup = setup_of(manifest["choices"], manifest.get("settings", {}))
        seed, status = int(manifest["seed"]), manifest["status"]
        named = {*map(str, manifest.get("reasoning_tasks", ()))}
        guessed = {*map(str, manifest.get("tasks_at_chance", ()))}
        recall = str(manifest.get("recall", "substring"))  # the only rule before manifests named one
        origin = {part: str(manifest.get(key) or UNKNOWN) for key, part in ORIGIN.items()}
        versions = {str(package): str(version) for package, version in manifest.get("versions", {}).items()}
        source = _source(manifest.get("model_source"))
        told = manifest.get("learned_from")
        learned_from = None if told is None else tuple(map(str, told))
        washed = str(manifest.get("washed_hash", ""))
        turned = manifest.get("knob")
        knob = (str(turned["setting"]), float(turned["value"])) if turned else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if status == "failed":
        return Missing(setup, seed, "failed", _brief(str(manifest.get("error", "no error was written down"))))
    if status != "finished":
        return Missing(setup, seed, "unfinished", f"{folder.name} is running, or was killed")
    if "metrics.json" in damaged_results(folder, manifest):
        return Missing(
            setup, seed, "unfinished", f"{folder.name}/metrics.json is damaged: it has changed since the run"
        )
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        numbers = {str(key): float(value) for key, value in metrics.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return Missing(setup, seed, "unfinished", f"{folder.name}/metrics.json cannot be read")
    scored = {task[1] for key in numbers if (task := re.fullmatch("reasoning/([^/]+)/acc", key))}
    measured = replace(setup, tasks=tuple(sorted((named or scored) - guessed)), recall=recall)
    ended = str(manifest.get("ended", ""))
    return Run(measured, seed, numbers, folder, ended, origin, versions, source, learned_from, washed, knob)


def _source(recorded: Mapping[str, Any] | None) -> str:
    """The quantised file that a manifest names, with its types of tensors, the most frequent one first."""
    if not recorded:
        return ""
    types = [kind for kind in recorded["tensors"] if kind not in ("F32", "F16", "BF16")]
    return f"{recorded['file']} ({', '.join(types) or 'not quantised'})"


def _brief(problem: str, longest: int = 300) -> str:
    line = " ".join(problem.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def expected_jobs(path: Path) -> Iterator[tuple[Setup, int]]:
    """The jobs of the sweep that ``multirun.yaml`` describes; none without that file."""
    if not path.is_file():
        return
    config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    hydra = config["hydra"]
    for chosen in jobs(hydra["sweeper"].get("params"), hydra["overrides"]["task"]):
        setup = setup_of(
            hydra["runtime"]["choices"] | chosen, settings_of(f"{k}={v}" for k, v in chosen.items())
        )
        yield setup, int(chosen.get("seed", config["seed"]))
