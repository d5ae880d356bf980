"""How many items to compute at once: found while working, and halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TypeVar

import torch

from law.base.errors import LawError, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE = 1.1
"""A doubled batch is kept when it does this much more in the same time."""


class Batches:
    """Work done in batches of a given size, or of one found by measurement.

    Without a size, batches begin with ``first`` and double for as long as that pays. Nothing is computed
    for the measurement alone. When memory runs out, the batch is halved and done again, and what was
    yielded before is not lost. Accelerators refuse memory by ``torch.OutOfMemoryError``; an operating
    system that promises more than it has ends the process instead, which ``largest`` must prevent.

    Args:
        size: the weight of a batch; ``None`` finds one.
        first: the weight to begin with.
        largest: the weight to end with.
        clock: seconds.
    """

    def __init__(
        self, size: int | None, first: int, largest: int, clock: Callable[[], float] = perf_counter
    ) -> None:
        self.size = first if size is None else size
        self._growing = size is None
        self._largest = largest
        self._clock = clock
        self._rate = 0.0  # of the batch size before, in weight a second

    def run(
        self, items: Sequence[Item], weights: Sequence[int], work: Callable[[list[Item]], Result]
    ) -> Iterator[tuple[list[Item], Result]]:
        """Each batch, in the order of ``items``, with what ``work`` makes of it.

        As padded rows do, a batch weighs its heaviest item times its length. An item heavier than the
        size goes alone.

        Raises:
            LawError: memory does not hold the work for a single item.
        """
        first = 0
        while first < len(items):
            count, weight = self._take(weights[first : first + max(1, self.size)])
            batch, began = list(items[first : first + count]), self._now()
            try:
                result = work(batch)
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise LawError(
                        f"Memory ran out on a single row ({first_line(error)}); expected room for one. "
                        "Take model.dtype=bfloat16, or a device with more memory."
                    ) from error
                self.size, self._growing = weight // 2, False
                failed = True
            else:
                failed = False
            if failed:  # out here, since the error's traceback held on to the batch's tensors
                if torch.accelerator.is_available():
                    torch.accelerator.empty_cache()
                continue
            first += count
            if self._growing and first < len(items):  # the rest of a list is no full batch
                self._learn(weight / max(self._now() - began, 1e-9))
            yield batch, result

    def _take(self, weights: Sequence[int]) -> tuple[int, int]:
        """How many items the next batch takes, and what it weighs."""
        heaviest = count = 0
        for weight in weights:
            if count and max(heaviest, weight) * (count + 1) > self.size:
                break
            heaviest, count = max(heaviest, weight), count + 1
        return count, heaviest * count

    def _learn(self, rate: float) -> None:
        """Double the size if the last doubling paid; otherwise take it back and stay."""
        if rate > WORTHWHILE * self._rate and self.size < self._largest:
            self.size, self._rate = min(2 * self.size, self._largest), rate
            return
        if rate <= WORTHWHILE * self._rate:
            self.size //= 2
        self._growing = False

    def _now(self) -> float:
        """The clock, once the device has done what it was given."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return self._clock()
