"""Write the held-out rows of the lab's reasoning tasks, and those for choosing settings: python experiments/make_tasks.py"""

from __future__ import annotations

from dataclasses import asdict

from law.base.files import write_json_lines
from law.evaluation.reasoning_tasks import LOCAL_TASKS
from law.lab.reasoning import TASKS, held_out

ITEMS = 200
VALIDATION_ITEMS = 100
DRAWN = 300
"""Puzzles that the rows for choosing settings are taken from: those that say nothing that a reported row says."""
SEED = 1

if __name__ == "__main__":
    for name in TASKS:
        reported = held_out(name, ITEMS, SEED)
        said = {puzzle.key for puzzle in reported}
        others = [puzzle for puzzle in held_out(name, DRAWN, SEED + 1) if puzzle.key not in said]
        for folder, puzzles in (("lab", reported), ("lab_validation", others[:VALIDATION_ITEMS])):
            rows = (asdict(puzzle.item) for puzzle in puzzles)
            write_json_lines(LOCAL_TASKS / folder / f"{name.removeprefix('lab_')}.jsonl", rows)
