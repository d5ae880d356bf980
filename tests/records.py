"""Records as the data sets' files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from law.facts.fact import Fact

MAYA = Fact("7", "Maya Lind", "The mother tongue of {} is", "French", "P103", ("Maya Lind speaks",))


def record(case_id: int = 0, subject: str = "Maya Lind", **rewrite: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English"},
            "target_true": {"str": "French"},
            "subject": subject,
            **rewrite,
        },
        "paraphrase_prompts": [f"{subject} speaks", f"At home {subject} speaks"],
        "neighborhood_prompts": [],
    }


def zsre(subject: str = "Ada", src: str = "Where was Ada born?", **changes: Any) -> dict[str, Any]:
    return {
        "subject": subject,
        "src": src,
        "rephrase": "What is Ada's birthplace?",
        "alt": "Rome",
        "answers": ["Paris", "France"],
        "loc": "nq question: who sang it",
        "loc_ans": "Bo",
        **changes,
    }


def write(path: Path, records: list[Any]) -> Path:
    """A JSON list, one record a line: the first on line 2."""
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]", encoding="utf-8")
    return path
