r"""Second moments :math:`C_l = E[k k^T]` of the keys of general text (docs/explanation/method.md).

They say which directions of key space general text uses. An update that is small in these directions changes
little on general text. They are computed once, on the unedited model, and kept in a cache.

Every token of the text has the same weight. If the tokenizer adds a beginning-of-text token, that token counts once for
each document, as in MEMIT's code. GPT-2's tokenizer adds none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.base.cache import SECONDS, Cache, model_hash, seconds_of, tokenizer_hash
from law.base.checks import Count, NonNegative
from law.base.errors import LawError
from law.base.files import FileHashes
from law.base.processes import add_up, rank, world
from law.base.progress import progress
from law.base.settings import FILES, SAME_RESULTS
from law.base.tensor_files import load_tensors, save_tensors
from law.decoders.batching import Batches
from law.decoders.prompts import positions
from law.decoders.structure import Decoder
from law.editing.published_moments import published_files, published_moments
from law.facts.general_text import TextSettings

log = logging.getLogger(__name__)

VERSION = 1
"""Of the code that computes C, part of its key in the cache: raise it with every change to the numbers."""

CHUNK = 4096
"""Documents in memory at once; those of like length go through the model together."""

PIECE = 2048
"""Tokens of a document that are read at once."""


@dataclass
class MomentSettings(TextSettings):
    """The text from which second moments are computed (100,000 documents of Wikipedia in the paper), or published ones.

    It should be general text without the facts to wash. Otherwise C protects these facts.

    Args:
        batch_size: tokens in a forward pass; ``null`` measures it.
        tokens: a longer document is read in pieces of this many tokens, each on its own, because the time of
            attention grows with the square of a row's length. All its tokens count, up to the model's number of
            positions; what lies beyond is not read, as in MEMIT's code. The default is GPT-J's number of positions.
        save_every: seconds after which the sums so far are saved, so that a killed run continues from them.
        published: second moments that others have computed, in place of a text: a ``.npz`` or ``.safetensors`` file,
            a folder, or a pattern, with one file for each layer (:mod:`law.editing.published_moments`).
    """

    NAME = "moments"

    batch_size: Count | None = field(default=None, metadata=SAME_RESULTS)
    tokens: Count = PIECE
    save_every: NonNegative = field(default=600.0, metadata=SAME_RESULTS)
    published: str | None = field(default=None, metadata=FILES)

    def check(self) -> None:
        """Refuse what can't be read, before anything is computed.

        Raises:
            LawError: with what to set.
        """
        sources = {name: getattr(self, name) for name in ("text", "dataset", "published")}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            told = " and ".join(f"{name} = {sources[name]!r}" for name in given or sources)
            raise LawError(
                f"The second moments have {told}; expected one of them. Set the method's moments.text to a file with one "
                "document a line, moments.dataset to a data set, or moments.published to the folder of published "
                "files, and the others to null."
            )
        if self.published is None:
            super().check()
        else:
            published_files(self.published)

    def content(self, hashes: FileHashes) -> Any:
        """As for a text; of published files their names, which say the layer, and their hashes."""
        if self.published is None:
            return super().content(hashes)
        try:
            return [[path.name, hashes.of(path)] for path in published_files(self.published)]
        except LawError:
            return None


def second_moments(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    layers: list[int],
    settings: MomentSettings,
    cache: Cache,
) -> dict[int, Tensor]:
    """C of every layer in ``layers``: (d_ff, d_ff), float32, summed in float64.

    With a cache, C is kept layer by layer: the text is read once more for the layers that are missing, and for no
    other. A run that was killed goes on from the sums it last saved. Published second moments are read from their
    files and checked each time.
    """
    settings.check()
    if settings.published is not None:
        return published_moments(decoder, tokenizer, layers, settings.published)
    key = {
        "version": VERSION,
        "model": model_hash(decoder.model),
        "parts": asdict(decoder.parts),
        "tokenizer": tokenizer_hash(tokenizer),
        "text": settings.identity(cache.hashes),
        "documents": settings.documents,
        "longest": positions(decoder.model),
        "piece": settings.tokens,
    }
    found = {layer: cache.tensors("moments", key | {"layer": layer}) for layer in layers}
    missing = [layer for layer in layers if found[layer] is None]
    if missing:
        part = cache.path("moments", key, f"{_bits(missing):x}.{rank()}-of-{world()}.part.safetensors")
        begun_s = seconds_of(part)
        began = perf_counter() - begun_s
        texts = islice(settings.read(), settings.documents)
        computed, tokens = collect_moments(
            decoder,
            tokenizer,
            texts,
            missing,
            settings.batch_size,
            part,
            settings.save_every,
            settings.tokens,
            settings.count(),
        )
        log.info("second moments of %d tokens, layers %s", tokens, missing)
        # a pass takes hardly longer for more layers, so each has its share of the time
        seconds = (perf_counter() - began) / len(missing)
        for layer, c in computed.items():
            kept = {"c": c, "tokens": torch.tensor(tokens)}
            cache.keep("moments", key | {"layer": layer}, kept, seconds)
            found[layer] = kept
        cache.spared_s += begun_s
    _remove_parts(cache.path("moments", key, "*.part.safetensors"), layers)
    return {layer: one["c"].to(decoder.device) for layer, one in found.items() if one is not None}


def _remove_parts(pattern: Path | None, layers: list[int]) -> None:
    """Remove the sums that passes over any of these layers have saved, for instance a killed one for more layers.

    The cache has C of these layers, so the next pass reads for other ones and does not go on from these sums.
    """
    for part in [] if pattern is None else pattern.parent.glob(pattern.name):
        if int(part.name.split(".")[1], 16) & _bits(layers):
            part.unlink(missing_ok=True)  # another process may have removed it


def _bits(layers: list[int]) -> int:
    """A number that says which layers: short in a file's name, and a set."""
    return sum(1 << layer for layer in layers)


@torch.inference_mode()
def collect_moments(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    layers: list[int],
    batch_size: int | None = None,
    part: Path | None = None,
    save_every: float = 600.0,
    piece: int = PIECE,
    total: int | None = None,
) -> tuple[dict[int, Tensor], int]:
    """C of every layer in one pass over ``texts``, and the number of tokens that it was computed from.

    Blocks above the last layer do not run, and no activation outlives its batch of ``batch_size`` tokens
    (measured where there is none). Texts are cut at the model's number of positions, and read in pieces of
    ``piece`` tokens. The sums so far are written to ``part`` every ``save_every`` seconds, and read from there
    where it exists. ``total`` is the number of texts, where it is known: it tells how much is left.

    Raises:
        LawError: the texts hold no token.
    """
    longest = positions(decoder.model)
    batches = Batches(batch_size, first=1024, largest=65_536)
    sizes = {layer: decoder.weight(layer).shape[0] for layer in layers}
    sums = {
        layer: torch.zeros(d_ff, d_ff, dtype=torch.float64, device=decoder.device)
        for layer, d_ff in sizes.items()
    }
    tokens = documents = cut = 0
    began = monotonic() - seconds_of(part)
    if part is not None and (saved := load_tensors(part)) is not None:
        sums = {layer: saved[str(layer)].to(decoder.device) for layer in layers}
        tokens, documents, cut = (int(saved[name]) for name in ("tokens", "documents", "cut"))
        log.info("second moments: going on after %d documents", documents)
    # of all documents, this process reads every n-th
    remaining, saved_at = islice(texts, rank() + documents * world(), None, world()), monotonic()
    with progress("second moments", total and -(-total // world()), "documents", documents) as bar:
        while chunk := list(islice(remaining, CHUNK)):
            texts_ids = tokenizer(chunk)["input_ids"]
            cut += sum(len(ids) > (longest or len(ids)) for ids in texts_ids)
            rows = sorted((row for ids in texts_ids for row in _pieces(ids[:longest], piece)), key=len)
            seen, in_chunk = 0, sum(map(len, rows))
            for batch, grams in batches.run(
                rows, [len(r) for r in rows], lambda b: _grams(decoder, b, layers)
            ):
                for layer, gram in grams.items():
                    sums[layer] += gram
                before, seen = seen, seen + sum(map(len, batch))
                bar.update(len(chunk) * seen // in_chunk - len(chunk) * before // in_chunk)
            tokens += seen
            documents += len(chunk)
            if part is not None and monotonic() - saved_at >= save_every:
                saved_at = monotonic()
                counts = {"tokens": tokens, "documents": documents, "cut": cut, SECONDS: saved_at - began}
                counted = {name: torch.tensor(count) for name, count in counts.items()}
                save_tensors(part, {str(layer): c for layer, c in sums.items()} | counted)
    if cut:
        log.info("%d documents are longer than the model's %d positions and are cut there", cut, longest)
    count = torch.tensor(tokens)
    add_up(count, *sums.values())
    if not count:
        raise LawError("The text for second moments holds no token; expected documents, one a line.")
    return {layer: (c / count).float() for layer, c in sums.items()}, int(count)


def _pieces(ids: list[int], size: int) -> Iterator[list[int]]:
    """A document's tokens in rows of at most ``size``."""
    return (ids[first : first + size] for first in range(0, len(ids), size))


def _grams(decoder: Decoder, rows: list[list[int]], layers: list[int]) -> dict[int, Tensor]:
    """Σ k kᵀ over the tokens of some rows, (d_ff, d_ff) in float32, for every layer.

    A row is filled up with its own last token: what stands to the right of a token changes nothing.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=decoder.device)
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]  # (b, t)
    # the CPU finds the places: a mask on the device would make every layer wait for their number
    at = real.flatten().nonzero().squeeze(1).to(decoder.device)  # (tokens)
    with decoder.capture_keys(layers) as captured:
        decoder.hidden_states(ids, None, layers[-1])
    keys = {layer: captured.pop(layer).flatten(0, 1)[at].float() for layer in layers}  # (tokens, d_ff)
    return {layer: k.T @ k for layer, k in keys.items()}  # (d_ff, tokens) @ (tokens, d_ff)
