"""Strategy -> a network that keeps fewer activations and computes them again in backward, its code untouched.

A strategy is a mapping that YAML can hold:

    {kind: none}                        everything is kept
    {kind: blocks, every: 1}            of every k-th block (scripts.memory.blocks), only the input is kept
    {kind: modules, names: [...]}       the same for these modules, by their names in `named_modules`
    {kind: segments, number: 4}         the same for that many equal parts of the longest nn.Sequential
    {kind: chunks, frames: 8}           the encoder takes that many frames at once; only the input frames are kept
    {kind: selective}                   results of matrix products, attention and convolutions are kept, the cheap rest
                                        is not (scripts.memory.recomputation); flops_per_value: 1000 gives up those
                                        products too that cost so little for each value of their result

Only the way a module is called changes: `_call_impl` of the instance, which `nn.Module.__call__` looks up, runs the
module inside `torch.utils.checkpoint`. Parameters, names of the state dict, classes and `forward` stay, so that a saved
or scripted network is the plain one. Forward hooks of a module run again when it is computed again.
"""

import contextlib
import difflib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from scripts.errors import bad_value
from scripts.memory.blocks import blocks_of, couples_batch, encoder_of, longest_sequence
from scripts.memory.recomputation import Recipes

_OPTIONS: dict[str, dict[str, Any]] = {  # kind -> its options and their defaults; None: must be given
    "none": {},
    "blocks": {"every": 1},
    "modules": {"names": None},
    "segments": {"number": 4},
    "chunks": {"frames": 8},
    "selective": {"flops_per_value": 0, "extra_flops": 1},
}
_CALL = "_call_impl"  # torch 2.11 to 2.15: what nn.Module.__call__ runs, looked up on the instance


def apply(network: nn.Module, strategy: str | Mapping[str, Any]) -> nn.Module:
    """The same network, checkpointed in place; an earlier strategy is undone first.

    Args:
        network: any module; a classifier with an `encoder` where frames are to be chunked.
        strategy: a mapping of the forms above, or the kind alone for its defaults.

    Raises:
        ValueError: an unknown kind, option or module, or one the network cannot follow; one line.
    """
    chosen = checked(strategy)
    remove(network)
    _APPLIED[chosen["kind"]](network, chosen)
    return network


def remove(network: nn.Module) -> nn.Module:
    """The same network, plain again."""
    for module in network.modules():
        region = vars(module).get(_CALL)
        if isinstance(region, Region):
            region.undo()
    return network


def checked(strategy: str | Mapping[str, Any]) -> dict[str, Any]:
    """The strategy as a full mapping, defaults filled in.

    Raises:
        ValueError: an unknown kind or option, or a value out of range.
    """
    given = dict(strategy) if isinstance(strategy, Mapping) else {"kind": strategy}
    kind = given.get("kind", "none")
    if not isinstance(kind, str) or kind not in _OPTIONS:
        raise ValueError(bad_value("strategy", "kind", kind, f"one of {', '.join(_OPTIONS)}", _nearest(kind, _OPTIONS)))
    options = _OPTIONS[kind]
    for name in given.keys() - options.keys() - {"kind"}:
        allowed = f"one of {', '.join(options)}" if options else "no option"
        raise ValueError(bad_value(f"strategy {kind}", "option", name, allowed, _nearest(name, options)))
    full = {"kind": kind, **options, **given}
    for name in full.keys() & {"every", "number", "frames"}:
        if not isinstance(full[name], int) or isinstance(full[name], bool) or full[name] < 1:
            raise ValueError(bad_value(f"strategy {kind}", name, full[name], "a whole number from 1"))
    for name in full.keys() & {"flops_per_value", "extra_flops"}:
        if not isinstance(full[name], (int, float)) or isinstance(full[name], bool) or not 0 <= full[name] < math.inf:
            raise ValueError(bad_value(f"strategy {kind}", name, full[name], "a number from 0"))
    names = full.get("names", [])
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(bad_value(f"strategy {kind}", "names", names, "a list of names of modules"))
    return full


def strategies_for(network: nn.Module) -> list[dict[str, Any]]:
    """The strategies worth trying on this network; of a kind, what saves most first, after what costs nothing."""
    found: list[dict[str, Any]] = [{"kind": "none"}]
    blocks = blocks_of(network)
    found += [{"kind": "selective", "flops_per_value": cost} for cost in (0, 20000, 2000, 1000, 200)]
    found += [{"kind": "selective", "flops_per_value": 1000, "extra_flops": share} for share in (0.04, 0.09)]
    found += [{"kind": "blocks", "every": every} for every in (3, 2, 1) if every <= len(blocks)]
    sequence = longest_sequence(network)
    found += [{"kind": "segments", "number": number} for number in (6, 4, 2) if sequence and number < len(sequence)]
    encoder = encoder_of(network)
    if encoder and not couples_batch(network.get_submodule(encoder)):
        found += [{"kind": "chunks", "frames": frames} for frames in (32, 16, 8, 4, 2, 1)]
    return found


class Region:
    """How one module is called while a strategy is applied to it.

    Args:
        module: it.
        run: what a call does, given this region and the arguments.
    """

    def __init__(self, module: nn.Module, run: "Callable[..., Any] | None" = None) -> None:
        self.module, self.run = module, run or recomputed
        self.plain = getattr(module, _CALL)
        setattr(module, _CALL, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.jit.is_tracing() and _needs_gradient(self.module, args, kwargs):
            return self.run(self, *args, **kwargs)
        return self.plain(*args, **kwargs)

    def undo(self) -> None:
        """Give the module its own way of being called back."""
        vars(self.module).pop(_CALL)


def recomputed(region: Region, *args: Any, **kwargs: Any) -> Any:
    """What the module returns; its activations are dropped, and computed again in backward."""
    call = functools.partial(region.plain, **kwargs)  # its own keywords must not meet those of checkpoint
    return _checkpoint(call, args, region.module)


def _checkpoint(call: Callable[..., Any], args: tuple[Any, ...], module: nn.Module) -> Any:
    contexts = functools.partial(_contexts, module)
    return checkpoint(call, *args, use_reentrant=False, context_fn=contexts)


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    """What surrounds forward, what surrounds its repetition."""
    return contextlib.nullcontext(), _statistics_kept(module)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, norms update copies of the running statistics: forward has updated the true ones once."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
    true = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if value is None else value.clone() for name, value in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, true, strict=True):
            norm._buffers.update(buffers)


def _needs_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether backward will come this way: a frozen part fed with frames keeps nothing anyway."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    inputs = (*args, *kwargs.values())
    return any(
        value.requires_grad if isinstance(value, Tensor) else isinstance(value, (list, dict)) for value in inputs
    )


def _apply_blocks(network: nn.Module, strategy: dict[str, Any]) -> None:
    for name in _needed_blocks(network, "blocks")[:: strategy["every"]]:
        Region(network.get_submodule(name))


def _apply_modules(network: nn.Module, strategy: dict[str, Any]) -> None:
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in strategy["names"]:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, 3, 0.0)
            raise ValueError(bad_value("strategy modules", "names", name, f"modules such as {', '.join(near)}"))
    for module in {id(modules[name]): modules[name] for name in strategy["names"]}.values():
        Region(module)


def _apply_selective(network: nn.Module, strategy: dict[str, Any]) -> None:
    Region(network, run=functools.partial(_with_recipes, strategy["flops_per_value"], strategy["extra_flops"]))


def _with_recipes(flops_per_value: float, extra_flops: float, region: Region, *args: Any, **kwargs: Any) -> Any:
    with Recipes(flops_per_value, extra_flops), _out_of_place(region.module):
        return region.plain(*args, **kwargs)


@contextlib.contextmanager
def _out_of_place(network: nn.Module) -> Iterator[None]:
    """Inside, activations leave their input alone: backward of one in place on a view, as instance norm returns, holds
    three gradients of its size at once (CopySlices of torch/csrc/autograd), and recipes keep neither side anyway."""
    changing = [module for module in network.modules() if getattr(module, "inplace", None) is True]
    for module in changing:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changing:
            module.inplace = True  # type: ignore[assignment]


def _apply_segments(network: nn.Module, strategy: dict[str, Any]) -> None:
    sequence, number = longest_sequence(network), strategy["number"]
    if sequence is None:
        allowed = "a network with an nn.Sequential"
        raise ValueError(bad_value("strategy segments", "network", type(network).__name__, allowed, _WAY_OUT))
    if number > len(sequence):
        allowed = f"at most {len(sequence)}, the members of the longest nn.Sequential"
        raise ValueError(bad_value("strategy segments", "number", number, allowed))
    members = [Region(member) for member in sequence]  # each by itself where they are looped over: timm, given a mask
    bounds = [len(members) * part // number for part in range(number + 1)]
    parts = [members[start:stop] for start, stop in itertools.pairwise(bounds)]
    Region(sequence, run=functools.partial(_in_segments, parts))


def _in_segments(parts: list[list[Region]], region: Region, value: Any) -> Any:
    for part in parts:
        value = _checkpoint(functools.partial(_one_by_one, part), (value,), region.module)
    return value


def _one_by_one(part: list[Region], value: Any) -> Any:
    for member in part:
        value = member.plain(value)
    return value


def _apply_chunks(network: nn.Module, strategy: dict[str, Any]) -> None:
    name = encoder_of(network)
    encoder = network.get_submodule(name)
    if couples_batch(encoder):
        allowed = "an encoder without BatchNorm, whose statistics a chunk would change"
        raise ValueError(bad_value("strategy chunks", "network", type(encoder).__name__, allowed, _WAY_OUT))
    Region(encoder, run=functools.partial(_in_chunks, strategy["frames"]))


def _in_chunks(frames: int, region: Region, batch: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What the encoder makes of (N, ...), the activations of one chunk alive at a time."""
    return torch.cat([recomputed(region, chunk, *args, **kwargs) for chunk in batch.split(frames)])


def _needed_blocks(network: nn.Module, kind: str) -> list[str]:
    blocks = blocks_of(network)
    if not blocks:
        allowed = "one that repeats blocks of one class"
        raise ValueError(bad_value(f"strategy {kind}", "network", type(network).__name__, allowed, _WAY_OUT))
    return blocks


def _nearest(name: object, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f"Did you mean {near[0]}?" if near else ""


_WAY_OUT = "Use kind modules with names of your choice."
_APPLIED: dict[str, Callable[[nn.Module, dict[str, Any]], None]] = {
    "none": lambda network, strategy: None,
    "blocks": _apply_blocks,
    "modules": _apply_modules,
    "segments": _apply_segments,
    "chunks": _apply_chunks,
    "selective": _apply_selective,
}
