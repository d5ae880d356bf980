"""The search for a method's settings: Optuna proposes them, and each trial is an ordinary run (docs/how-to/tune.md).

Every method has the same number of trials over the ranges in its own YAML (``tune`` in ``conf/method``), and one rule chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from law.base.checks import Checked, Positive
from law.base.errors import LawError

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

LEFT, KEPT, REASONING = "forget/accuracy", "retain/accuracy", "reasoning/kept"
"""What a trial is judged by: the first should be low, the others high."""

MOST_LEFT = 0.1
"""A trial that leaves more than this share of the washed facts is chosen only if all do."""

RULE = f"of the trials with at most {MOST_LEFT:.0%} left the highest mean of kept facts and reasoning, or else the fewest left"

DIGITS = 3
"""Significant digits of a proposed value."""


@dataclass
class Range(Checked):
    """A setting that is searched between two factors on the preset's value, evenly on a logarithmic scale.

    Args:
        setting: its name within the method, such as ``lam`` or ``initial.lam``.
        low: the lower factor.
        high: the upper factor.
    """

    setting: str
    low: Positive
    high: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise LawError(
                f"tune of {self.setting} has low={self.low:g} and high={self.high:g}; expected low below high. Correct "
                "tune in the method's file in conf/method."
            )


@dataclass(frozen=True)
class Bounds:
    """Where a setting of a method is searched, and where the search begins: the preset's value."""

    low: float
    high: float
    start: float
    whole: bool  # an integer


def bounds_of(config: DictConfig) -> dict[str, Bounds]:
    """The settings that are searched, by their dotted names in a composed configuration.

    Raises:
        LawError: the method has no ranges, or one of them names no number.
    """
    if not config.method.get("tune"):
        raise LawError(
            "The method has nothing to search; expected ranges in tune of its file in conf/method, such as "
            "[{setting: lam, low: 0.1, high: 10}]. Write them there, or choose another method."
        )
    found = {}
    for entry in config.method.tune:
        name, span = f"method.{entry.setting}", Range(**entry)
        value = OmegaConf.select(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LawError(
                f"tune names {name}, which is {value!r}; expected a number to multiply. Set {name}=... or correct tune in "
                "the method's file in conf/method."
            )
        whole = isinstance(value, int)
        low, high = (
            max(1, round(value * factor)) if whole else _rounded(value * factor)
            for factor in (span.low, span.high)
        )
        found[name] = Bounds(low, high, value, whole)
    return found


Run = Callable[[int, Mapping[str, float]], Mapping[str, float]]
"""Makes the run of a trial, by its number and its settings, and returns its metrics."""


def search(
    folder: Path, name: str, bounds: Mapping[str, Bounds], trials: int, seed: int, run: Run
) -> optuna.Study:
    """Go on with the study in ``folder`` until it has so many trials, or begin it.

    The first trial is the preset. Several processes may call this at once: they share the study's journal.
    A trial that fails counts, so that a method gets no further trials for settings that break it.

    Raises:
        LawError: optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise LawError(
            "A search needs optuna, which is not installed. Install it by pip install -e '.[tune]'."
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        sampler=optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=max(2, trials // 3)
        ),
        directions=["minimize", "maximize", "maximize"],
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({key: bound.start for key, bound in bounds.items()}, skip_if_exists=True)

    def objective(trial: optuna.Trial) -> tuple[float, float, float]:
        proposed: dict[str, float] = {}
        for key, bound in bounds.items():
            if bound.whole:
                proposed[key] = trial.suggest_int(key, int(bound.low), int(bound.high), log=True)
            else:
                proposed[key] = _rounded(trial.suggest_float(key, bound.low, bound.high, log=True))
        metrics = run(trial.number, proposed)
        trial.set_user_attr("settings", proposed)  # what is proposed has more digits
        # without reasoning tasks nothing of it is lost
        scores = metrics[LEFT], metrics[KEPT], metrics.get(REASONING, 1.0)
        log.info("trial %d: %s: %s", trial.number, proposed, told(scores))
        return scores

    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    stop = optuna.study.MaxTrialsCallback(trials, states=over)
    if len(study.get_trials(deepcopy=False, states=over)) < trials:
        study.optimize(objective, callbacks=[stop], catch=(LawError,))
    return study


def chosen(trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial:
    """The trial that :data:`RULE` chooses among the finished ones.

    Raises:
        LawError: none has finished.
    """
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not finished:
        raise LawError(
            f"None of {len(trials)} trials has finished, so no settings can be chosen; expected at least one. The log says "
            "why they failed."
        )
    enough = [trial for trial in finished if trial.values[0] <= MOST_LEFT]
    if enough:
        return max(enough, key=lambda trial: (sum(trial.values[1:]), -trial.values[0]))
    return min(finished, key=lambda trial: trial.values[0])


def told(scores: Sequence[float]) -> str:
    """The scores of a trial in words."""
    left, kept, reasoning = (f"{100 * score:.1f}" for score in scores)
    return f"{left} % left, {kept} % kept, {reasoning} % of reasoning kept"


def preset(trials: Sequence[optuna.trial.FrozenTrial], command: str) -> str:
    """A preset with the chosen settings. Its comment says what they were chosen from, how, and by which command."""
    best = chosen(trials)
    lines = [
        f"# Chosen among {len(trials)} trials by {command}",
        f"# Rule: {RULE}.",
        f"# Trial {best.number}: {told(best.values)}. All trials (left, kept, reasoning):",
    ]
    for trial in trials:
        outcome = told(trial.values) if trial.state.name == "COMPLETE" else trial.state.name.lower()
        tried = trial.user_attrs.get("settings", trial.params)
        lines.append(f"# {trial.number}: {_assignments(tried)}: {outcome}")
    nested = OmegaConf.create()
    for key, value in best.user_attrs["settings"].items():
        OmegaConf.update(nested, key.removeprefix("method."), value)
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(nested)


def _assignments(settings: Mapping[str, float]) -> str:
    return " ".join(f"{key.removeprefix('method.')}={value:g}" for key, value in settings.items())


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
