"""Write law/sample, the data of ``make real``: python experiments/make_sample.py IDS COUNTERFACT TEXT ROWS

IDS is what ``experiments/known_facts.py`` writes, COUNTERFACT the file of all facts, TEXT a file with one paragraph a
line, ROWS the folder of the reasoning tasks' rows.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import law
from law.base.files import write_json, write_text
from law.facts.counterfact import read_counterfact, to_record
from law.facts.source import Part, part_of

SAMPLE = Path(law.__file__).parent / "sample"
FACTS = 400
OTHERS = 4000
"""Facts about other subjects that the model does not know: they tell a method what to spare."""
ITEMS = 200
TASKS = ("lambada_openai", "hellaswag", "arc_easy")
VALIDATION_ITEMS = 100
VALIDATION_TASKS = ("lambada_openai", "arc_easy")
FIRST_REPORTED = 500
"""The rows of a task that ``evaluation=real`` scores. Settings are chosen on later ones that are not in the sample either."""
PARAGRAPHS = 724
"""For second moments and retain losses; the others, of other articles, are held out."""
SHORTEST = 200
"""Characters of a paragraph; shorter lines are headings."""
SEED = 0


def main() -> None:
    """Draw facts that the model knows and rows of the tasks, and divide the text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("ids", "counterfact", "text", "rows"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    drawn = random.Random(SEED)

    known = json.loads(given.ids.read_text(encoding="utf-8"))
    write_json(SAMPLE / "smollm2-135m_knows.json", known)
    ids = {*known["ids"]}
    every = [fact for fact in read_counterfact(given.counterfact) if part_of(fact) is Part.test]
    known_facts = drawn.sample([fact for fact in every if fact.id in ids], FACTS)
    subjects = {fact.subject for fact in known_facts}
    unknown = [fact for fact in every if fact.id not in ids and fact.subject not in subjects]
    # they are never asked for, so their prompts are enough
    plain = [
        replace(fact, paraphrases=(), neighbours=(), generation_prompts=())
        for fact in random.Random(f"others {SEED}").sample(unknown, OTHERS)
    ]
    write_json(SAMPLE / "counterfact.json", [to_record(fact) for fact in [*known_facts, *plain]])

    for task in TASKS:
        rows = (given.rows / f"{task}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        sampled = drawn.sample(rows, ITEMS)
        write_text(SAMPLE / f"{task}.jsonl", sampled)
        if task in VALIDATION_TASKS:
            reported = {*rows[:FIRST_REPORTED], *sampled}
            others = [row for row in rows if row not in reported]
            chosen = random.Random(f"validation {SEED}").sample(others, VALIDATION_ITEMS)
            write_text(SAMPLE / "validation" / f"{task}.jsonl", chosen)

    lines = given.text.read_text(encoding="utf-8").splitlines()
    paragraphs = [" ".join(line.split()) + "\n" for line in lines if len(line.strip()) > SHORTEST]
    write_text(SAMPLE / "general.txt", paragraphs[:PARAGRAPHS])
    write_text(SAMPLE / "heldout.txt", paragraphs[PARAGRAPHS:])


if __name__ == "__main__":
    main()
