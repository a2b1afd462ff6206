"""A GPU that is none: real numbers, computed on the CPU, under the rules of another device.

A tensor of the device `pretended` holds one of the CPU. Operations that mix the two devices fail as
CUDA's do (a number, that is a tensor without dimensions, may come from the CPU), and whatever makes
the host wait for the device is noted: reading a value back, operations whose result has a size that
depends on values, and copies from memory that is not pinned.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretended"
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SIZED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten.bincount.default}
SIZED_BY_VALUES |= {aten._unique2.default, aten.repeat_interleave.Tensor}
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
INDEXED |= {aten._index_put_impl_.default}


@functools.cache
def device() -> torch.device:
    """The device, made known to torch; for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    return torch.device(NAME, 0)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """That of the CPU, which draws for the device, too."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


# As tests are collected: autograd counts the devices when it first runs in a process.
device()


class Pretended(torch.Tensor):
    """A tensor of the device. held: its values, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        new = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device(),
        )
        new.held = held
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, None)


class Watched(TorchDispatchMode):
    """What runs within. waits: where the host waited for the device, as `operation in line`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # without autograd, what is made of other operations comes here whole
            found = func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}, self) if found is NotImplemented else found


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Tensors may be made on the device within, and waits are noted."""

    def made(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        # torch's own goes to the device below what Python can see.
        def at(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
            found = make(data, **options)
            return found if device is None else found.to(device)

        return at

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.in_pinned_memory = True
        return copy

    with pytest.MonkeyPatch.context() as patch, Watched() as found:
        patch.setattr(torch.Tensor, "pin_memory", pinned)
        read = torch.Tensor.tolist  # refuses subclasses
        patch.setattr(torch.Tensor, "tolist", lambda tensor: read(tensor.cpu()))
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, made(getattr(torch, name)))
        yield found


def _run(func: Any, args: tuple, kwargs: dict[str, Any], watch: Watched | None) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, Pretended)]
    wanted = kwargs.get("device")
    if watch is not None and here and (why := _waits(func, args, kwargs, here)):
        watch.waits.append(f"{why} in {_place()}")
    if func in COPIES:
        there = wanted is not None and torch.device(wanted).type == NAME
        if func is aten.copy_.default:
            there = isinstance(args[0], Pretended)
        if watch is not None and there and not here[1:] and not isinstance(args[-1], Pretended):
            source = args[1] if func is aten.copy_.default else args[0]
            if source.ndim and not getattr(source, "in_pinned_memory", False):
                watch.waits.append(f"copy from pageable memory in {_place()}")
    elif here and func not in INDEXED:
        strange = [t for t in tensors if not isinstance(t, Pretended) and t.ndim]
        if strange:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} found at least two: "
                f"{NAME}:0 and {strange[0].device}"
            )
    result_is_here = bool(here)
    if wanted is not None:
        result_is_here = torch.device(wanted).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif func is aten.copy_.default:
        result_is_here = isinstance(args[0], Pretended)

    def unwrapped(x: Any) -> Any:
        if isinstance(x, Pretended):
            return x.held
        if isinstance(x, torch.device) and x.type == NAME:
            return torch.device("cpu")
        return x

    def wrapped(x: Any) -> Any:
        new = isinstance(x, torch.Tensor) and not isinstance(x, Pretended)
        return Pretended(x) if new and result_is_here else x

    found = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    found = tree_map(wrapped, found)
    return (
        return_and_correct_aliasing(func, args, kwargs, found) if here and result_is_here else found
    )


def _waits(func: Any, args: tuple, kwargs: dict[str, Any], here: list[Pretended]) -> str:
    """Why the host has to wait for an operation on tensors of the device; empty if it has not."""
    if func in READS or func in SIZED_BY_VALUES:
        return str(func)
    if func is aten._to_copy.default and torch.device(kwargs.get("device") or NAME).type != NAME:
        return "copy to the host"
    if func is aten.copy_.default and not isinstance(args[0], Pretended):
        return "copy to the host"
    if func in INDEXED:
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            return f"{func} by a mask"
        if not all(isinstance(i, Pretended) for i in indices):
            return f"{func} by indices on the host"
    return ""


def _place() -> str:
    """The line of the project, outside of this module, that led here."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return "?"
