"""What `python -m scripts plan` prints: a plan, the largest input that fits, or a table of docs/memory.md."""

import dataclasses
from collections.abc import Callable
from typing import Any

from scripts.errors import bad_value
from scripts.memory import budget as budgets
from scripts.memory.plan import largest, make_plan, table
from scripts.memory.search import whole_batch
from scripts.memory.subjects import config_workload, named_workload

VIT = "vit_small_patch14_reg4_dinov2"
NETS = "monai.networks.nets."
CARDS_GB = (8, 12, 16, 24, 40, 48, 80)
STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {"kind": "none"},
    "selective": {"kind": "selective"},
    "blocks": {"kind": "blocks", "every": 1},
}
HARDWARE = (  # what is enlarged, network, shape to start from
    ("frames", VIT, (1, 8, 3, 224, 224)),
    ("frames", VIT, (1, 4, 3, 392, 392)),
    ("volume", NETS + "UNet", (1, 1, 96, 96, 96)),
    ("volume", NETS + "DynUNet", (1, 1, 96, 96, 96)),
)
SCENARIOS = (  # what it is, network, shape of a batch
    ("angiography, 16 x 20 frames of 224", VIT, (16, 20, 3, 224, 224)),
    ("angiography, 16 x 20 frames of 392", VIT, (16, 20, 3, 392, 392)),
    ("angiography, 4 x 96 frames of 224", VIT, (4, 96, 3, 224, 224)),
    ("brain MRI, whole 256^3", NETS + "UNet", (1, 1, 256, 256, 256)),
    ("brain MRI, whole 256^3", NETS + "DynUNet", (1, 1, 256, 256, 256)),
    ("cardiac 4D, 30 x 128^3 as a batch", NETS + "UNet", (30, 1, 128, 128, 128)),
    ("lung CT 512x512x400, 2 patches of 192^3", NETS + "DynUNet", (2, 1, 192, 192, 192)),
    ("lung CT 512x512x400, 2 patches of 128^3", NETS + "SwinUNETR", (2, 1, 128, 128, 128)),
)


def print_plan(**asked: Any) -> None:
    """Print what `run_plan` says; exit status 1 if nothing fits."""
    text, fits = run_plan(**asked)
    print(text)
    if not fits:
        raise SystemExit(1)


def run_plan(
    *,
    config: str | None = None,
    network: str | None = None,
    shape: Any = None,
    budget: str | int = "24GB",
    options: dict[str, Any] | None = None,
    settings: dict[str, Any],
    everything: bool = False,
    enlarge: str | None = None,
    named_table: str | None = None,
) -> tuple[str, bool]:
    """The text of the command, and whether something fits; arguments as of `python -m scripts plan`.

    Raises:
        ValueError: neither or both of config and network, a network without a shape, or a value that is not allowed.
        FileNotFoundError: no such config.
    """
    if named_table is not None:
        if named_table not in TABLES:
            raise ValueError(bad_value("plan", "table", named_table, f"one of {', '.join(TABLES)}"))
        return "\n".join(TABLES[named_table](budget)), True
    if (config is None) == (network is None):
        found = "nothing" if config is None else "both config and network"
        raise ValueError(bad_value("plan", "subject", found, "either --config or --network with --shape"))
    if network is not None and shape is None:
        raise ValueError(bad_value("plan", "shape", "", "that of a batch, such as 1,1,96,96,96"))
    if config is not None:
        workload = dataclasses.replace(config_workload(config), **settings)
    else:
        workload = named_workload(str(network), shape, options, **settings)
    if enlarge is None:
        plan = make_plan(workload, budget, everything)
        return plan.text, plan.best is not None
    free = budgets.free_bytes(budgets.read_budget(budget))
    rows = [[name, str(largest(workload, enlarge, free, strategy))] for name, strategy in STRATEGIES.items()]
    lines = table(("strategy", f"largest {enlarge}"), rows)
    return "\n".join([f"A step may hold {free / 1e9:.2f} GB: {budgets.WHY}.", "", *lines]), any(
        row[1] != "0" for row in rows
    )


def hardware(_: str | int) -> list[str]:
    """Cards x networks: the most frames of one sequence, and the largest volume, plain and checkpointed."""
    columns, rows = ["card"], [[f"{gigabytes} GB"] for gigabytes in CARDS_GB]
    for what, network, shape in HARDWARE:
        workload = named_workload(network, shape)
        name = "ViT-S" if network == VIT else network.removeprefix(NETS)
        subject = f"{name} {shape[-1]}, frames" if what == "frames" else f"{name}, side"
        for strategy in ("plain", "selective", "blocks"):
            columns.append(f"{subject}, {strategy}")
            for row, gigabytes in zip(rows, CARDS_GB, strict=True):
                free = budgets.free_bytes(int(gigabytes * 1e9))
                row.append(str(largest(workload, what, free, STRATEGIES[strategy])))
    return table(columns, rows)


def scenarios(budget: str | int) -> list[str]:
    """Typical studies: the plain peak, and the plan for this budget."""
    rows = []
    for what, network, shape in SCENARIOS:
        plan = make_plan(named_workload(network, shape), budget)
        plain = whole_batch(plan.workload, STRATEGIES["plain"]).peak_bytes
        chosen = "nothing fits"
        numbers = ["", ""]
        if plan.best is not None:
            knobs = plan.knobs
            chosen = f"{knobs['batch_size']} x {knobs['accumulation_steps']}, {knobs['checkpointing']['kind']}"
            numbers = [f"{plan.best.peak_bytes / 1e9:.1f}", f"{plan.best.extra_flops:.1%}"]
        name = "ViT-S + GRU" if network == VIT else network.removeprefix(NETS)
        rows.append([what, name, f"{plain / 1e9:.1f}", chosen, *numbers])
    return table(("study", "network", "plain GB", f"plan for {budget}", "its GB", "extra FLOPs"), rows)


TABLES: dict[str, Callable[[str | int], list[str]]] = {"hardware": hardware, "scenarios": scenarios}
