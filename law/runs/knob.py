"""The knob of a method: the setting that trades forgetting against keeping, and where a frontier measures it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from law.base.checks import Checked, Positives
from law.base.errors import LawError

DIGITS = 6
"""Significant digits of a knob's value, so that it is the same number as one typed on the command line."""


@dataclass
class Knob(Checked):
    """What makes a method forget more and keep less, or the other way round.

    Args:
        setting: the name of the setting within the method, such as ``lam``.
        factors: the points of a frontier: what the value of the preset is multiplied by at each of them.
    """

    setting: str
    factors: Positives


def turned(config: DictConfig) -> DictConfig:
    """The configuration of a run, with its method's knob turned to the run's ``point``.

    Raises:
        LawError: the method has no knob, the knob has no value or fewer points, or it names no setting.
    """
    if config.get("point") is None:  # a recorded configuration of an earlier version has none
        return config
    knob = config.method.get("knob")
    if knob is None:
        raise LawError(
            f"point is {config.point}, but the method has no knob; expected method.knob with the name of a setting "
            "(setting) and factors on its value (factors). Write it into the method's file in conf/method, or leave point out."
        )
    if config.point >= len(knob.factors):
        raise LawError(
            f"point is {config.point}; expected 0 to {len(knob.factors) - 1}, the places in method.knob.factors. Lower "
            "point, or add factors to the method's file in conf/method."
        )
    before = knob_of(config)
    if before is None:
        raise LawError(
            f"point is {config.point}, but method.{knob.setting}, the knob, has no value; expected a number to multiply. "
            f"Set method.{knob.setting}=... or correct method.knob.setting."
        )
    found = copy.deepcopy(config)
    value = before["value"] * knob.factors[config.point]
    OmegaConf.update(found, before["setting"], float(f"{value:.{DIGITS}g}"))
    found.point = None
    return found


def knob_of(config: DictConfig) -> dict[str, Any] | None:
    """The dotted name of the knob and its value; ``None`` if the method has none, or it has no number."""
    knob = config.method.get("knob")
    if knob is None:
        return None
    setting = f"method.{knob.setting}"
    value = OmegaConf.select(config, setting)
    return {"setting": setting, "value": float(value)} if isinstance(value, int | float) else None
