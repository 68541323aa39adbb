"""`24GB`, the name of a card, or the card that is there -> bytes that a training step may hold."""

import difflib
import math
import re

from scripts.errors import bad_value

CONTEXT_BYTES = 600_000_000  # CUDA's context and kernels: 0.3-0.6 GB, more with every library that is loaded
MARGIN = 0.08  # of the rest: cuDNN's workspaces, which no simulation sees, and gaps between blocks of the allocator
WHY = (
    f"{CONTEXT_BYTES / 1e9:.1f} GB left for CUDA's context, and {MARGIN:.0%} of the rest for cuDNN's workspaces and "
    "gaps in the allocator's blocks"
)
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}
FEWEST = 1e6  # a smaller number without a unit is one whose unit was forgotten
CARDS_GB = {  # memory that the driver reports, rounded down
    **dict.fromkeys(("rtx 3070", "rtx 4060", "rtx 5060"), 8),
    **dict.fromkeys(("rtx 3060", "rtx 4070", "rtx 5070"), 12),
    **dict.fromkeys(("t4", "v100", "rtx 4080", "rtx 5080", "rtx a4000"), 16),
    **dict.fromkeys(("rtx 3090", "rtx 4090", "rtx a5000", "a10", "a10g", "l4", "rtx 6000"), 24),
    **dict.fromkeys(("rtx 5090",), 32),
    **dict.fromkeys(("a100 40", "a100"), 40),
    **dict.fromkeys(("a40", "rtx a6000", "l40", "l40s", "rtx 6000 ada"), 48),
    **dict.fromkeys(("a100 80", "h100"), 80),
    **dict.fromkeys(("h200",), 141),
}


def read_budget(budget: str | int | float) -> int:
    """Bytes of the card.

    Args:
        budget: `24GB`, `24GiB`, bytes, a name in CARDS_GB, or `here`: what the first card of this machine has.

    Raises:
        ValueError: none of these, not positive, or no card here.
    """
    text = " ".join(re.sub(r"(?<=\w)[-_]", " ", str(budget).strip().lower()).split())
    text = text.removeprefix("nvidia ").removeprefix("geforce ")
    if text in CARDS_GB:
        return int(CARDS_GB[text] * 1e9)
    if text == "here":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(bad_value("plan", "budget", budget, "a card in this machine", "Say 24GB, for instance."))
        return torch.cuda.get_device_properties(0).total_memory
    number = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([a-z]*)", text)
    unit = number[2].upper() if number else ""
    forgotten = number is not None and not unit and 0 < float(number[1]) < FEWEST
    if number is None or (unit and unit not in UNITS) or float(number[1]) == 0 or forgotten:
        near = [f"{text}GB"] if forgotten else difflib.get_close_matches(text, CARDS_GB, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Known cards: {', '.join(CARDS_GB)}."
        raise ValueError(bad_value("plan", "budget", budget, "a size above 0 such as 24GB, a card, or here", hint))
    return int(float(number[1]) * UNITS.get(unit, 1.0))


def free_bytes(budget_bytes: int) -> int:
    """What of a card a training step may hold at its peak; the reason is WHY.

    Raises:
        ValueError: less than CUDA itself takes.
    """
    free = int((budget_bytes - CONTEXT_BYTES) * (1 - MARGIN))
    if free <= 0:
        found = f"{budget_bytes / 1e9:.2f} GB"
        raise ValueError(bad_value("plan", "budget", found, f"more than {CONTEXT_BYTES / 1e9} GB, which CUDA takes"))
    return free


def card_bytes(peak_bytes: int) -> int:
    """The smallest card on which a step with that peak may run."""
    return math.ceil(peak_bytes / (1 - MARGIN)) + CONTEXT_BYTES
