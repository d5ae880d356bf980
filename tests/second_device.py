"""A second device, made of the CPU's memory: it finds where a GPU would fail, where there is none.

Importing this registers ``second:0`` as the accelerator of the whole process. Its operators are the CPU's
kernels on the same memory. As on CUDA, tensors of two devices don't mix, but for numbers (on the CPU, without
dimensions) among what is worked on element by element, and for indices on the CPU.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.utils import backend_registration

NAME = "second"
counts: Counter[str] = Counter()
"""``to_host``, ``to_device``: tensors copied; ``item``: numbers read; ``wait``: results sized by values (a mask's)."""

TAKES_INDICES = {"aten::index", "aten::_index_put_impl_", "aten::_unsafe_index"}
TAKES_NUMBER = {"aten::fill_", "aten::index_fill_", "aten::masked_fill_", "aten::_index_put_impl_"}
ARITHMETIC = {"add", "sub", "mul", "div", "floor_divide"}
"""What takes a number in place of a tensor by itself."""
ATEN = torch.ops.aten
VIEWS = [getattr(ATEN, name).default for name in ("as_strided", "view", "_reshape_alias", "unfold")]
VIEWS += [ATEN.set_.source_Storage, ATEN.set_.source_Storage_storage_offset]
MADE = [ATEN.empty.memory_format, ATEN.empty_strided.default]
WAITS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}

# DLPack's numbers for the CPU, and for a device that it does not know: torch takes that for the registered one
HOST, SECOND = 1, 12
PLACE = ctypes.sizeof(ctypes.c_void_p)
"""Of the device's number: behind the address of the memory."""
SEQUENCES = (list, tuple)
Lent = dict[int, tuple[Tensor, Tensor]]
"""By id: what the CPU's kernel is given, and for which tensor."""
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def seen_on(kind: int, tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the other device: no more than a number in DLPack's capsule is changed."""
    capsule = torch._C._to_dlpack(tensor)
    ctypes.c_int32.from_address(_address(capsule, b"dltensor") + PLACE).value = kind
    return torch._C._from_dlpack(capsule)


def run(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Any operator, by the CPU's kernel."""
    lent: Lent = {}
    foreign: list[Tensor | Generator] = []
    given_args = [lend(value, lent, foreign) for value in args]
    given_kwargs = {name: lend(value, lent, foreign) for name, value in kwargs.items()}
    for place in number_places(op):
        if isinstance(given_args[place], int | float):
            given_args[place] = torch.tensor(given_args[place])
    if foreign:
        check(op, args, kwargs)
    if may_wait(op):
        count(op, args)
    found = op(*given_args, **given_kwargs)
    for given, value in lent.values():
        if given.shape != value.shape:
            grown = seen_on(SECOND, given)
            value.set_(grown.untyped_storage(), 0, grown.shape, grown.stride())
    return take(found, lent)


def lend(value: Any, lent: Lent, foreign: list[Tensor | Generator]) -> Any:
    """An argument as the CPU's kernel is given it; notes down what was lent, and what is not of the second device."""
    if isinstance(value, Tensor):
        if value.is_cpu:
            foreign.append(value)
            return value
        # an empty result will be made larger, which memory that is only lent can't
        given = seen_on(HOST, value) if value.numel() else torch.empty(value.shape, dtype=value.dtype)
        lent[id(given)] = given, value
        return given
    if isinstance(value, SEQUENCES):
        return [lend(part, lent, foreign) for part in value]
    if isinstance(value, Generator):
        foreign.append(value)
    return torch.device("cpu") if isinstance(value, torch.device) else value


def take(value: Any, lent: Lent) -> Any:
    """A result as a tensor of the second device: the tensor that was lent, where the kernel wrote into that."""
    if isinstance(value, Tensor):
        return lent[id(value)][1] if id(value) in lent else seen_on(SECOND, value)
    return type(value)(take(part, lent) for part in value) if isinstance(value, SEQUENCES) else value


@cache
def number_places(op: OpOverload) -> list[int]:
    """Where torch hands a number over to this device, and the CPU's kernel takes a tensor alone, as of ``%``."""
    if torch.Tag.pointwise not in op.tags or op._schema.name.removeprefix("aten::").rstrip("_") in ARITHMETIC:
        return []
    needed = [argument for argument in op._schema.arguments if not argument.kwarg_only]
    return [place for place, argument in enumerate(needed) if isinstance(argument.type, torch.TensorType)]


def check(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse, in torch's words, the tensors and generators of the CPU that CUDA would not take."""
    number = torch.Tag.pointwise in op.tags or op._schema.name in TAKES_NUMBER
    for place, argument in enumerate(op._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if isinstance(value, Generator):
            raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
        indices = op._schema.name in TAKES_INDICES and argument.name == "indices" and not args[0].is_cpu
        written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in value if isinstance(value, list | tuple) else [value]:
            here = isinstance(tensor, Tensor) and tensor.is_cpu and not indices
            if here and (tensor.ndim or written or not number):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{NAME}:0 and cpu! (argument {argument.name} of {op})"
                )


@cache
def may_wait(op: OpOverload) -> bool:
    """Whether there is something to count: asked once an operator, since asking takes as long as many operators."""
    name = op._schema.name
    waits = name not in TAKES_INDICES and not WAITS.isdisjoint(op.tags)
    return waits or name in ("aten::_local_scalar_dense", "aten::_index_put_impl_")


def count(op: OpOverload, args: Sequence[Any]) -> None:
    """Note down what the host waits for. What ``index`` is given, torch has copied and counted before."""
    name = op._schema.name
    if name == "aten::_local_scalar_dense":
        counts["item"] += 1
    elif name == "aten::_index_put_impl_":
        indices = [index for index in args[1] if index is not None]
        counts["to_device"] += sum(index.is_cpu for index in indices)
        counts["wait"] += any(index.dtype is torch.bool for index in indices)
    else:
        counts["wait"] += 1


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The one operator that leads from one device to another."""
    if target.is_cpu != source.is_cpu:
        counts["to_host" if target.is_cpu else "to_device"] += 1
    to, of = (tensor if tensor.is_cpu else seen_on(HOST, tensor) for tensor in (target, source))
    to.copy_(of)
    return target


def clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """What ``deepcopy`` asks for; torch's own wants an allocator, which a device made in Python has not."""
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,)).clone().untyped_storage()


def register() -> list[torch.library.Library]:
    """Make the device known. Its operators go with the libraries."""
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast casts nothing here
    aten.impl("copy_", copy, "PrivateUse1")
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for op in VIEWS:  # they write down a shape, and touch no memory
        aten.impl(op, partial(op.redispatch, cpu), "PrivateUse1")
    for op in MADE:  # while FLOP are counted, torch.tensor finds no fallback
        aten.impl(op, partial(run, op), "PrivateUse1")
    torch.UntypedStorage.clone = clone_storage
    torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied, as on CUDA
    torch._C._accelerator_synchronizeDevice = lambda _: None  # an operator has ended when it returns
    torch._C._accelerator_isAllocatorInitialized = lambda: False  # nothing is kept that could be given back
    return [every, aten]


_libraries = register()
