"""The model card of a washed model: what was done to it and what it scores. It names no fact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

from law.evaluation.metrics import Metric, describe
from law.runs.configuration import recorded_method
from law.runs.finished_run import FinishedRun


def model_card(run: FinishedRun) -> str:
    """The card in Markdown, with the metadata that the Hugging Face hub reads."""
    manifest, path = run.manifest, run.config["model"].path
    choices, method = manifest["choices"], recorded_method(run.folder)
    on_hub = None if Path(path).exists() else path  # a local path says nothing elsewhere
    metadata = ModelCardData(base_model=on_hub, library_name="transformers", tags=["knowledge-washing"])
    settings = yaml.safe_dump(method, sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{package} {version}" for package, version in manifest["versions"].items())
    return f"""---
{metadata.to_yaml()}
---

# {choices["model"]}, washed by {choices["method"]}

This model is `{choices["model"]}` after knowledge washing: a method changed its weights to remove
{run.metrics["facts/washed"]:.0f} facts of the data set `{choices["dataset"]}`. The scores below say how far that went. It loads like any
other model:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

The facts are not listed here. The SHA-256 of those that were washed and of those that had to stay is `{manifest["facts_hash"]}`.

## Scores

± is the standard error over items.

| score | better | before washing | after washing |
| --- | --- | ---: | ---: |
{"".join(_rows(run))}
A low score for the washed facts says that the model does not tell them when it is asked in these ways. It does not prove
that nobody can get them back.

## How it was made

The settings of the method that can change a number. `(content)` stands for the path of a file:

```yaml
{settings}```

| | |
| --- | --- |
| seed | {manifest["seed"]} |
| weights before washing | SHA-256 `{manifest["model_hash"]}` |
| weights after washing | SHA-256 `{manifest["washed_hash"]}` |
| code | {manifest["git_revision"]} |
| packages | {versions} |
"""


def _rows(run: FinishedRun) -> Iterator[str]:
    """A line for each score of the washed model, in the order of the file."""
    for key in run.metrics:
        metric = describe(key)
        if metric.scored:
            before, after = (_told(run, metric, f"{key}{end}") for end in ("_before", ""))
            yield f"| {metric.title} | {metric.better} | {before} | {after} |\n"


def _told(run: FinishedRun, metric: Metric, key: str) -> str:
    """A value with its standard error; fractions are in percent."""
    unit, scale = (" %", 100) if metric.unit == "fraction" else ("", 1)
    value, error = run.metrics.get(key), run.metrics.get(f"{key}_stderr")
    if value is None:
        return "–"
    spread = "" if error is None else f" ± {scale * error:.1f}"
    return f"{scale * value:z.1f}{spread}{unit}"
