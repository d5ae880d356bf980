"""One run on several processes, started by ``torchrun``: each takes its share of facts and text.

Every process holds the model and makes the same decisions: sums over facts and text are added up over
all processes, and what each has computed of its facts is gathered. Fine-tuning, log-probabilities
and free text run in every process alike, the harness in the first. A process that fails ends, and ``torchrun`` ends the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes that ``torchrun`` has started; alone, there is nothing to join."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # no process waits in vain, but one that goes on from saved sums may wait for hours
    dist.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """A failure inside ends this process, where there are several.

    Hydra would go on to a sweep's next job, whose sums would then meet those the others still wait for.
    """
    try:
        yield
    except Exception as error:
        if world() == 1:
            raise
        raise SystemExit(f"error: {error}") from error


def rank() -> int:
    """This process's number, 0 for the one that speaks for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's share: every n-th item, so that neighbours of like length are spread."""
    return items[rank() :: world()]


def add_up(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gathered(value: T) -> list[T]:
    """The value of each process, in the order of their numbers."""
    values: list[T] = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values
