r"""Second moments :math:`C_l = E[k k^T]` of the keys of general text (method.md, words and symbols).

They say which directions of key space ordinary text uses; an update that is small in them leaves
ordinary text alone. They are taken of the unedited model, once, and kept in a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from law.architectures import Decoder
from law.errors import LawError
from law.prompts import equal_length_batches
from law.store import Cache, file_hash, model_hash, tokenizer_hash

log = logging.getLogger(__name__)


@dataclass
class MomentSettings:
    """Which text the second moments are taken of.

    Args:
        text: a UTF-8 file, one document a line. It should be general: with the washed facts in it,
            C protects exactly what is to go.
        documents: how many lines are read, from the first on (100,000 in the paper).
        batch_size: documents a forward pass.
    """

    text: str
    documents: int = 100_000
    batch_size: int = 64

    def check(self) -> None:
        """Refuse a text that does not exist, before anything is computed.

        Raises:
            LawError: with how to name one.
        """
        if not Path(self.text).is_file():
            raise LawError(
                f"The text for second moments, {self.text}, does not exist; expected a UTF-8 file with one "
                "document a line. Set the method's moments.text to such a file."
            )


def second_moments(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    layers: list[int],
    settings: MomentSettings,
    cache: Cache,
) -> dict[int, Tensor]:
    """C of every layer in ``layers``: (d_ff, d_ff), float32, summed in float64."""
    settings.check()
    path = Path(settings.text)
    key = {
        "model": model_hash(decoder.model),
        "tokenizer": tokenizer_hash(tokenizer),
        "text": file_hash(path),
        "documents": settings.documents,
        "layers": layers,
    }

    def compute() -> dict[str, Tensor]:
        with path.open(encoding="utf-8") as lines:
            texts = [line.rstrip("\n") for _, line in zip(range(settings.documents), lines, strict=False)]
        sums, tokens = collect_moments(decoder, tokenizer, texts, layers, settings.batch_size)
        log.info("second moments of %d documents, %d tokens, layers %s", len(texts), tokens, layers)
        return {str(layer): c for layer, c in sums.items()}

    found = cache.tensors("moments", key, compute)
    return {layer: found[str(layer)].to(decoder.device) for layer in layers}


@torch.inference_mode()
def collect_moments(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: list[int],
    batch_size: int,
) -> tuple[dict[int, Tensor], int]:
    """C of every layer in one pass over ``texts``, and the number of tokens it was taken of.

    Blocks above the last layer do not run, and no activation outlives its batch.
    """
    longest = decoder.model.config.max_position_embeddings
    rows = [row[:longest] for row in tokenizer(list(texts))["input_ids"] if row]
    if not rows:
        raise LawError("The text for second moments holds no token; expected documents, one a line.")
    sums: dict[int, Tensor] = {}
    tokens = sum(map(len, rows))
    with tqdm(total=tokens, desc="second moments", unit="tok", leave=False, disable=None) as progress:
        for batch in equal_length_batches([len(row) for row in rows], batch_size):
            ids = torch.tensor([rows[i] for i in batch], device=decoder.device)
            with decoder.capture_keys(layers) as captured:
                decoder.hidden_states(ids, None, layers[-1])
            for layer in layers:
                k = captured[layer].flatten(0, 1).float()  # (tokens, d_ff)
                c = (k.T @ k).double()  # (d_ff, tokens) @ (tokens, d_ff)
                sums[layer] = sums[layer] + c if layer in sums else c
            progress.update(ids.numel())
    return {layer: (c / tokens).float() for layer, c in sums.items()}, tokens
