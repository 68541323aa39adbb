"""Operators of a step, real or fake -> the storages alive after each, their causes and modules, FLOPs."""

import bisect
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

CAUSES = ("weights", "gradients", "optimizer", "activations", "transient", "input")
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"  # phases of a step
OUTSIDE = "(outside)"  # the module of what no module allocated: loss, optimizer, autocast's leftovers


@dataclass(frozen=True)
class Measurement:
    """What one step holds at its peak, and what it computes.

    Attributes:
        peak_bytes: most bytes alive at once.
        by_cause: of those, bytes of each of CAUSES. `activations` were made in a forward pass and are held for the
            backward pass, autocast's copies of weights among them; `transient` is all else that comes and goes:
            gradients of activations, what checkpointing computes again, temporaries.
        by_module: of those, bytes of each module, by its name in the network: its weights and what its forward pass,
            or the backward pass of that, allocated.
        held_bytes: most activations held when a backward pass began.
        flops: floating point operations of the step, a multiplication and an addition being two; what is recomputed
            counts again. Matrix products, convolutions and attention count, as in torch.utils.flop_counter.
        timeline: bytes alive after each operator, and its phase.
        assumed: what is stated rather than simulated, one sentence each.
        allocated_bytes: the peak of CUDA's allocator, where the step ran on a card.
        ran: what each module that ran did, by its name.
    """

    peak_bytes: int
    by_cause: dict[str, int]
    by_module: dict[str, int]
    held_bytes: int
    flops: int
    timeline: tuple[tuple[int, str], ...] = field(repr=False)
    assumed: tuple[str, ...] = ()
    allocated_bytes: int | None = None
    ran: dict[str, "Ran"] = field(default_factory=dict, repr=False)

    def peak_of(self, *phases: str) -> int:
        """Most bytes alive at once in these phases."""
        return max((alive for alive, phase in self.timeline if phase in phases), default=0)


@dataclass
class Ran:
    """A module in a forward pass, its parts not counted: what checkpointing it could save, and would cost.

    Attributes:
        held_bytes: activations made while it ran and held for the backward pass.
        output_bytes: what it returned.
        flops: of its forward pass.
    """

    held_bytes: int = 0
    output_bytes: int = 0
    flops: int = 0


@dataclass(slots=True)
class _Storage:
    size: int
    born: int  # number of the operator that made it
    phase: str
    module: str
    cause: str = ""  # empty: found out from the phases it lives through
    died: int | None = None  # number of the last operator it was alive at; None: still alive


class StorageLog(TorchDispatchMode):
    """Counts every storage from the operator that makes it to its release; views and in-place results cost nothing.

    Saved tensors, autograd's own releases, autocast's cache and recomputation need no rule: all end in a storage's
    release. What a kernel allocates and frees inside of itself is seen by none but `workspace`.

    Args:
        network: gives modules their names, and tells weights and gradients.
        granularity: storages are rounded up to a multiple of this many bytes.
        workspace: operator, arguments, result -> bytes that its kernel holds while it runs.
    """

    def __init__(
        self, network: nn.Module, granularity: int = 1, workspace: Callable[[Any, Any, Any], int] | None = None
    ) -> None:
        super().__init__()
        self.network, self.granularity, self.workspace = network, granularity, workspace
        self.names = {id(module): name or type(network).__name__ for name, module in network.named_modules()}
        self.storages: list[_Storage] = []
        self.alive: dict[int, tuple[weakref.ref, _Storage]] = {}  # by the address of a storage
        self.live_bytes = self.flops = 0
        self.timeline: list[tuple[int, str]] = []
        self.backward_starts: list[int] = []
        self.stack: list[str] = []
        self.entered: list[tuple[int, str]] = [(0, OUTSIDE)]  # autograd's count when another module began to run
        self.in_optimizer = False
        self.ran: dict[str, Ran] = {}

    def declare(self, tensors: Iterable[Any], cause: str, module: str = OUTSIDE) -> None:
        """Count tensors made elsewhere, or give those already counted their cause."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (found := self._found(tensor, FORWARD, module)) is not None:
                found.cause = cause

    def add(self, size: int, cause: str) -> None:
        """Count bytes that no tensor shows, from now on."""
        self.storages.append(_Storage(size, len(self.timeline), FORWARD, OUTSIDE, cause))
        self.live_bytes += size

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what runs inside, from the network's weights on."""
        for name, tensor in (*self.network.named_parameters(), *self.network.named_buffers()):
            owner = name.rpartition(".")[0] or type(self.network).__name__
            self.declare([tensor], "weights", owner)
            self.declare([tensor.grad], "gradients", owner)
        learned = [p for p in self.network.parameters() if p.requires_grad]
        hooks: list[Any] = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
            register_optimizer_step_pre_hook(lambda *_: self._optimizer_runs(True)),
            register_optimizer_step_post_hook(lambda *_: self._optimizer_runs(False)),
            *(p.register_post_accumulate_grad_hook(lambda p: self.declare([p.grad], "gradients")) for p in learned),
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked for so often that its way through the dispatcher counts
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args, **kwargs)
        if _is_composite(func):  # in inference mode linear and attention arrive here whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        backward = torch._C._current_graph_task_id() != -1
        phase = OPTIMIZER if self.in_optimizer else BACKWARD if backward else FORWARD
        if backward and (not self.timeline or self.timeline[-1][1] != BACKWARD):
            self.backward_starts.append(len(self.timeline))
        module = self._module(backward)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            flops = count(*args, **kwargs, out_val=result)
            self.flops += flops
            if phase == FORWARD and module in self.ran:
                self.ran[module].flops += flops
        if func is torch.ops.inductor.resize_storage_bytes_.default:  # recomputation gives bytes back, and takes them
            if (key := args[0].untyped_storage()._cdata) in self.alive:
                self._released(key)
            self._found(args[0], phase, module)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._found(tensor, phase, module)
        extra = self.workspace(func, args, result) if self.workspace is not None else 0
        if extra:
            now = len(self.timeline)
            self.storages.append(_Storage(extra, now, phase, module, "transient", now))
        self.timeline.append((self.live_bytes + extra, phase))
        return result

    def _found(self, tensor: Tensor, phase: str, module: str) -> _Storage | None:
        """The record of a tensor's storage, a new one if it is not known; None where it has none (sparse, empty)."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # opaque and sparse tensors
            return None
        key = storage._cdata
        if key not in self.alive:
            size = -(-storage.nbytes() // self.granularity) * self.granularity
            if size == 0:
                return None
            record = _Storage(size, len(self.timeline), phase, module)
            self.storages.append(record)
            self.alive[key] = (weakref.ref(storage, lambda _: self._released(key)), record)
            self.live_bytes += size
        return self.alive[key][1]

    def _released(self, key: int) -> None:
        _, record = self.alive.pop(key)
        record.died = len(self.timeline) - 1
        self.live_bytes -= record.size

    def _optimizer_runs(self, runs: bool) -> None:
        self.in_optimizer = runs

    def _enter(self, module: nn.Module, _: Any) -> None:
        name = self.names.get(id(module), self.stack[-1] if self.stack else OUTSIDE)
        self.ran.setdefault(name, Ran())
        self.stack.append(name)
        self._mark()

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        if self.stack:
            returned = sum(x.nbytes for x in tree_iter(output) if isinstance(x, Tensor))
            self.ran[self.stack.pop()].output_bytes = returned
        self._mark()

    def _mark(self) -> None:
        count = torch.autograd._get_sequence_nr()
        if count >= self.entered[-1][0]:  # each thread counts for itself
            self.entered.append((count, self.stack[-1] if self.stack else OUTSIDE))

    def _module(self, backward: bool) -> str:
        """The module that runs; in a backward pass the one whose forward pass made the node that runs."""
        if self.stack or not backward:
            return self.stack[-1] if self.stack else OUTSIDE
        node = torch._C._current_autograd_node()
        if node is None:
            return OUTSIDE
        after = bisect.bisect_right(self.entered, node._sequence_nr(), key=lambda mark: mark[0])
        return self.entered[after - 1][1] if after < len(self.entered) else OUTSIDE

    def _cause(self, record: _Storage) -> str:
        if record.cause:
            return record.cause
        begun = bisect.bisect_left(self.backward_starts, record.born)
        held = begun < len(self.backward_starts) and (record.died is None or record.died >= self.backward_starts[begun])
        return "activations" if held and record.phase == FORWARD else "transient"

    def measurement(self, assumed: tuple[str, ...] = ()) -> Measurement:
        """What was counted so far."""
        peak_at = max(range(len(self.timeline)), key=lambda at: self.timeline[at][0])

        def alive_at(moment: int) -> list[_Storage]:
            return [s for s in self.storages if s.born <= moment and (s.died is None or s.died >= moment)]

        by_cause, by_module = dict.fromkeys(CAUSES, 0), dict[str, int]()
        for storage in alive_at(peak_at):
            by_cause[self._cause(storage)] += storage.size
            by_module[storage.module] = by_module.get(storage.module, 0) + storage.size
        held = [
            sum(s.size for s in alive_at(start) if self._cause(s) == "activations") for start in self.backward_starts
        ]
        for storage in self.storages:
            if storage.module in self.ran and self._cause(storage) == "activations":
                self.ran[storage.module].held_bytes += storage.size
        largest_first = dict(sorted(by_module.items(), key=lambda item: -item[1]))
        return Measurement(
            self.timeline[peak_at][0],
            by_cause,
            largest_first,
            max(held, default=0),
            self.flops,
            tuple(self.timeline),
            assumed,
            ran=self.ran,
        )


@functools.cache
def _is_composite(operator: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")
