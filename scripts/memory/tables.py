"""Cards and typical studies -> the tables of docs/memory.md."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from scripts.memory.budget import free_bytes
from scripts.memory.largest import sizes_of
from scripts.memory.plan import in_words, make_plan, table
from scripts.memory.subjects import named_workload

VIT = "vit_small_patch14_reg4_dinov2"
NETS = "monai.networks.nets."
SWIN = NETS + "swin_unetr.SwinTransformer"
HEADED = {VIT: "ViT-S, GRU", SWIN: "Swin, GRU"}
CARDS_GB = (8, 12, 16, 24, 40, 48, 80)
STRATEGIES: dict[str, dict[str, Any]] = {
    "nothing": {"kind": "none"},
    "selective": {"kind": "selective"},
    "every block": {"kind": "blocks", "every": 1},
}
HARDWARE = (  # what is enlarged, what it is called, network, shape to start from; a sequence of one frame each
    ("batch", "ViT-S, frames of 224", VIT, (8, 1, 3, 224, 224)),
    ("batch", "ViT-S, frames of 392", VIT, (8, 1, 3, 392, 392)),
    ("volume", "UNet, side of a volume", NETS + "UNet", (1, 1, 96, 96, 96)),
    ("volume", "DynUNet, side of a volume", NETS + "DynUNet", (1, 1, 96, 96, 96)),
    ("volume", "SwinUNETR, side of a volume", NETS + "SwinUNETR", (1, 1, 96, 96, 96)),
)
SCENARIOS = (  # what it is, network, shape of a batch
    ("angiography, 16 x 20 frames of 224", VIT, (16, 20, 3, 224, 224)),
    ("angiography, 16 x 20 frames of 392", VIT, (16, 20, 3, 392, 392)),
    ("angiography, 4 x 96 frames of 224", VIT, (4, 96, 3, 224, 224)),
    ("brain MRI, whole 256^3", NETS + "UNet", (1, 1, 256, 256, 256)),
    ("brain MRI, whole 256^3", NETS + "DynUNet", (1, 1, 256, 256, 256)),
    ("cardiac 4D, 30 x 128^3 as a batch", NETS + "UNet", (30, 1, 128, 128, 128)),
    ("cardiac 4D, 30 x 128^3 over time", SWIN, (1, 30, 1, 128, 128, 128)),
    ("lung CT 512x512x400, whole", NETS + "DynUNet", (1, 1, 512, 512, 400)),
    ("lung CT 512x512x400, 2 patches of 192^3", NETS + "DynUNet", (2, 1, 192, 192, 192)),
    ("lung CT 512x512x400, 2 patches of 128^3", NETS + "SwinUNETR", (2, 1, 128, 128, 128)),
)


def hardware(_: str | int) -> list[str]:
    """The most frames of one step, and the largest volume, that train on cards of several sizes."""
    rows = []
    with tqdm(total=len(HARDWARE) * len(STRATEGIES) * len(CARDS_GB), leave=False, disable=None) as bar:
        for what, title, network, shape in HARDWARE:
            with sizes_of(named_workload(network, shape), what) as sizes:
                for name, strategy in STRATEGIES.items():
                    found = []
                    for gigabytes in CARDS_GB:
                        found.append(str(sizes.largest(strategy, free_bytes(int(gigabytes * 1e9)))))
                        bar.update()
                    rows.append([title, name, *found])
    return table(("what fits", "computed again", *[f"{gigabytes} GB" for gigabytes in CARDS_GB]), rows)


def scenarios(budget: str | int) -> list[str]:
    """Typical studies: the peak of plain training, and the plan for this budget."""
    rows = []
    for study, network, shape in tqdm(SCENARIOS, leave=False, disable=None):
        plan = make_plan(named_workload(network, shape), budget)
        chosen = ["nothing fits", "", "", ""]
        if plan.best is not None:
            peak, extra = plan.best.peak_bytes / 1e9, max(plan.best.extra_flops, 0.0)
            chosen = [plan.micro_batch(plan.best), in_words(plan.best.strategy), f"{peak:.1f}", f"{extra:.1%}"]
        name = HEADED.get(network, network.removeprefix(NETS))
        rows.append([study, name, f"{plan.plain.peak_bytes / 1e9:.1f}", *chosen])
    columns = ("study", "network", "plain GB", "micro-batch", "computed again", "planned GB", "extra FLOPs")
    return table(columns, rows)


TABLES: dict[str, Callable[[str | int], list[str]]] = {"hardware": hardware, "scenarios": scenarios}
