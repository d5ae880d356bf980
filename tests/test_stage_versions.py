"""Whoever changes the code of a cached stage is reminded of its VERSION, without which old results would be served.

``python tests/test_stage_versions.py --update`` records the code as it is now.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import law
from law.base import cache as caches
from law.base.cache import Cache
from law.base.code import code_hash
from law.decoders import greedy_decoding
from law.decoders.structure import Decoder
from law.editing import other_moments, second_moments, target_values
from law.evaluation import fluency, likelihood, reasoning
from law.evaluation.fluency import FluencySettings
from law.evaluation.reasoning_tasks import ReasoningSettings
from law.evaluation.scores import EvaluationSettings, Scorer
from law.facts.fact import Fact

ROOT = Path(law.__file__).parent
RECORD = Path(__file__).with_name("stage_versions.json")

# the module that states a stage's VERSION, and the others whose code makes its numbers
STAGES = {
    "editing/second_moments": (
        "decoders/structure",
        "decoders/parts",
        "facts/general_text",
        "facts/record_files",
    ),
    "editing/other_moments": (
        *("editing/keys", "decoders/structure", "decoders/parts", "decoders/prompts", "facts/fact"),
    ),
    "editing/target_values": (
        *("editing/target_rows", "editing/keys"),
        *("decoders/structure", "decoders/parts", "decoders/prompts", "decoders/kv_cache", "facts/fact"),
    ),
    "decoders/greedy_decoding": ("decoders/prompts",),
    "evaluation/likelihood": ("decoders/prompts", "facts/fact"),
    "evaluation/fluency": ("decoders/prompts", "facts/record_files"),
    "attacks/attacking": (
        *(
            f"attacks/{name}"
            for name in (
                *("choice", "control", "leak", "lens", "memory", "phrasing", "prefix", "protocol"),
                *("probe", "quantisation", "refusal", "relearning"),
            )
        ),
        *("decoders/greedy_decoding", "decoders/prompts", "evaluation/likelihood", "facts/fact"),
        *("tuning/loop", "tuning/retain", "tuning/training_rows", "decoders/structure"),
    ),
    "evaluation/reasoning": ("evaluation/reasoning_tasks", "evaluation/local_rows", "evaluation/tasks/rows"),
}


def recorded() -> dict[str, dict[str, object]]:
    """Each stage's VERSION, and the hash of each module."""
    modules = sorted({name for stage, others in STAGES.items() for name in (stage, *others)})
    return {
        "versions": {s: import_module(f"law.{s.replace('/', '.')}").VERSION for s in STAGES},
        "modules": {name: code_hash(ROOT, [ROOT / f"{name}.py"])[:16] for name in modules},
    }


def test_a_stage_whose_code_changed_has_a_version_of_its_own() -> None:
    before, now = json.loads(RECORD.read_text()), recorded()
    for stage, others in STAGES.items():
        changed = [n for n in (stage, *others) if now["modules"][n] != before["modules"].get(n)]
        if changed or now["versions"][stage] != before["versions"].get(stage):
            pytest.fail(
                f"The code of the cached stage {stage} changed ({', '.join(changed) or 'its VERSION'}). Raise VERSION in "
                f"law/{stage}.py if its results change; then run `python tests/test_stage_versions.py --update`."
            )


# --- the keys -----------------------------------------------------------------------------------

FACTS = [Fact("0", "Anna", "{} lives in", "Boston", "")]


def stages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, text: Path
) -> dict[str, Callable[[], object]]:
    """What computes each kind of cached result in ``folder``, by the name of its file."""
    settings = EvaluationSettings(
        reasoning=ReasoningSettings(tasks=["lab_larger"], limit=1),
        fluency=FluencySettings(prompts=1, tokens=1, text=str(text)),
        cache=str(folder),
    )
    scorer, decoder = Scorer(settings), Decoder(model)

    def score() -> None:
        scorer.on(model, tokenizer, cached=True).scores(FACTS, [], {})

    moments = second_moments.MomentSettings(str(text))
    targets = target_values.TargetSettings(steps=1)
    asked = other_moments.other_prompts(tokenizer, [], FACTS, 1)
    return {
        "moments": lambda: second_moments.second_moments(decoder, tokenizer, [0], moments, Cache(folder)),
        "other_moments": lambda: other_moments.other_moments(
            decoder, tokenizer, asked, [0], 0.5, 8, Cache(folder)
        ),
        "targets": lambda: target_values.target_values(
            decoder, tokenizer, FACTS, [], 0, targets, Cache(folder)
        ),
        **dict.fromkeys(("answers", "log_probs", "texts", "perplexity", "reasoning"), score),
    }


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (second_moments, {"moments"}),
        (other_moments, {"other_moments"}),
        (target_values, {"targets"}),
        (greedy_decoding, {"answers"}),
        (likelihood, {"log_probs", "perplexity"}),
        (fluency, {"texts", "perplexity"}),
        (reasoning, {"reasoning"}),
        (
            None,
            {
                "moments",
                "other_moments",
                "targets",
                "answers",
                "log_probs",
                "texts",
                "perplexity",
                "reasoning",
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_version_is_another_key(
    module: object,
    names: set[str],
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the stage's module, or of a package. The same text under another name is the same key."""
    text, moved = tmp_path / "text.txt", tmp_path / "moved.txt"
    text.write_text("Anna walked to the mill.\n")
    moved.write_text(text.read_text())
    cache = tmp_path / "cache"

    def run(read: Path) -> set[str]:
        for compute in dict.fromkeys(stages(tiny_model, tiny_tokenizer, cache, read).values()):
            compute()
        return {path.name for path in cache.iterdir() if path.name != "file_hashes.json"}

    first = run(text)
    assert len(first) == 9  # answers are kept twice: those that may begin by refusing, and those that may not
    assert run(moved) == first
    if module is None:
        monkeypatch.setattr(caches, "version", lambda _: "9.9")
    else:
        monkeypatch.setattr(module, "VERSION", 99)
    assert {name.rpartition("-")[0] for name in run(text) - first} == names


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    RECORD.write_text(json.dumps(recorded(), indent=1) + "\n")
