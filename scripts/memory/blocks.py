"""Network -> the modules worth checkpointing: its blocks, its longest sequence, its encoder."""

from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(network: nn.Module) -> list[str]:
    """Names of the blocks a network repeats, in the order in which it holds them.

    The rule, by structure alone: a block is the outermost module that has at least two parts with parameters, and whose
    class occurs more than once, never within itself (U-Nets nest their levels so), and never around a list of two or
    more modules of one class (a stage of a Swin or ConvNeXt). So a ViT gives its blocks, a Swin or ConvNeXt
    those of all stages, a ResNet its bottlenecks, a U-Net its residual or convolution units; a network that repeats
    nothing gives an empty list.
    """
    blocks: list[str] = []
    classes = _classes_of_blocks(network)

    def descend(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            if type(child) in classes and _is_composite(child):
                if id(child) not in seen:  # DynUNet holds each block under two names
                    seen.add(id(child))
                    blocks.append(path)
            else:
                descend(child, path)

    seen: set[int] = set()
    descend(network, "")
    return blocks


def longest_sequence(network: nn.Module) -> nn.Sequential | None:
    """The nn.Sequential with the most members, the first of them if there are several; None without one."""
    sequences = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    return max(sequences, key=len) if sequences else None


def encoder_of(network: nn.Module) -> str:
    """The name of the part that takes frames (N, ...) one by one: `encoder`, or "", the network itself."""
    return "encoder" if isinstance(getattr(network, "encoder", None), nn.Module) else ""


def couples_batch(module: nn.Module) -> bool:
    """Whether a batch cut in pieces gives other numbers: it normalises over the batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _classes_of_blocks(network: nn.Module) -> set[type]:
    modules = [module for module in network.modules() if module is not network]
    often = {kind for kind, times in Counter(map(type, modules)).items() if times > 1} - set(_HOLDERS)
    for module in modules:
        if type(module) in often and any(_is_nested(module, part) or _is_stack(part) for part in module.modules()):
            often.discard(type(module))
    return often


def _is_nested(module: nn.Module, part: nn.Module) -> bool:
    return part is not module and type(part) is type(module)


def _is_stack(module: nn.Module) -> bool:
    """Whether it is a list of two or more composite modules of one class that are no lists themselves."""
    members = list(module.children()) if isinstance(module, _HOLDERS) else []
    kinds = {type(member) for member in members}
    return len(members) > 1 and len(kinds) == 1 and not isinstance(members[0], _HOLDERS) and _is_composite(members[0])


def _is_composite(module: nn.Module) -> bool:
    """Whether at least two of its parts hold parameters of their own."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules() if part is not module) > 1
