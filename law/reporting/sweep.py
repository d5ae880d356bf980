"""What a sweep left in its folder: the finished runs, and the jobs that did not finish.

Which jobs there should be is read from ``multirun.yaml``, which Hydra writes into the folder when a sweep
starts. It tells of the last sweep that was started there; runs of earlier ones are found by their folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from law.base.errors import LawError
from law.runs.identity import CHOICES, settings_of

# the order of the methods in tables and legends; any others follow by name
METHODS = "none law memit finetune gradient_ascent seul woh grad_diff npo rmu".split()


@dataclass(frozen=True)
class Setup:
    """What the runs of one row of a table share: all but the seed."""

    model: str
    dataset: str
    method: str
    settings: tuple[tuple[str, str], ...] = ()  # what the command line or the sweep set besides, by name

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts setups: by model and data set, the methods in their own order, then numbers by size."""
        rank = METHODS.index(self.method) if self.method in METHODS else len(METHODS)
        values = [(key, *_by_size(value)) for key, value in self.settings]
        return self.model, self.dataset, rank, self.method, values


@dataclass(frozen=True)
class Run:
    """A finished run."""

    setup: Setup
    seed: int
    metrics: dict[str, float]
    folder: Path
    ended: str = ""  # ISO time


@dataclass(frozen=True)
class Missing:
    """A job without a finished run. ``status`` is "failed", "unfinished" or "not run"."""

    setup: Setup
    seed: int
    status: str
    problem: str = ""


@dataclass(frozen=True)
class Sweep:
    """The runs of a folder by setup, and what is to be said of the rest."""

    runs: list[Run]
    missing: list[Missing]
    remarks: list[str] = field(default_factory=list)

    @property
    def setups(self) -> list[Setup]:
        """Every setup, run or not, in the order of a table."""
        setups = {run.setup for run in self.runs} | {job.setup for job in self.missing}
        return sorted(setups, key=lambda setup: setup.order)


def load_sweep(folder: Path) -> Sweep:
    """What lies directly in ``folder``: of each setup and seed the latest finished run, or why there is none.

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

    latest: dict[tuple[Setup, int], Run] = {}
    for run in sorted((job for _, job in loaded if isinstance(job, Run)), key=lambda run: run.ended):
        if (run.setup, run.seed) in latest:
            remarks.append(
                f"{_named(run.setup)}, seed {run.seed}: finished more than once, with configurations that differ in "
                "what no setting tells; the latest counts."
            )
        latest[run.setup, run.seed] = run
    missing = {(job.setup, job.seed): job for _, job in loaded if isinstance(job, Missing)}
    try:
        expected = [*_expected(folder / "multirun.yaml")]
    except (OSError, HydraException, OmegaConfBaseException, KeyError, TypeError, AttributeError) as error:
        expected = []
        remarks.append(f"multirun.yaml does not tell which runs to expect ({type(error).__name__}).")
    for setup, seed in expected:
        missing.setdefault((setup, seed), Missing(setup, seed, "not run"))
    owed = [job for key, job in missing.items() if key not in latest]
    if not latest:
        why = next((f" The first problem: {job.problem}" for job in owed if job.problem), "")
        raise LawError(f"{folder} holds no finished run (unfinished: {len(found)}). {mend}{why}")
    return Sweep(
        sorted(latest.values(), key=lambda run: (run.setup.order, run.seed)), owed, [*dict.fromkeys(remarks)]
    )


def _setup(choices: Mapping[str, Any], settings: Mapping[str, Any]) -> Setup:
    model, dataset, method = (str(choices[group]) for group in CHOICES)
    return Setup(model, dataset, method, tuple(sorted((str(k), str(v)) for k, v in settings.items())))


def labels(setups: Sequence[Setup]) -> dict[Setup, str]:
    """Each setup's method and the settings that vary among those of its model, data set and method."""
    told = {}
    for setup in setups:
        like = [dict(s.settings) for s in setups if _chosen(s) == _chosen(setup)]
        varying = {key for key, value in setup.settings if any(other.get(key) != value for other in like)}
        settings = [
            f"{key.removeprefix('method.')}={value}" for key, value in setup.settings if key in varying
        ]
        told[setup] = f"{setup.method} ({', '.join(settings)})" if settings else setup.method
    return told


def _chosen(setup: Setup) -> tuple[str, str, str]:
    return setup.model, setup.dataset, setup.method


def _named(setup: Setup) -> str:
    return ", ".join((*_chosen(setup), *(f"{key}={value}" for key, value in setup.settings)))


def _by_size(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _load(folder: Path) -> Run | Missing | None:
    """The run in ``folder``, why it is none, or None where its manifest does not even say which it was."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        setup = _setup(manifest["choices"], manifest.get("settings", {}))
        seed, status = int(manifest["seed"]), manifest["status"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if status == "failed":
        return Missing(setup, seed, "failed", _brief(str(manifest.get("error", "no error was written down"))))
    if status != "finished":
        return Missing(setup, seed, "unfinished", f"{folder.name} is running, or was killed")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        numbers = {str(key): float(value) for key, value in metrics.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return Missing(setup, seed, "unfinished", f"{folder.name}/metrics.json cannot be read")
    return Run(setup, seed, numbers, folder, str(manifest.get("ended", "")))


def _brief(problem: str, longest: int = 300) -> str:
    line = " ".join(problem.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _expected(path: Path) -> Iterator[tuple[Setup, int]]:
    """The jobs of the sweep that ``multirun.yaml`` tells of; none without that file.

    As Hydra's basic sweeper expands them: an override of the command line replaces the sweeper's parameter.
    """
    if not path.is_file():
        return
    config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    hydra = config["hydra"]
    swept = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*swept, *hydra["overrides"]["task"]]):
        key, several = override.get_key_element(), override.is_sweep_override()
        # an override taken back (~key) has no value
        values[key] = (
            [*override.sweep_string_iterator()] if several else [override.get_value_element_as_str() or ""]
        )
    for job in product(*values.values()):
        chosen = dict(zip(values, job, strict=True))
        setup = _setup(
            hydra["runtime"]["choices"] | chosen, settings_of(f"{k}={v}" for k, v in chosen.items())
        )
        yield setup, int(chosen.get("seed", config["seed"]))
