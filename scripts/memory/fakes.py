"""Operators on fake tensors, each worked out once for arguments of the same geometry.

A simulated step runs the same few operators on the same few shapes, thousands of times. PyTorch remembers them too, by
keys so thorough that making one takes most of a simulation. Here there are no symbols, one device and one mode, so that
a short key will do.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_NEVER = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}


class _Made(NamedTuple):
    """A result that an operator makes: in a storage of its own, or within that of an argument."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # in a storage of its own, or from the beginning of that argument
    dtype: torch.dtype
    device: torch.device
    base: int  # which of the tensors among the arguments it is a view of; -1: of none


class _Known(NamedTuple):
    """What an operator returns: of each result, how to make it, or which tensor among the arguments it is, or None."""

    results: tuple[_Made | int | None, ...]
    container: type | None  # list or tuple; None: the one result by itself


class RememberingFakeMode(FakeTensorMode):
    """Fake tensors as PyTorch makes them, and the geometry of every result by operator and geometry of arguments.

    Only what depends on geometry alone is remembered: no operator that makes tensors from nothing, reads values or
    resizes. All else is PyTorch's.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.known: dict[Any, _Known | None] = {}

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What the operator returns."""
        kwargs = kwargs or {}
        tensors: list[FakeTensor] = []
        try:
            geometry = _geometry(args, tensors)
            if kwargs:
                geometry = *geometry, _geometry(tuple(kwargs.items()), tensors)
            if _places_itself(func):
                geometry = *geometry, *[tensor.storage_offset() for tensor in tensors]
            key = func, torch.is_inference_mode_enabled(), torch.get_default_dtype(), geometry
            known = self.known.get(key, _MISSING)
        except (_ValuesError, TypeError):  # a tensor with values, or an argument without a hash
            known = None
        if not tensors or known is None:
            return super().dispatch(func, types, args, kwargs)
        if known is _MISSING:
            result = super().dispatch(func, types, args, kwargs)
            self.known[key] = self._remembered(func, result, tensors)
            return result
        results = [
            self._make(made, tensors) if isinstance(made, _Made) else None if made is None else tensors[made]
            for made in known.results
        ]
        return results[0] if known.container is None else known.container(results)

    def _make(self, made: _Made, tensors: list[FakeTensor]) -> FakeTensor:
        shape, stride, offset, dtype, device, base = made
        if base < 0:
            tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        else:
            tensor = torch.empty_strided((), (), dtype=dtype, device="meta")
            argument = tensors[base]
            tensor.set_(argument.untyped_storage(), argument.storage_offset() + offset, shape, stride)
        return FakeTensor(self, tensor, device)

    def _remembered(self, func: Any, result: Any, tensors: list[FakeTensor]) -> _Known | None:
        """How to make that result again; None if it is not to be remembered."""
        if func.namespace != "aten" or not _NEVER.isdisjoint(func.tags):
            return None
        container = type(result) if type(result) in (list, tuple) else None
        storages = [tensor.untyped_storage()._cdata for tensor in tensors]
        results: list[_Made | int | None] = []
        for tensor in result if container else (result,):
            same = [at for at, argument in enumerate(tensors) if argument is tensor]
            if tensor is None or same:
                results.append(same[0] if same else None)
                continue
            if type(tensor) is not FakeTensor or tensor.constant is not None:
                return None
            storage = tensor.untyped_storage()._cdata
            if storages.count(storage) > 1:
                return None  # other arguments of that geometry may not share it
            base = storages.index(storage) if storage in storages else -1
            if base >= len(tensors):
                return None  # results that share a storage of their own
            if base >= 0 and tensors[base].dtype != tensor.dtype:
                return None  # its place in the storage is counted in other units
            offset = int(tensor.storage_offset()) - (int(tensors[base].storage_offset()) if base >= 0 else 0)
            made = _Made(tuple(tensor.shape), tensor.stride(), offset, tensor.dtype, tensor.fake_device, base)
            again = self._make(made, tensors)
            if _geometry((again,), []) != _geometry((tensor,), []) or again.storage_offset() != tensor.storage_offset():
                return None
            results.append(made)
            storages.append(storage)
        return _Known(tuple(results), container)


class _ValuesError(Exception):
    """Arguments that are no mere geometry."""


_MISSING: Any = object()


@functools.cache
def _places_itself(func: Any) -> bool:
    """Whether an operator is told where in a storage its result begins; all others begin where an argument does."""
    return any(argument.name == "storage_offset" for argument in func._schema.arguments)


def _geometry(values: Sequence[Any], tensors: list[FakeTensor]) -> tuple[Any, ...]:
    """What decides on the geometry of a result, hashable; the tensors are listed as they come.

    Raises:
        _ValuesError: a tensor that has values.
    """
    found: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                raise _ValuesError
            tensors.append(value)
            keys = torch._C._dispatch_keys(value).raw_repr()
            size = value.untyped_storage().nbytes()
            found += (value.shape, value.stride(), size, value.dtype, keys, value.requires_grad)
        elif kind is list or kind is tuple:
            found += (kind, _geometry(value, tensors))
        elif isinstance(value, Tensor):
            raise _ValuesError
        else:
            found += (kind, value)  # 1 and 1.0 have one hash
    return tuple(found)
