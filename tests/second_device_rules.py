"""What the second device itself does: the operators it refuses, views and copies, what it counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from second_device import NAME, counts

from law.decoders.loading import find_device


def counted(work: Callable[[], Any]) -> dict[str, int]:
    counts.clear()
    work()
    return {key: count for key, count in counts.items() if count}


def operators() -> dict[str, list[str]]:
    """Which of some operators are refused."""
    host, there = torch.arange(12.0).view(4, 3), torch.arange(12.0).view(4, 3).to(NAME)
    index, place = torch.tensor([1, 0]), torch.tensor([1, 0], device=NAME)
    number, far = torch.tensor(2.0), torch.tensor(2.0, device=NAME)
    mine, generator = there.clone(), torch.Generator()
    cases: dict[str, Callable[[], Any]] = {
        "device + CPU": lambda: there + host,
        "CPU @ device": lambda: host @ there.T,
        "CPU * number on the device": lambda: host * far,
        "CPU[device index]": lambda: host[place],
        "device[index] = CPU": lambda: mine.__setitem__(place, host[:2]),
        "CPU[index] = device": lambda: host.__setitem__(index, there[:2]),
        "number += number on the device": lambda: number.add_(far),
        "stack": lambda: torch.stack([number, far]),
        "where of a CPU's mask": lambda: torch.where(host > 1, far, 0.0),
        "embedding of CPU ids": lambda: torch.nn.functional.embedding(index, there),
        "CPU's generator": lambda: torch.rand(2, device=NAME, generator=generator),
        "numpy": lambda: there.numpy(),
        "device * number": lambda: there * number,
        "device % 2": lambda: there % 2,
        "device[CPU index]": lambda: there[index],
        "device[CPU mask]": lambda: there[host[:, 0] > 1],
        "device[index] = number": lambda: mine.__setitem__(place, number),
        "device[slice] = CPU": lambda: mine.__setitem__(slice(0, 2), host[:2]),
        "copy_": lambda: (mine.copy_(host), host.copy_(mine)),
    }
    found: dict[str, list[str]] = {"refused": [], "allowed": []}
    for name, case in cases.items():
        try:
            case()
            found["allowed"].append(name)
        except (RuntimeError, TypeError, IndexError):
            found["refused"].append(name)
    return found


def backend() -> dict[str, Any]:
    """What the device itself does: views, copies of models, counts."""
    base, host = torch.zeros(4, device=NAME), torch.arange(4.0)
    base.view(2, 2)[1].add_(1)
    tied = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(2)))
    tied[1].weight = tied[0].weight
    copied = copy.deepcopy(tied.to(NAME))
    there = host.to(NAME)
    return {
        "written through a view": base.tolist(),
        "tied": [copied[0].weight is copied[1].weight, copied[0].weight is not tied[0].weight],
        "copy": counted(lambda: host.to(NAME).cpu()),
        "item": counted(lambda: there[0].item()),
        "mask": counted(lambda: there[there > 1]),
        "arithmetic": counted(lambda: (there * 2 + there.sum()).clamp(min=1.0)),
        "accelerator": [torch.accelerator.is_available(), str(find_device("auto"))],
    }
