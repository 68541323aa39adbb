"""A plain step, bytes to be saved -> the modules to compute again that save them with the fewest FLOPs."""

import math

from torch import nn

from scripts.memory.storages import Measurement, Ran

UNITS = 40  # bytes to be saved are met to 2.5 %
Choice = tuple[float, tuple[str, ...]]  # FLOPs, names of modules


def cheapest_modules(network: nn.Module, plain: Measurement, need_bytes: int, share: float) -> list[str]:
    """The modules to compute again that save `need_bytes` with the fewest FLOPs; none if nothing saves that much.

    A module is computed again as a whole or its parts are decided on one by one: a knapsack over the tree of modules,
    solved by dynamic programming in UNITS of the need, as if savings were sums. They are not quite, so whoever asks
    simulates the answer.

    Args:
        network: names its modules.
        plain: a step of it with nothing computed again.
        need_bytes: to be saved.
        share: of all held activations, the most that one module may hold, since it holds them again in backward.
    """
    total = subtree(plain.ran, "").held_bytes
    unit = max(need_bytes / UNITS, 1.0)

    def table(name: str, module: nn.Module) -> list[Choice]:
        """FLOPs, modules of the best choice inside that saves at least 0, 1, 2 ... UNITS units."""
        nothing: Choice = (0.0, ())
        best = [nothing, *[(math.inf, nothing[1])] * UNITS]
        for part_name, part in module.named_children():
            inner = table(f"{name}.{part_name}" if name else part_name, part)
            if math.isinf(inner[1][0]):
                continue
            merged = list(best)
            for saved, (flops, chosen) in enumerate(best):
                for more, (extra, others) in enumerate(inner):
                    both = min(saved + more, UNITS)
                    if flops + extra < merged[both][0]:
                        merged[both] = flops + extra, chosen + others
            best = merged
        whole = subtree(plain.ran, name)
        if name in plain.ran and whole.held_bytes <= share * total:
            units = min(int((whole.held_bytes - plain.ran[name].output_bytes) / unit), UNITS)
            best = [
                min(entry, (float(whole.flops), (name,))) if at <= units else entry for at, entry in enumerate(best)
            ]
        for at in range(UNITS - 1, 0, -1):  # what saves more, saves that as well
            best[at] = min(best[at], best[at + 1])
        return best

    return list(table("", network)[UNITS][1])


def subtree(ran: dict[str, Ran], name: str) -> Ran:
    """What a module did, its parts counted in."""
    inside = [part for path, part in ran.items() if not name or path == name or path.startswith(f"{name}.")]
    return Ran(sum(part.held_bytes for part in inside), 0, sum(part.flops for part in inside))
