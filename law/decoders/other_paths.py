"""Whether a block has a path beside its attention and its down-projection, on which a fact would survive washing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from law.decoders.parts import SEVERAL_WAYS, attention


def hidden_in(output: Tensor | Sequence[Tensor]) -> Tensor:
    """A module's hidden states: a tensor, or the first of several, as the architecture has it."""
    return output if isinstance(output, Tensor) else output[0]


def other_paths(
    parts: Mapping[int, tuple[nn.Module, nn.Module]], run: Callable[[], object]
) -> dict[int, str]:
    """Of the blocks of ``parts``, those whose output depends on more than attention and down-projection, and on what.

    Attention and down-projection are made to give zeros while ``run`` calls the model. What a block then gives
    is what came into it, perhaps normalised. If a weight matrix of the block still takes part in it (a
    router, an expert, a gate), then there is another path. Autograd's graph tells which weights take part;
    no gradient is computed, and no number is compared.

    Where a block has no module that is known as attention, only the down-projection's own part of the block is
    examined (``mlp`` of ``mlp.down_proj``): the others may do what attention does.

    Args:
        parts: block and down-projection of each layer in question.
        run: a forward pass through these blocks.
    """
    outputs: dict[int, Tensor] = {}
    used: set[nn.Module] = set()
    frozen = [p for block, _ in parts.values() for p in block.parameters() if not p.requires_grad]
    handles = []

    def silence(module: nn.Module, _: Any, output: Any) -> Any:
        used.add(module)
        zeros = torch.zeros_like(hidden_in(output))
        return zeros if isinstance(output, Tensor) else type(output)([zeros, *output[1:]])

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: outputs.update({layer: hidden_in(output)})

    try:
        for layer, (block, down) in parts.items():
            outer = [m for m in block.modules() if "Attention" in type(m).__name__]
            handles += [module.register_forward_hook(silence) for module in (*outer, down)]
            handles.append(block.register_forward_hook(keep(layer)))
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)

    found: dict[int, str] = {}
    for layer, (block, down) in parts.items():
        name = next(name for name, module in block.named_modules() if module is down)
        reached = _weights_behind(outputs[layer])
        # where no attention is known, whatever lies outside the down-projection's part of the block may be one
        part = "" if attention(block) else f"{name.partition('.')[0]}."
        weights = [(n, p) for n, p in block.named_parameters() if p.dim() > 1 and n.startswith(part)]
        beside = [n for n, p in weights if p in reached]
        if beside:
            shown = ", ".join(beside[:4]) + (f" and {len(beside) - 4} more" if len(beside) > 4 else "")
            found[layer] = (
                f"Block {layer}, a {type(block).__name__}, has a path beside its attention and {name}: its output also "
                f"depends on {shown}. Expected a dense MLP whose last step is its one down-projection. {SEVERAL_WAYS}"
            )
        elif down not in used:
            found[layer] = (
                f"Block {layer}, a {type(block).__name__}, never calls {name}; expected a down-projection that runs for "
                "every token. Set model.parts.down_projection to the one that does."
            )
    return found


def _weights_behind(output: Tensor) -> set[Tensor]:
    """The parameters that a tensor was computed from, as autograd has recorded."""
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [earlier for earlier, _ in node.next_functions]
    return {node.variable for node in seen if hasattr(node, "variable")}
