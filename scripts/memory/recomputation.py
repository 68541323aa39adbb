"""Operators of a forward pass -> for each tensor that backward needs: the tensor, or how to compute it again.

torch.utils.checkpoint computes a whole region again, and all activations of the region then live at once: in a 3D
network that transient is the peak. Here every saved tensor is computed again by itself, when the operator that saved it
runs backward, from the nearest results that are kept: the normalised and activated form of a convolution's output from
that output, a concatenation from its parts, a residual stream from what was added to it.

A recipe is written only where what it starts from is smaller than its result or is kept anyway, so that nothing is held
that would not have been. Random operators have none: a dropout's mask is kept. A batch norm is repeated with the
statistics of the batch, and the running ones are left alone.

A variable of the caller names a tensor long after its last use: a concatenation is alive while the block that took it
runs, and that is the peak of a forward pass in 3D. So what has a recipe is given back when an operator that costs
something, or that joins tensors, has taken it, and computed again if another takes it after all. Whoever reads memory
past PyTorch's operators, such as a kernel launched by hand, must not be given such a tensor: use kind blocks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from scripts.memory.values import (
    Held,
    Nature,
    Place,
    Recipe,
    Value,
    changed_error,
    is_whole,
    nature_of,
    resize,
    storage_of,
    without_running_statistics,
)

_LONGEST = 12  # operators of a recipe: keeps a ViT's residual stream at every second block
_DEAR = 256  # FLOPs for each value: an intermediate result that costs more is kept while it is due again
_STEP = 3  # forward and backward together cost that many forward passes
_LARGE = 1 << 20  # bytes worth giving back within a forward pass


class Recipes(TorchDispatchMode):
    """While open, writes down how each result came about, and saves recipes for backward where it can.

    Args:
        flops_per_value: a recipe may cost that many floating point operations for each value of its result: at 0 it
            holds no matrix product, attention or convolution.
        extra_flops: of all the forward and backward pass cost, the share that recipes may cost in addition; used up
            as it goes, evenly from the first block to the last.
    """

    def __init__(self, flops_per_value: float = 0, extra_flops: float = 1) -> None:
        super().__init__()
        self.flops_per_value, self.extra_flops = flops_per_value, extra_flops
        self.flops = self.flops_again = 0
        self.values: Any = WeakIdKeyDictionary()  # storage -> Value; no entry: made elsewhere and kept there
        self.empty: Any = WeakIdKeyDictionary()  # storage -> Value that is computed again when an operator takes it
        self.saved = 0
        self.recent: dict[Value, Tensor] = {}  # computed again, and about to be asked for once more

    def __enter__(self) -> Any:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self.hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hooks.__exit__(*error)
        for storage, value in list(self.empty.items()):  # still named by somebody: an output, a hook's list
            if storage.device.type != "meta":  # a fake one: its operators are cached with the storage, and leak it
                self._refill(torch.empty(0, dtype=value.type, device=storage.device).set_(storage))
        self.values.clear()  # recipes that nothing saved would hold their sources

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        nature = nature_of(func)
        if nature.is_view:
            for tensor in tree_iter((args, kwargs)):  # a view has to lie inside of its memory
                if storage_of(tensor) is not None:
                    self._refill(tensor)
            return func(*args, **kwargs)
        taken = [tensor for tensor in tree_iter((args, kwargs)) if storage_of(tensor) is not None]
        for tensor in taken:
            self._refill(tensor, shared=bool(nature.written))
        count = flop_registry.get(func.overloadpacket)
        value = self._repeatable(func, args, kwargs, nature) if nature.repeatable else None
        for index in nature.written:
            self._settle(self._made(args[index] if index < len(args) else None))
        result = func(*args, **kwargs)
        for tensor in tree_iter(([args[index] for index in nature.written if index < len(args)], result)):
            storage = storage_of(tensor)
            if storage is not None and (nature.written or storage not in self.values):
                self.values[storage] = Value(storage.nbytes())
        flops = count(*args, **kwargs, out_val=result) if count is not None else 0
        self.flops += flops
        if value is not None:
            self._write_down(value, flops, result)
        if (count is not None or len(taken) > 1) and not nature.written:
            for tensor in taken:
                self._empty(tensor)
        return result

    def _empty(self, tensor: Tensor) -> None:
        """Give back the memory of a value that has a recipe: the caller may name it long after its last use."""
        made = self._made(tensor)
        if made is not None and made.recipe and not made.pinned and made.nbytes >= _LARGE:
            storage = tensor.untyped_storage()
            if storage not in self.empty:
                self.empty[storage] = made
                resize(tensor, 0)

    def _refill(self, tensor: Tensor, shared: bool = True) -> None:
        """Compute an emptied tensor again; in its own storage if an operator will write there for others to see."""
        storage = tensor.untyped_storage()
        value = self.empty.get(storage)
        if value is None:
            return
        with torch.no_grad(), torch._C._DisableAutocast():
            again = self._again(value, self.saved)
            self.recent.clear()
            if not shared:
                place = tensor.size(), tensor.stride(), tensor.storage_offset()
                tensor.data = torch.as_strided(again, *place)
                self.values[tensor.untyped_storage()] = value
                value.moved = True
                return
            del self.empty[storage]
            resize(tensor, value.nbytes)
            size = (value.nbytes // again.element_size(),)
            torch.as_strided(tensor, size, (1,), 0).copy_(torch.as_strided(again, size, (1,), 0))

    def _repeatable(self, func: Any, args: Any, kwargs: Any, nature: "Nature") -> Value | None:
        """The result's recipe, if its inputs allow one; written down before an operator in place overwrites them."""
        value = Value(0)
        value.steps = 1
        sources: set[Value] = set()
        for tensor in tree_iter((args, kwargs)):
            made = self._made(tensor)
            if made is not None:
                sources |= made.sources
                value.steps += made.steps
                value.flops += made.flops
        target = self._made(args[0]) if nature.written else None
        if target is not None and target.moved:
            raise changed_error(args[0])
        if nature.written and (target is None or target.recipe is None or not is_whole(args[0])):
            return None  # what it overwrites is gone
        if value.steps > _LONGEST:
            return None
        args = without_running_statistics(func, args)
        value.started_from = frozenset(sources)
        args, kwargs = tree_map_only(Tensor, self._placed, (args, kwargs))
        value.recipe = Recipe(func, args, kwargs, bool(nature.written))
        return value

    def _write_down(self, value: Value, flops: int, result: Any) -> None:
        """Keep the recipe if it starts from less than it makes, and costs no more than allowed."""
        first = next(tensor for tensor in tree_iter(result) if isinstance(tensor, Tensor))
        storage = first.untyped_storage()
        value.flops += flops
        value.is_dear = flops > _DEAR * first.numel()
        started = sum(source.nbytes for source in value.started_from if not source.kept)
        affordable = self.flops_again + flops <= self.extra_flops * _STEP * self.flops
        if started < storage.nbytes() and value.flops <= self.flops_per_value * first.numel() and affordable:
            self.flops_again += flops
            value.nbytes, value.type = storage.nbytes(), first.dtype
            self.values[storage] = value
            for source in value.started_from:
                source.dependents.add(value)

    def _settle(self, source: Value | None) -> None:
        """Compute what starts from a value that is about to be overwritten."""
        lost = [value for value in source.dependents if value.recipe] if source else []
        with torch.no_grad(), torch._C._DisableAutocast():
            fixed = [self._again(value, self.saved) if value.uses else None for value in lost]
        for value, tensor in zip(lost, fixed, strict=True):
            value.recipe, value.fixed = None, tensor

    def _made(self, tensor: Any) -> Value | None:
        storage = storage_of(tensor)
        return None if storage is None else self.values.get(storage)

    def _placed(self, tensor: Tensor) -> Place | Held:
        made = self._made(tensor)
        if made is None or made.recipe is None or tensor.dtype != made.type or tensor.is_conj():
            if made is not None:
                made.pinned = True
            return Held(tensor)
        return Place(made, tensor)

    def pack(self, tensor: Tensor) -> "tuple[Place | Held, int]":
        """What is saved for backward instead of the tensor, and its number."""
        self.saved += 1
        made = self._made(tensor)
        if made is not None:
            made.uses.append(self.saved)
            for source in made.sources:
                source.kept = True
        return self._placed(tensor), self.saved

    def unpack(self, packed: "tuple[Place | Held, int]") -> Tensor:
        """The tensor, kept or computed again."""
        saved, number = packed
        if isinstance(saved, Held):
            return saved.get()
        value = saved.value
        if number in value.uses:  # absent where backward runs twice
            value.uses.remove(number)
        if value.fixed is not None:
            return torch.as_strided(value.fixed, *saved.geometry)
        if value in self.recent:
            tensor = self.recent[value]
        else:
            self.recent = {made: tensor for made, tensor in self.recent.items() if made.is_due(number)}
            with torch.no_grad(), torch._C._DisableAutocast():  # operators are as autocast has left them
                tensor = self._again(value, number)
        if value.is_due(number):
            self.recent[value] = tensor
        else:
            self.recent.pop(value, None)
        return torch.as_strided(tensor, *saved.geometry)

    def _again(self, value: Value, number: int, private: bool = False) -> Tensor:
        """The operator's result; private: nobody else has it, so that it may be changed in place."""
        if value in self.recent and not private:
            return self.recent[value]
        operator, args, kwargs, in_place = value.recipe  # type: ignore[misc]

        def get(saved: Place | Held, private: bool = False) -> Tensor:
            if isinstance(saved, Held):
                return saved.get()
            return torch.as_strided(self._again(saved.value, number, private), *saved.geometry)

        changed = [get(args[0], private=True)] if in_place else []
        args, kwargs = tree_map_only((Place, Held), get, ((*args[len(changed) :],), kwargs))
        result = operator(*changed, *args, **kwargs)
        first = next(tensor for tensor in tree_iter(result) if isinstance(tensor, Tensor))
        if value.is_dear and value.is_due(number) and not private:
            self.recent[value] = first
        return first
