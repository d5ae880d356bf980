"""One run on several processes, started by ``torchrun``: each process takes a share of the facts and of the text.

Every process holds the model and makes the same decisions. Sums over facts and text are added up over all processes,
and each process receives what the others have computed for their facts. Fine-tuning, log-probabilities and free text
run in every process. The harness runs in the first one. When a process fails, ``torchrun`` ends the others.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if sys.platform != "win32":
    import fcntl

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


def device_number(count: int) -> int:
    """Which of this machine's ``count`` accelerators this process uses.

    Under ``torchrun``, each process uses the one with its ``LOCAL_RANK``. Otherwise processes of one user are spread
    over the accelerators, whoever started them: see :func:`_place`.
    """
    return int(os.environ["LOCAL_RANK"]) if world() > 1 else _place() % count


@cache
def _place() -> int:
    """The lowest number that no other process of this user on this machine has. It is taken once, until the process ends.

    A byte of a file is locked for it. The system frees it when the process ends, even when it is killed.
    """
    if sys.platform == "win32":
        return 0
    path = Path(tempfile.gettempdir()) / f"law-accelerators-{os.getuid()}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # closing it would free the byte
    place = 0
    while not _locked(file, place):
        place += 1
    return place


def _locked(file: int, byte: int) -> bool:
    """Lock one byte, unless another process has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


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
