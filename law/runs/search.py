"""The search for a method's settings: Optuna proposes them, and each trial is an ordinary run (docs/how-to/tune.md).

Every method has the same number of trials over the ranges in its own YAML (``tune`` in ``conf/method``), and one rule chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from law.base.checks import Checked, Count, Positive, Seed
from law.base.errors import LawError
from law.runs.lock import sole

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

SCORES: Mapping[str, Literal["minimize", "maximize"]] = {
    "forget/accuracy": "minimize",
    "retain/accuracy": "maximize",
    "reasoning/kept": "maximize",
}
"""The metrics that a trial is judged by, and what is sought of each."""

MOST_LEFT = 0.1
"""A trial that leaves more than this share of the washed facts is chosen only if all do."""

RULE = f"of the trials with at most {100 * MOST_LEFT:g} % left the highest mean of kept facts and reasoning, or else the fewest left"

DIGITS = 3
"""Significant digits of a proposed value. The preset's own has all of its digits."""

SETUP = "setup"
"""The attribute of a study that holds what it is a search for."""


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
        if not self.low <= 1 <= self.high or self.low == self.high:
            raise LawError(
                f"tune of {self.setting} has low={self.low:g} and high={self.high:g}; expected low below high, and 1 from low to "
                "high, since the search begins at the preset. Correct tune in the method's file in conf/method."
            )


@dataclass
class Budget(Checked):
    """How much is searched, and from which random numbers.

    Args:
        trials: how many of a study, those before included.
        seed: of the sampler.
    """

    trials: Count
    seed: Seed


@dataclass(frozen=True)
class Bounds:
    """Where a setting of a method is searched, and where the search begins: the preset's value."""

    low: float
    high: float
    start: float
    whole: bool  # an integer


class Killed(LawError):
    """The process of a trial's run was ended from outside, which says nothing of the trial's settings."""


def bounds_of(config: DictConfig) -> dict[str, Bounds]:
    """The settings that are searched, by their dotted names in a composed configuration.

    Raises:
        LawError: the method has no ranges, one of them names no number above 0, a point of the knob is chosen besides, or
            the configuration scores no reasoning.
    """
    if not config.method.get("tune"):
        raise LawError(
            "The method has nothing to search; expected ranges in tune of its file in conf/method, such as "
            "[{setting: lam, low: 0.1, high: 10}]. Write them there, or choose another method."
        )
    if config.point is not None:
        raise LawError(
            f"point is {config.point}; expected null, since it would multiply the values that the search proposes. Leave point out."
        )
    if not config.evaluation.reasoning.tasks:
        raise LawError(
            "evaluation.reasoning.tasks is empty; expected tasks, since a search also seeks what is kept of reasoning. Set it, or "
            "choose experiment=lab_validation or real_validation."
        )
    found = {}
    for entry in config.method.tune:
        name, span = f"method.{entry.setting}", Range(**entry)
        value = OmegaConf.select(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise LawError(
                f"tune names {name}, which is {value!r}; expected a number above 0 to multiply. Set {name}=... or correct tune in "
                "the method's file in conf/method."
            )
        low, high = value * span.low, value * span.high
        whole = isinstance(value, int)
        found[name] = Bounds(
            max(1, round(low)) if whole else low, round(high) if whole else high, value, whole
        )
    return found


Run = Callable[[int, Mapping[str, float]], Mapping[str, float]]
"""Makes the run of a trial, by its number and its settings, and returns its metrics. It waits for another process that makes
the run, and makes none again that has finished."""


def search(
    folder: Path, setup: str, bounds: Mapping[str, Bounds], budget: Budget, run: Run
) -> Sequence[optuna.trial.FrozenTrial]:
    """The trials of the study in ``folder``. Those that the budget still has are made; ``setup`` says what is searched.

    The first one is the preset. Several processes may call this at once: they share the study's journal, and each returns when
    all trials are over. A trial whose process was ended is made again. One that fails counts, so that a method gets no further
    trials for settings that break it; only the preset must not fail.

    Raises:
        LawError: optuna is not installed, the study was begun for another setup, the preset's run failed, or that of
            a trial was killed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise LawError(
            "A search needs optuna, which is not installed. Install it by pip install -e '.[tune]'."
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with sole(folder):
        study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
            directions=[*SCORES.values()],
            load_if_exists=True,
        )
        if not study.user_attrs:
            study.enqueue_trial({key: bound.start for key, bound in bounds.items()}, skip_if_exists=True)
            study.set_user_attr(SETUP, setup)
    if study.user_attrs[SETUP] != setup:
        raise LawError(
            f"{folder} holds a search for something else: {study.user_attrs[SETUP]}; expected {setup}. The settings, the preset, the "
            "ranges in tune or the seed differ. Choose another folder by --output."
        )
    while (trial := _next(study, folder, bounds, budget)) is not None:
        _make(study, trial, run)
    return study.get_trials(deepcopy=False)[: budget.trials]


def _next(
    study: optuna.Study, folder: Path, bounds: Mapping[str, Bounds], budget: Budget
) -> optuna.trial.FrozenTrial | None:
    """The trial to make now: the preset until it is over, then new ones, then those that another process has begun.

    What is proposed hangs on the seed, on the trial's number and on the trials before. A seed for all trials together would propose
    the first ones again to every process, and to one that goes on after it was stopped.
    """
    import optuna
    from optuna.trial import TrialState

    with sole(folder):
        begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
        unfinished = [trial for trial in begun[: budget.trials] if trial.state is TrialState.RUNNING]
        if len(begun) < budget.trials and not (unfinished and unfinished[0].number == 0):
            study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence((budget.seed, len(begun))).generate_state(1)[0]),
                multivariate=True,
                constant_liar=True,  # trials that others are making count as bad ones, so that nothing near them is proposed
                n_startup_trials=max(2, budget.trials // 3),
            )
            number = study.ask(
                {
                    key: optuna.distributions.IntDistribution(int(bound.low), int(bound.high), log=True)
                    if bound.whole
                    else optuna.distributions.FloatDistribution(bound.low, bound.high, log=True)
                    for key, bound in bounds.items()
                }
            ).number
            return study.get_trials(deepcopy=False)[number]
    return unfinished[0] if unfinished else None


def _make(study: optuna.Study, trial: optuna.trial.FrozenTrial, run: Run) -> None:
    """Make the run of a trial and tell the study its scores, or that it failed."""
    import optuna

    settings = settings_of(trial)
    log.info("trial %d begins: %s", trial.number, _assignments(settings))
    try:
        metrics = run(trial.number, settings)
        if missing := [key for key in SCORES if metrics.get(key) is None]:
            raise LawError(
                f"Trial {trial.number} has no {' and no '.join(missing)}, so it can't be judged; expected facts that the model knows, "
                "and reasoning tasks on which it is better than a guess. Choose others."
            )
    except LawError as error:
        if trial.number == 0 or isinstance(error, Killed):
            raise
        log.warning("trial %d failed and counts: %s: %s", trial.number, _assignments(settings), error)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    else:
        scores = [metrics[key] for key in SCORES]
        log.info("trial %d: %s: %s", trial.number, _assignments(settings), told(scores))
        study.tell(trial.number, scores, skip_if_finished=True)


def settings_of(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    """The settings of a trial by their dotted names: what was proposed, rounded, or the preset's own."""
    return {
        key: value if trial.number == 0 or isinstance(value, int) else float(f"{value:.{DIGITS}g}")
        for key, value in trial.params.items()
    }


def chosen(trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial:
    """The trial that :data:`RULE` chooses among the finished ones, of which there is at least one, the preset."""
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    enough = [trial for trial in finished if trial.values[0] <= MOST_LEFT]
    if enough:
        return max(enough, key=lambda trial: (sum(trial.values[1:]), -trial.values[0]))
    return min(finished, key=lambda trial: trial.values[0])


def told(scores: Sequence[float]) -> str:
    """The scores of a trial in words."""
    left, kept, reasoning = (f"{100 * score:.1f}" for score in scores)
    return f"{left} % left, {kept} % kept, {reasoning} % of reasoning kept"


def preset(trials: Sequence[optuna.trial.FrozenTrial], before: DictConfig, command: str) -> str:
    """The preset ``before`` with the chosen settings. Its comment says what they were chosen from, how, and by which command."""
    best = chosen(trials)
    lines = [
        f"# Chosen among {len(trials)} trials by",
        f"# {command}",
        f"# Rule: {RULE}.",
        f"# Trial {best.number}: {told(best.values)}. All trials:",
    ]
    for trial in trials:
        outcome = told(trial.values) if trial.state.name == "COMPLETE" else "failed"
        lines.append(f"# {trial.number}: {_assignments(settings_of(trial))}: {outcome}")
    after = before.copy()
    for key, value in settings_of(best).items():
        OmegaConf.update(after, key.removeprefix("method."), value)
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(after)


def _assignments(settings: Mapping[str, float]) -> str:
    return " ".join(f"{key.removeprefix('method.')}={value:g}" for key, value in settings.items())
