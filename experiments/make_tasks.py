"""Write the held-out rows of the lab's reasoning tasks: python experiments/make_tasks.py"""

from __future__ import annotations

import json
from dataclasses import asdict

from law.evaluation.reasoning_tasks import LOCAL_TASKS
from law.lab.reasoning import TASKS, held_out

ITEMS = 200
SEED = 1

if __name__ == "__main__":
    for name in TASKS:
        rows = [json.dumps(asdict(item)) + "\n" for item in held_out(name, ITEMS, SEED)]
        (LOCAL_TASKS / "lab" / f"{name.removeprefix('lab_')}.jsonl").write_text("".join(rows))
