"""Which modules of a Hugging Face decoder are its blocks, its down-projections and its attention's inputs.

The parts are found by structure: by where the input embeddings lie, by the number of blocks in the
configuration, and by the shapes of the weights. Only the attention is told by a name, ``Attention`` in that
of its class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.base.errors import LawError

T = TypeVar("T", bound=nn.Module)

SEVERAL_WAYS = (
    "A mixture of experts, or a branch parallel to the MLP, can't be edited: a fact could pass beside the edited "
    "projection. Take a dense model, or a method that tunes every weight (method=npo or method=grad_diff, for example)."
)


@dataclass
class Parts:
    """Dotted names of a decoder's parts; what is left empty is found by structure.

    Args:
        blocks: the list of blocks, by its dotted name in the model, as in ``model.layers``.
        down_projection: the MLP's down-projection, by its dotted name in a block, as in ``mlp.down_proj``.
        attention_inputs: the query and value projections (or the one that fuses them), by their dotted names in a
            block; only the baselines with LoRA need them.
    """

    blocks: str = ""
    down_projection: str = ""
    attention_inputs: list[str] = field(default_factory=list)


def name_parts(model: PreTrainedModel, parts: Parts) -> None:
    """Tell every :class:`~law.decoders.structure.Decoder` made of ``model`` from here on; not saved with it."""
    model.law_parts = parts  # type: ignore[assignment]


def find_blocks(model: PreTrainedModel, parts: Parts, count: int) -> nn.ModuleList:
    """The list of ``count`` blocks that lies nearest to the input embeddings.

    A model that also sees or hears has a tower of blocks for that, perhaps as high as the text decoder. The
    search therefore begins with the module that holds the input embeddings, and widens from there.

    Raises:
        LawError: there is no such list, or there are several.
    """
    names = {module: name for name, module in model.named_modules()}
    lists = {name: module for module, name in names.items() if isinstance(module, nn.ModuleList)}
    if parts.blocks:
        return _pick(model, lists, parts.blocks, "blocks")
    home = names.get(model.get_input_embeddings(), "")
    found: dict[str, nn.ModuleList] = {}
    while home and not found:
        home = home.rpartition(".")[0]
        found = {
            n: m for n, m in lists.items() if len(m) == count and n.startswith(f"{home}." if home else "")
        }
    with_attention = {name: module for name, module in found.items() if attention(module[0])}
    if len(with_attention or found) == 1:
        return next(iter((with_attention or found).values()))
    raise LawError(
        f"{type(model).__name__} has {len(with_attention)} lists of {count} blocks (config.num_hidden_layers) around "
        f"its input embeddings; expected one, as in GPT-2, GPT-J or Llama. Its lists are: {', '.join(lists) or 'none'}. "
        + _mapping("model.layers", "mlp.down_proj")
    )


def find_down_projection(
    block: nn.Module, parts: Parts, d_model: int, blocks_name: str
) -> nn.Linear | Conv1D:
    """The block's one projection onto ``d_model`` dimensions outside its attention.

    Raises:
        LawError: there is none, or there are several.
    """
    onto = {n: m for n, m in _projections(block).items() if weight_in_out(m).shape[1] == d_model}
    if parts.down_projection:
        return _pick(block, onto, parts.down_projection, "down_projection")
    inside = attention(block)
    found = {name: module for name, module in onto.items() if module not in inside}
    if len(found) == 1:
        return next(iter(found.values()))
    alone = [name for name in found if not _among_experts(block, name)]
    raise LawError(
        f"{type(block).__name__} has {len(found)} projections onto {d_model} dimensions outside its attention "
        f"({', '.join(found) or 'none'}); expected exactly one, the MLP's down-projection. "
        + (_mapping(blocks_name, alone[-1]) if alone else SEVERAL_WAYS)
    )


def find_attention_inputs(block: nn.Module, parts: Parts) -> list[nn.Linear | Conv1D]:
    """The query and value projections of a block's attention, or the one that gives queries, keys and values.

    Separate ones are told by the first letter of their names, since nothing else tells keys from values.

    Raises:
        LawError: an attention has neither two projections nor four, and none were named.
    """
    projections = _projections(block)
    if parts.attention_inputs:
        return [_pick(block, projections, n, "attention_inputs") for n in parts.attention_inputs]
    inside = attention(block)
    found = {name: module for name, module in projections.items() if module in inside}
    if len(found) == 2:
        one, other = found.values()
        # the fused one gives more than the output projection takes; the other gives d_model, no more
        fused = weight_in_out(one).shape[1] > weight_in_out(other).shape[0]
        return [one if fused else other]
    chosen = [module for name, module in found.items() if name.rpartition(".")[2][0] in "qv"]
    if len(found) != 4 or len(chosen) != 2:
        raise LawError(
            f"The query and value projections of {type(block).__name__} can't be told among: "
            f"{', '.join(found) or 'none'}; expected two projections (one of them fused) or four. Name "
            "them, as in model.parts.attention_inputs=[attn.q,attn.v]."
        )
    return chosen


def attention(block: nn.Module) -> set[nn.Module]:
    """Every module inside a block's attention."""
    return {inner for m in block.modules() if "Attention" in type(m).__name__ for inner in m.modules()}


def weight_in_out(module: nn.Linear | Conv1D) -> Tensor:
    """(inputs, outputs): Conv1D stores its weight so, a Linear the other way round."""
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def _projections(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def _among_experts(block: nn.Module, name: str) -> bool:
    """Whether a projection is one of a list, or shares its part of the block with stacked matrices."""
    in_a_list = any(part.isdigit() for part in name.split("."))
    part = block.get_submodule(name.partition(".")[0])
    return in_a_list or any(parameter.dim() > 2 for parameter in part.parameters())


def _pick(owner: nn.Module, choices: dict[str, T], name: str, part: str) -> T:
    """The module that ``model.parts`` names."""
    if name not in choices:
        raise LawError(
            f"{type(owner).__name__} has no {name!r} that could be its {part}; expected one of: "
            f"{', '.join(choices) or 'none'}. Set model.parts.{part}."
        )
    return choices[name]


def _mapping(blocks: str, down_projection: str) -> str:
    """What to write so that a decoder's parts are known."""
    return (
        f"Name the parts: model.parts.blocks={blocks} model.parts.down_projection={down_projection}, or in "
        f"Python name_parts(model, Parts(blocks={blocks!r}, down_projection={down_projection!r})), each the model's own."
    )
