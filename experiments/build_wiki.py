"""Make the facts of Wiki-Latest from triples of Wikidata: python experiments/build_wiki.py triples.tsv facts.jsonl"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from law.base.console import one_paragraph
from law.facts.wikidata_triples import EXPECTED, TEMPLATES, build_facts, read_templates


def main() -> None:
    """Read the triples, write the facts, and log the counts."""
    parser = argparse.ArgumentParser(description="Write the facts that triples make; docs/datasets.md.")
    parser.add_argument("triples", type=Path, help=EXPECTED)
    parser.add_argument("facts", type=Path, help="the JSON lines to write, for dataset=wiki_latest")
    parser.add_argument("--templates", type=Path, default=TEMPLATES, help="JSON: a phrasing by relation")
    parser.add_argument("--partitions", type=int, default=64, help="temporary files; more take less memory")
    parser.add_argument("--scratch", type=Path, help="where they lie; as large as the triples")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = logging.getLogger("build_wiki")
    counts = build_facts(
        chosen.triples, chosen.facts, read_templates(chosen.templates), chosen.partitions, chosen.scratch
    )
    log.info(
        "%d rows read: %d malformed, %d duplicates, %d ambiguous triples of %d pairs, %d facts written to %s",
        counts.read,
        counts.malformed,
        counts.duplicates,
        counts.ambiguous,
        counts.pairs,
        counts.written,
        chosen.facts,
    )
    if counts.first_malformed:
        log.warning("the first malformed row is %s, %s", chosen.triples, counts.first_malformed)


if __name__ == "__main__":
    with one_paragraph():
        main()
