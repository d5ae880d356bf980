"""What attacks recover: a table of attacks by methods, and the worst attack on each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from law.evaluation.metrics import pattern
from law.reporting.comparability import Panel
from law.reporting.labels import labels
from law.reporting.summary import Score
from law.reporting.sweep import REFERENCES, Setup
from law.reporting.typesetting import NOTHING, Cell, Table

COLUMNS = {
    "attack/refusal/recalled": ("refusal", "recalled when the answer may not begin with end-of-text"),
    "attack/refusal/best": ("rank", "the object is the likeliest of its relation"),
    "attack/phrasing/recalled": ("phrasing", "recalled in some phrasing"),
    "attack/prefix/recalled": ("prefix", "recalled with some text around the prompt"),
    "attack/choice/right": ("choice", "the object is likelier than three others"),
    "attack/leak/at_{k}": ("leak@{k}", "the object is in one of {k} samples"),
    "attack/memory/exact": ("memory", "share of the object's tokens that are the likeliest in their place"),
    "attack/lens/prompt": ("lens", "the object is among the ten likeliest tokens after some block"),
    "attack/probe/prompt": ("probe", "a linear probe of some block tells the object"),
    "attack/quantisation/int8": ("int8", "recalled when the weights are rounded to int8"),
    "attack/quantisation/nf4": ("nf4", "recalled when the weights are rounded to NF4"),
    "attack/relearning/recalled": (
        "relearning",
        "recalled once washed facts of other subjects are taught again",
    ),
    "attack/relearning/text": ("text", "recalled once general text alone is taught"),
}
"""The score of each attack that its table shows, its title, and what it is. Of leak@k this is the largest k."""

HOW = "Numbers are in percent. In parentheses: the same of facts that nobody knew, which is what guessing gives this model."

WORST = (
    "Worst attack: the one that recovers the largest share of the washed facts, and that share: (washed − guessing) / "
    "(unwashed − guessing), in percent."
)

Scores = Mapping[str, Score]


def columns_of(metrics: Iterable[Mapping[str, object]]) -> dict[str, tuple[str, str]]:
    """The keys of :data:`COLUMNS` among those of some runs' or setups' metrics, each with its title and what it is."""
    reported = {key for mine in metrics for key in mine}
    found: dict[str, tuple[str, str]] = {}
    for key, told in COLUMNS.items():
        numbered = [(one, match) for one in reported if (match := re.fullmatch(pattern(key), one))]
        if numbered:
            chosen, match = max(numbered, key=lambda pair: int(pair[1].groupdict().get("k", 0)))
            title, meaning = (text.format(**match.groupdict()) for text in told)
            found[chosen] = title, meaning
    return found


def recovered(scores: Scores, key: str) -> float | None:
    """(washed − control) / (unwashed − control) of a score: 0 is what guessing gives, 1 is the unwashed model.

    ``None`` where one of the three is not known, or where guessing is as good as the unwashed model.
    """
    after, control = scores.get(key), scores.get(f"{key}_control")
    if after is None or control is None or after.before is None or after.before <= control.mean:
        return None
    return (after.mean - control.mean) / (after.before - control.mean)


def worst_attack(scores: Scores, columns: Mapping[str, tuple[str, str]]) -> tuple[str, float] | None:
    """The title of the attack that recovers the largest share, and the share; ``None`` without attacks."""
    shares = [
        (title, share) for key, (title, _) in columns.items() if (share := recovered(scores, key)) is not None
    ]
    return max(shares, key=lambda pair: pair[1], default=None)


def worst_cells(panel: Panel, scores: Mapping[Setup, Scores]) -> dict[Setup, Cell]:
    """The worst attack on each washed model, as a cell; empty if none was attacked. Bold: the least is recovered."""
    columns = columns_of(scores.values())
    washed = [setup for setup in panel.setups if setup.method != "none"]
    found = {setup: worst for setup in washed if (worst := worst_attack(scores[setup], columns))}
    shown = {setup: round(100 * share) for setup, (_, share) in found.items()}
    compared = [share for setup, share in shown.items() if setup.method not in REFERENCES]
    least = min(compared) if len(compared) > 1 else None
    cells = {
        setup: Cell(f"{title} {shown[setup]}", shown[setup] == least and setup.method not in REFERENCES)
        for setup, (title, _) in found.items()
    }
    return dict.fromkeys(panel.setups, Cell(NOTHING)) | cells if cells else {}


def attack_table(panel: Panel, scores: Mapping[Setup, Scores]) -> Table | None:
    """A row for each setup that was attacked, and a column for each attack; ``None`` if none was."""
    columns = columns_of(scores.values())
    if not columns:
        return None
    worst = worst_cells(panel, scores)
    rows = [
        [
            *(Cell(label), Cell(str(max(scores[setup][key].runs for key in attacked)))),
            *(_cell(scores[setup], key) for key in columns),
            *([worst[setup]] if worst else []),
        ]
        for setup, label in labels(panel.setups).items()
        if (attacked := columns.keys() & scores[setup].keys())
    ]
    titles = [*(title for title, _ in columns.values()), *(["worst attack"] if worst else [])]
    meanings = (f"{title[0].upper()}{title[1:]}: {meaning}." for title, meaning in columns.values())
    return Table(
        f"{panel.title}, attacks",
        ["method", "runs", *(f"{title} ↓" for title in titles)],
        rows,
        names=1,
        legend=" ".join([*meanings, WORST] if worst else meanings),
        note=HOW,
    )


def _cell(scores: Scores, key: str) -> Cell:
    """A score and, in parentheses, its control, in percent."""
    after, control = scores.get(key), scores.get(f"{key}_control")
    if after is None:
        return Cell(NOTHING)
    guessed = "" if control is None else f" ({100 * control.mean:.0f})"
    return Cell(f"{100 * after.mean:.1f}{guessed}")
