"""Leaving a model as it was when something fails while it is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def undone_on_failure(
    model: PreTrainedModel, weights: Sequence[Tensor] = (), copies: Sequence[Tensor] | None = None
) -> Iterator[None]:
    """A failure inside gives ``weights`` their values back, and every module its training or evaluation mode.

    Args:
        model: the model that is changed inside.
        weights: the weights of it that may change.
        copies: their values; ``None`` copies them here, into the CPU's memory.
    """
    modes = _modes(model)
    if copies is None:
        copies = [weight.detach().to("cpu", copy=True) for weight in weights]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for weight, values in zip(weights, copies, strict=True):
                weight.copy_(values)
        _set_modes(modes)
        raise


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout inside; every module is in the mode that it was in afterwards."""
    modes = _modes(model)
    model.eval()
    try:
        yield
    finally:
        _set_modes(modes)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradient reaches the weights inside; what was trainable is so again afterwards."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _modes(model: PreTrainedModel) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
