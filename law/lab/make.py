"""Make a lab folder: tokenizer, trained model, facts, general and held-out text, and what was measured of them."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from law.base.cache import content_hash, tokenizer_hash
from law.base.checks import Checked, Count, Seed, whole
from law.base.errors import LawError, first_line
from law.base.files import write_json, write_text
from law.decoders.greedy_decoding import greedy_answers, recalls
from law.decoders.loading import ModelSettings, load_model
from law.evaluation.reasoning import score_reasoning
from law.evaluation.reasoning_tasks import ReasoningSettings, load_tasks
from law.facts.counterfact import read_counterfact
from law.lab.reasoning import TASKS
from law.lab.training import TrainingSettings, World, new_model, train, train_tokenizer

log = logging.getLogger(__name__)

TOKENIZER_DOCUMENTS = 20_000
HELDOUT_DOCUMENTS = 600
SAMPLE_DOCUMENTS = 100

VocabularySize = Annotated[
    int, whole(257, "an integer of at least 257: a token for each byte, and end-of-text")
]


@dataclass
class LabSettings(Checked):
    """What is trained, and where it goes.

    Args:
        output: the folder of the checkpoint.
        seed: the seed of the tokenizer's text, the initial weights and the general text.
        vocab_size: the tokens of the byte-level BPE that is trained on the world's text.
        architecture: ``model_type`` and the fields of that model's Hugging Face configuration.
        training: how the model is trained.
        general_documents: lines of ``general.txt``, the text for second moments, and of ``general_with_practice.txt``,
            which practises the scored tasks as well.
        tokenizer: the folder of the tokenizer that is taken, so that the weights of two models can be exchanged. ``null``: one is
            trained.
    """

    output: str
    seed: Seed
    vocab_size: VocabularySize
    architecture: dict[str, Any]
    training: TrainingSettings
    general_documents: Count
    tokenizer: str | None = None


def make_lab(world: World, settings: LabSettings) -> dict[str, float]:
    """Train a model on ``world`` and write a folder that ``model.path`` and ``dataset.path`` take.

    Weights are stored as float16; what is measured afterwards is measured of what was stored.
    """
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "training.pt"
    if not checkpoint.exists():
        _tokenizer(world, settings).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = new_model(settings.architecture, tokenizer, settings.seed)
    with (folder / "losses.jsonl").open("a" if checkpoint.exists() else "w", encoding="utf-8") as losses:
        train(
            model,
            tokenizer,
            world,
            settings.training,
            checkpoint,
            _identity(world, settings),
            lambda step, loss: _append(losses, {"step": step, "loss": loss}),
        )
    # not before the training has agreed to go on: these are of this world
    write_json(folder / "facts.json", world.records())
    lines = settings.general_documents
    for name, endless, drawn, count in (
        ("general", world.prose_documents, "prose", lines),
        ("general_with_practice", world.general_documents, "general", lines),
        ("heldout", world.general_documents, "heldout", HELDOUT_DOCUMENTS),
    ):
        text = endless(random.Random(f"{drawn} {settings.seed}"))
        write_text(folder / f"{name}.txt", (f"{document}\n" for document in islice(text, count)))
    model.to(dtype=torch.float16)  # type: ignore[call-arg]
    model.save_pretrained(folder)
    measured = measure_lab(folder, settings.training.device)
    write_json(folder / "measured.json", measured)
    log.info("%s", json.dumps(measured, indent=1))
    return measured


def _tokenizer(world: World, settings: LabSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the settings' folder, or one that is trained on the world's text."""
    if settings.tokenizer is None:
        documents = world.documents(random.Random(f"tokenizer {settings.seed}"))
        return train_tokenizer(islice(documents, TOKENIZER_DOCUMENTS), settings.vocab_size)
    try:
        return AutoTokenizer.from_pretrained(settings.tokenizer, local_files_only=True)
    except (OSError, ValueError) as error:
        raise LawError(
            f"tokenizer is {settings.tokenizer!r}, and no tokenizer could be loaded from there; expected a folder with "
            f"tokenizer.json. Set tokenizer to such a folder, or to null. ({first_line(error)})"
        ) from error


def _identity(world: World, settings: LabSettings) -> str:
    """What a training hangs on: all settings but where it runs and what is written, facts, and some text."""
    kept = {
        k: v for k, v in asdict(settings).items() if k not in ("output", "general_documents", "tokenizer")
    }
    kept["training"] = {k: v for k, v in kept["training"].items() if k not in ("device", "save_every")}
    sample = [*islice(world.documents(random.Random("identity")), SAMPLE_DOCUMENTS)]
    given = [tokenizer_hash(_tokenizer(world, settings))] if settings.tokenizer else []
    return content_hash([kept, world.records(), sample, *given])


def _append(file: TextIO, row: dict[str, float]) -> None:
    """Append a JSON line that survives a kill."""
    file.write(json.dumps(row) + "\n")
    file.flush()


def measure_lab(folder: Path, device: str) -> dict[str, float]:
    """Facts recalled in each phrasing and in all, and the accuracy on the held-out reasoning items."""
    model, tokenizer = load_model(ModelSettings(str(folder), device=device))
    facts = read_counterfact(folder / "facts.json")
    phrasings = [[fact.prompt, *fact.paraphrases] for fact in facts]
    recalled = [True] * len(facts)
    measured: dict[str, float] = {"facts": len(facts)}
    for i in range(max(map(len, phrasings))):
        asked = [n for n, prompts in enumerate(phrasings) if i < len(prompts)]
        answers = greedy_answers(model, tokenizer, [phrasings[n][i] for n in asked], batch_size=256)
        right = [recalls(answer, facts[n].object) for n, answer in zip(asked, answers, strict=True)]
        measured[f"recalled/phrasing_{i}"] = sum(right) / len(right)
        for n, known in zip(asked, right, strict=True):
            recalled[n] &= known
    measured["facts_known_in_every_phrasing"] = sum(recalled)
    settings = ReasoningSettings(tasks=list(TASKS))
    scores = score_reasoning(model, tokenizer, load_tasks(settings), settings)
    return measured | {key: score.value for key, score in scores.items() if key.endswith("/acc")}
