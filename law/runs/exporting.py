"""A checkpoint of the washed model of a run that has finished: it loads like any other, and says what was done to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from law.base.errors import LawError, shortened
from law.base.files import replacing, write_text
from law.decoders.gguf_writing import GGUFType, find_converter, write_gguf
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.loading import find_device
from law.decoders.prompting import put
from law.decoders.saving import check_checkpoint
from law.facts.fact import FactSplit
from law.runs.finished_run import FinishedRun, finished_run
from law.runs.folder import PREDICTIONS, read_lines
from law.runs.model_card import model_card

log = logging.getLogger(__name__)

CARD = "README.md"

MAY_DIFFER = 0.01
"""The share of answers that may differ where the weights are equal: another device rounds sums and breaks ties differently."""


def export_run(folder: Path, target: Path, gguf: GGUFType | None = None) -> None:
    """Write the washed model of the run in ``folder`` to ``target``: weights, tokenizer, a model card, maybe a GGUF file.

    The GGUF file comes last. Where it can't be made, the checkpoint is there without it.

    The weights have the hash of those that were scored. What was written is compared with them, read again as
    anybody would read it, and asked for the washed facts: it must answer as the run did.

    Raises:
        LawError: the run kept no weights, something is no longer what it was, ``target`` is there already, or no GGUF
            file can be made.
    """
    run = finished_run(folder)
    if run.unwashed:
        raise LawError(
            f"{folder} washed nothing (method=none); expected a washed model. Take the model that it loaded, "
            f"{run.config['model'].path}."
        )
    if target.exists():
        raise LawError(
            f"{target} is there already; expected a folder that is not. Remove it, or name another one with --to."
        )
    converter = find_converter() if gguf else ""
    asked = _asked(run)
    model, tokenizer = run.load_unwashed()
    model = run.wash_again(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        partial.mkdir()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        check_checkpoint(model, partial)
        del model  # two of a large model may not fit
        _check_answers(run, asked, partial, MAY_DIFFER)
        write_text(partial / CARD, [model_card(run)])
    if gguf:
        try:
            _add_gguf(run, asked, target, gguf, converter)
        except LawError as error:
            raise LawError(
                f"{error} The checkpoint in {target} is complete without the GGUF file."
            ) from error


def _asked(run: FinishedRun) -> list[dict[str, Any]]:
    """What the run wrote of each fact that its unwashed model knew; nothing where it kept no prompts."""
    if run.manifest.get("redact"):
        log.warning(
            "the run kept no prompts (redact=true), so the checkpoint is asked for nothing; its weights are the run's"
        )
        return []
    return [row for row in read_lines(run.folder / PREDICTIONS) if row["known_before"]]


def _add_gguf(
    run: FinishedRun, asked: list[dict[str, Any]], target: Path, kind: GGUFType, converter: str
) -> None:
    name = "{model} washed by {method}".format_map(run.manifest["choices"])
    prompts = [row["prompt"] for row in asked]
    with TemporaryDirectory(dir=target.parent) as scratch:
        file = Path(scratch) / f"model-{kind.value}.gguf"
        read = write_gguf(converter, target, file, kind, name, prompts)
        log.info("%s holds the checkpoint's weights, rounded to %s", file.name, kind.value)
        _check_answers(run, asked, read, MAY_DIFFER if kind is GGUFType.f32 else 1.0)
        file.replace(target / file.name)


def _check_answers(
    run: FinishedRun, asked: list[dict[str, Any]], checkpoint: Path, may_differ: float
) -> None:
    """Refuse a checkpoint that answers more than a share of the prompts otherwise than the run's model did."""
    settings, prompting = run.config["model"], run.config["prompting"]
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    model = load(checkpoint, dtype=settings.dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if not asked:
        return
    # the prompts in the file have their examples already; what is left to take over is how a chat's turn ends
    _, reader = put(FactSplit([], []), tokenizer, replace(prompting, examples=0))
    answers = greedy_answers(
        model.to(find_device(settings.device)).eval(),
        reader,
        [row["prompt"] for row in asked],
        run.config["evaluation"].batch_size,
    )
    pairs = zip(asked, answers, strict=True)
    others = [(row, answer) for row, answer in pairs if answer != row["answer_after"]]
    log.info("%d of %d answers are those of the run", len(asked) - len(others), len(asked))
    if len(others) > may_differ * len(asked):
        row, answer = others[0]
        raise LawError(
            f"The checkpoint answers {len(others)} of {len(asked)} prompts otherwise than the run did: {shortened(answer)!r} to "
            f"{shortened(row['prompt'])!r}, where {PREDICTIONS} has {shortened(str(row['answer_after']))!r}. Its weights are those "
            "of the run, so expected the same answers up to rounding. Export with the versions of the packages in "
            "manifest.json, on the kind of device that the run used."
        )
