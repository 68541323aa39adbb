"""What recomputation knows of a forward pass: values and their recipes, tensors that are kept, what operators are."""

import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from scripts.errors import bad_value

_SOON = 8  # saved tensors: from a convolution through its norm and activation to the next
_WAY_OUT = "Use kind blocks."
_aten = torch.ops.aten
_BATCH_NORMS = {_aten.native_batch_norm, _aten.cudnn_batch_norm, _aten.miopen_batch_norm}  # 5: training; 3, 4: running
_REPEATABLE = {  # deterministic, cheap, with a result of their own; beside the pointwise ones, whose tag says so
    *(*_BATCH_NORMS, _aten.native_layer_norm, _aten.native_group_norm, _aten._softmax, _aten._log_softmax),
    *(_aten.cat, _aten.stack, _aten.clone, _aten._to_copy, _aten.constant_pad_nd, _aten.roll, _aten.repeat),
    *(_aten.avg_pool2d, _aten.avg_pool3d, _aten._prelu_kernel, _aten.upsample_nearest2d, _aten.upsample_nearest3d),
}


class Value:
    """What a storage holds after an operator wrote it.

    Attributes:
        recipe: operator, arguments (tensors, or places within other values), keywords; None: it cannot be repeated.
        started_from: what the recipe starts from and what is not computed again itself.
        dependents: recipes that start from it; `fixed` is the result of one whose start is lost.
        is_dear: whether its operator alone costs much.
        moved: whether a tensor that held it holds it in another storage now; pinned: whether it must not be given back.
        kept: whether something keeps a value without a recipe anyway.
        steps, flops: operators of the whole recipe, and what they cost.
        uses: numbers of the tensors saved for backward that backward has not asked for.
    """

    __slots__ = (
        "__weakref__",
        "dependents",
        "fixed",
        "flops",
        "is_dear",
        "kept",
        "moved",
        "nbytes",
        "pinned",
        "recipe",
        "started_from",
        "steps",
        "type",
        "uses",
    )

    def __init__(self, nbytes: int) -> None:
        self.recipe: Recipe | None = None
        self.started_from: frozenset[Value] = frozenset()
        self.dependents: weakref.WeakSet[Value] = weakref.WeakSet()
        self.fixed: Tensor | None = None
        self.kept = self.pinned = self.moved = self.is_dear = False
        self.type: torch.dtype | None = None
        self.uses: list[int] = []
        self.nbytes, self.steps, self.flops = nbytes, 0, 0

    @property
    def sources(self) -> frozenset["Value"]:
        """What must be kept to have this value; without a recipe, itself."""
        return self.started_from if self.recipe else frozenset((self,))

    def is_due(self, number: int) -> bool:
        """Whether backward, which asks in the opposite order, will ask for it soon after that number."""
        return bool(self.uses) and number - self.uses[-1] <= _SOON


class Recipe(NamedTuple):
    operator: Any
    args: Any
    kwargs: Any
    in_place: bool


class Place:
    """A tensor within a value that can be computed again."""

    __slots__ = ("geometry", "value")

    def __init__(self, value: Value, tensor: Tensor) -> None:
        self.value, self.geometry = value, (tensor.size(), tensor.stride(), tensor.storage_offset())


class Held:
    """A tensor that is kept, in the state in which backward needs it."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise changed_error(self.tensor)
        return self.tensor


class Nature(NamedTuple):
    is_view: bool
    written: tuple[int, ...]  # arguments that it changes in place
    repeatable: bool


@functools.cache
def nature_of(func: Any) -> Nature:
    """What the operator's schema and tags say of it."""
    written = tuple(index for index, argument in enumerate(func._schema.arguments) if argument.is_write)
    aliases = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
    packet = func.overloadpacket
    known = torch.Tag.pointwise in func.tags or packet in _REPEATABLE or packet in flop_registry
    random = torch.Tag.nondeterministic_seeded in func.tags
    return Nature(aliases and not written, written, known and not random and written in ((), (0,)))


def without_running_statistics(func: Any, args: Any) -> Any:
    """The arguments of a batch norm that updates nothing; those of any other operator as they are."""
    if func.overloadpacket in _BATCH_NORMS and args[5]:
        return (*args[:3], None, None, *args[5:])
    return args


def changed_error(tensor: Tensor) -> RuntimeError:
    found = f"a tensor of shape {tuple(tensor.shape)} that changes in place after others have taken it"
    return RuntimeError(bad_value("strategy selective", "forward", found, "operators out of place", _WAY_OUT))


def storage_of(tensor: Any) -> Any:
    """The tensor's storage, None where there is none."""
    try:
        return tensor.untyped_storage() if isinstance(tensor, Tensor) else None
    except NotImplementedError:  # sparse and opaque tensors
        return None


def resize(tensor: Tensor, nbytes: int) -> None:
    torch.ops.inductor.resize_storage_bytes_(tensor, nbytes)  # an operator, so that whoever counts bytes sees it


def is_whole(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
