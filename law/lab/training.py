"""Train a small decoder on a generated world: tokenizer, text in rows, and a resumable loop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from law.base.checks import Checked, Count, Natural, NonNegative, Positive, RowTokens, Seed
from law.base.errors import LawError, shortened
from law.base.files import replacing
from law.base.progress import tracked
from law.decoders.loading import find_device

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


class World(Protocol):
    """What a lab is trained on: text without end, and the facts that are in it."""

    def records(self) -> list[dict]:
        """The facts, in CounterFact's record shape."""

    def general_documents(self, rng: random.Random) -> Iterator[str]:
        """Text without the facts, without end."""

    def prose_documents(self, rng: random.Random) -> Iterator[str]:
        """Text that neither tells a fact nor practises a scored task, without end."""

    def documents(self, rng: random.Random) -> Iterator[str]:
        """All the text, without end."""


@dataclass
class TrainingSettings(Checked):
    """The optimisation of a lab model.

    AdamW warms up, then its learning rate falls by a cosine to a tenth. Weights stay in float32.

    Args:
        steps: updates of the weights.
        rows: rows of tokens in each update.
        row_length: tokens in a row.
        learning_rate: the highest learning rate.
        weight_decay: the weight decay of AdamW.
        warmup: steps over which the learning rate rises to its highest value.
        seed: the seed of the text drawn at each step.
        device: where the model is trained, ``cpu`` or ``cuda``.
        autocast: the dtype of matrix products, such as ``bfloat16``.
        save_every: steps after which the state is saved, so that a killed run goes on from there.
    """

    steps: Count
    rows: Count
    row_length: RowTokens
    learning_rate: Positive
    weight_decay: NonNegative
    warmup: Natural
    seed: Seed
    device: str
    autocast: str
    save_every: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autocast not in ("bfloat16", "float16"):
            raise LawError(f"training.autocast is {self.autocast!r}; expected bfloat16 or float16.")


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with GPT-2's habits: end-of-text is BOS, EOS and padding at once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(architecture: dict, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A randomly initialised decoder; ``architecture`` is ``model_type`` and its config's fields.

    Raises:
        LawError: Hugging Face's classes refuse the architecture.
    """
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(
            **architecture,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError) as error:
        raise LawError(
            f"No model of the architecture {architecture} can be made ({shortened(str(error))}). Expected the "
            "model_type of a decoder and fields of its Hugging Face configuration that fit together. Set architecture."
        ) from error


def make_rows(
    world: World, tokenizer: PreTrainedTokenizerBase, count: int, length: int, rng: random.Random
) -> torch.Tensor:
    """``(count, length)`` token ids: whole documents, each closed by end-of-text, the last one cut.

    Every row begins with a document, so that the model also learns prompts that nothing precedes.
    """
    documents = world.documents(rng)
    rows: list[list[int]] = [[]]
    while len(rows) <= count:
        for ids in tokenizer(list(islice(documents, 4 * count)))["input_ids"]:
            rows[-1] += [*ids, tokenizer.eos_token_id]
            if len(rows[-1]) >= length:
                rows.append([])
    return torch.tensor([row[:length] for row in rows[:count]])


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    settings: TrainingSettings,
    checkpoint: Path,
    identity: str,
    report: Callable[[int, float], None],
) -> None:
    """Train ``model`` in place; go on from ``checkpoint`` if it exists and bears the same ``identity``.

    Step ``i`` draws its text from ``(seed, i)`` alone, so that a resumed run reads what an
    unbroken one would have read. ``report`` is called with (step, mean loss) a hundred times.

    Raises:
        LawError: the checkpoint is of other settings or another world.
    """
    device = find_device(settings.device)
    model.to(device).train()  # type: ignore[arg-type]
    optimizers = _optimizers(model, settings)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state.get("identity") != identity:
            raise LawError(
                f"{checkpoint} was trained with other settings, or on another world, than those asked for; expected "
                "the same ones. Repeat that training's command to go on with it, remove the file to begin anew, or "
                "set output to another folder."
            )
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        log.info("going on from step %d of %s", first, checkpoint)

    losses: list[float] = []
    every = max(1, settings.steps // 100)
    for step in tracked(range(first, settings.steps), "training", "steps"):
        rng = random.Random(f"{settings.seed} {step}")
        ids = make_rows(world, tokenizer, settings.rows, settings.row_length, rng)
        ids = ids.to(device)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings)
        with torch.autocast(device.type, dtype=getattr(torch, settings.autocast)):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done % every == 0:
            report(done, sum(losses) / len(losses))
            losses.clear()
        if done % settings.save_every == 0 or done == settings.steps:
            saved_states = [optimizer.state_dict() for optimizer in optimizers]
            state = {
                "model": model.state_dict(),
                "optimizers": saved_states,
                "step": done,
                "identity": identity,
            }
            with replacing(checkpoint) as partial:
                torch.save(state, partial)
    model.eval()


def _optimizers(model: PreTrainedModel, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, head, norms and biases.

    Muon's orthogonal steps use all directions of a matrix alike; under AdamW, looking things up in
    the context took several times the steps to form.
    """
    embeddings = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    matrices = [p for p in model.parameters() if p.ndim == 2 and p not in embeddings]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        torch.optim.Muon(matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": list(embeddings), "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def _schedule(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
