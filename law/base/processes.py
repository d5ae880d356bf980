"""One run on several processes, started by ``torchrun``: each process takes a share of the facts and of the text.

Every process holds the model and makes the same decisions. Sums over facts and text are added up over all processes,
and each process receives what the others have computed for their facts. Fine-tuning, log-probabilities and free text
run in every process. The harness runs in the first one. When a process fails, ``torchrun`` ends the others.
"""

from __future__ import annotations

import multiprocessing
import os
import re
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
    """Join the other processes that ``torchrun`` has started, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # a process that continues from saved sums may wait for hours for one that starts anew
    dist.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """Of several processes, one that fails inside ends.

    Hydra would continue with the next job of the sweep, while the other processes still wait for the sums of this one.
    """
    try:
        yield
    except Exception as error:
        if world() == 1:
            raise
        raise SystemExit(f"error: {error}") from error


def local_number() -> int:
    """The number of this process among those on this machine which ``torchrun`` or a launcher has started beside it.

    ``torchrun`` sets ``LOCAL_RANK``. The workers of ``hydra/launcher=processes`` are joblib's, LokyProcess-1 and so on.
    """
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(worker[1]) - 1 if worker else int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """The number of this process. Process 0 writes the files and the progress."""
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
