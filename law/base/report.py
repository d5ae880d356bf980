"""How a method tells what it measures while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]
"""Receives what a method measures while it runs: JSON-like values by name, numbers where they make a curve.

``spared_s`` is the seconds that a cache has spared: a run adds them to the method's time.
"""
