"""A device of torch without hardware: what would fail on a GPU fails here, and says where.

Its tensors hold one of the CPU each and compute with it, so numbers are right; but they are of a
device of their own, and whoever mixes them with tensors of the CPU gets an error, as with CUDA.
Tests of policies, methods and learning rules need no GPU to find what was left on the CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import backend_registration

DEVICE = "strict"
"""What torch calls it, e.g. `load_policy("tiny", device=DEVICE)`."""

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN._foreach_copy_.default}
"""What may read one device and write another."""
_INDEXINGS = {
    *(_ATEN.index.Tensor, _ATEN._unsafe_index.Tensor),
    *(_ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default),
}
"""What takes indices [argument 1] of the CPU as well as of the indexed tensor's device."""
_JOINS = {_ATEN.cat.default, _ATEN.stack.default}
"""What takes no number of the CPU for a tensor, though it has no dimension."""
_LIBRARY = torch.library.Library("aten", "IMPL")


@contextmanager
def strict_device() -> Iterator[str]:
    """Offer the device inside the block, to tensors of this and other threads.

    Backward passes have to start inside it.

    Yields:
        Its name, to be used as any other: `policy.to(device)`, `torch.zeros(3, device=device)`.
    """
    _register()
    # Torch starts its threads for backward passes with the first one, for the devices of that time.
    with torch.autograd.set_multithreading_enabled(False):
        yield DEVICE


class StrictTensor(Tensor):
    """A tensor of the strict device."""

    on_cpu: Tensor
    """What it really is, on the CPU."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "StrictTensor":
        """Wrap a tensor of the CPU."""
        wrapper = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(DEVICE, 0),
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute with what is wrapped, and wrap the result."""
        kwargs = kwargs or {}
        _require_one_device(func, args, kwargs)
        inner_args, inner_kwargs = _on_cpu(args), _on_cpu(kwargs)
        device = inner_kwargs.pop("device", None)
        result = func(*inner_args, **inner_kwargs)
        if written := _written(func, args, kwargs):
            _require_same_shape(func, written)
            (first, *others) = written
            return written if others else first
        if device is not None and device.type == "cpu":
            return result
        return _wrapped(result)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Show what it holds."""
        return f"StrictTensor({self.on_cpu})"

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as tensors of a GPU do."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert a tensor of device {DEVICE} to numpy; use .cpu() first")

    def __array__(self, dtype: Any = None) -> Any:
        """Refuse, as tensors of a GPU do."""
        return self.numpy()

    def tolist(self) -> Any:
        """Return the numbers, as every tensor can."""
        return self.detach().cpu().tolist()

    @property
    def data(self) -> Tensor:
        """The tensor without its history; assigned, it takes over another one's numbers."""
        return cast(Any, Tensor.data).__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, StrictTensor):
            raise RuntimeError(f".data: a tensor of the {value.device} for one of {DEVICE}")
        cast(Any, Tensor.data).__set__(self, value)
        self.on_cpu = value.on_cpu


def _require_one_device(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func}: draws on device {DEVICE}; draw on the CPU and move it")
    if func in _COPIES:
        return
    if func in _INDEXINGS and isinstance(args[0], StrictTensor):
        args = (args[0], *args[2:])
    for leaf in _tensors((*args, *kwargs.values())):
        is_other = not isinstance(leaf, StrictTensor)
        # A number of no dimension may come from the CPU, as with CUDA.
        if is_other and (leaf.dim() or func in _JOINS):
            raise RuntimeError(
                f"{func}: a tensor {list(leaf.shape)} of the {leaf.device} among those of device "
                f"{DEVICE}; move all to one device"
            )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, and those in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _on_cpu(value: Any) -> Any:
    """Return arguments with the CPU's tensors in the place of ours; torch's own is far slower."""
    if isinstance(value, StrictTensor):
        return value.on_cpu
    if isinstance(value, list | tuple):
        return type(value)(map(_on_cpu, value))
    if isinstance(value, dict):
        return {name: _on_cpu(inner) for name, inner in value.items()}
    return value


def _wrapped(result: Any) -> Any:
    """Return what a function returned as tensors of the device."""
    if isinstance(result, Tensor):
        return StrictTensor(result)
    if isinstance(result, list | tuple):
        return type(result)(map(_wrapped, result))
    return result


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments that a function changes and returns."""
    schema = func._schema
    if not any(value.alias_info and value.alias_info.is_write for value in schema.returns):
        return ()
    values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)
    return tuple(
        values[argument.name]
        for argument in schema.arguments
        if argument.alias_info and argument.alias_info.is_write and argument.name in values
    )


def _require_same_shape(func: Any, written: tuple[Any, ...]) -> None:
    for tensor in written:
        if isinstance(tensor, StrictTensor) and tensor.shape != tensor.on_cpu.shape:
            raise NotImplementedError(
                f"{func}: device {DEVICE} cannot change the shape of a tensor in place"
            )


@cache
def _register() -> None:
    """Tell torch of the device, once and for all."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    for name, make in _FACTORIES.items():
        _LIBRARY.impl(name, _on_device(make), "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy where torch does not ask `__torch_dispatch__`, as in `torch.tensor(..., device=...)`."""
    _on_cpu(target).copy_(_on_cpu(source))
    return target


def _on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def factory(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        return StrictTensor(make(*args, **kwargs))

    return factory


_FACTORIES: dict[str, Callable[..., Tensor]] = {
    "empty.memory_format": _ATEN.empty.memory_format,
    "empty_strided": _ATEN.empty_strided.default,
    "arange": _ATEN.arange.default,
    "arange.start": _ATEN.arange.start,
    "arange.start_step": _ATEN.arange.start_step,
    "linspace": _ATEN.linspace.default,
    "eye": _ATEN.eye.default,
    "eye.m": _ATEN.eye.m,
}
"""How a tensor begins that is made of no other; zeros, ones and the like fill an empty one."""
