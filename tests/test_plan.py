import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from monai.networks import nets
from torch import nn

from scripts.__main__ import main
from scripts.memory import checkpointing, largest
from scripts.memory import plan as plans
from scripts.memory.budget import CARDS_GB, CONTEXT_BYTES, card_bytes, free_bytes, read_budget
from scripts.memory.knapsack import cheapest_modules
from scripts.memory.largest import sizes_of
from scripts.memory.measure import simulate_training_step
from scripts.memory.plan import Plan, make_plan, plain_batch
from scripts.memory.search import NONE, Workload, search, searching, whole_batch
from scripts.memory.subjects import config_workload, named_workload
from scripts.memory.tables import CARDS_GB as CARDS
from scripts.memory.tables import HARDWARE, SCENARIOS, STRATEGIES, TABLES
from scripts.planning import run_plan

ROOT = Path(__file__).resolve().parent.parent


def layers() -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(6)])


ROWS = Workload(layers, (512, 64), 8, amp=False)
UNET = Workload(lambda: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2), (1, 80, 80, 80), amp=False)


class Steered(nn.Module):
    """A network whose way depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, values):
        return self.layer(values) if values.sum() > 0 else values


def test_what_fits_as_it_is_is_left_as_it_is():
    best, _ = search(ROWS, 10**12)
    assert (best.strategy, best.accumulation, best.extra_flops) == ({"kind": "none"}, 1, 0.0)


def test_accumulation_comes_first_since_it_costs_no_flops():
    plain = whole_batch(ROWS, {"kind": "none"})
    best, _ = search(ROWS, int(0.6 * plain.peak_bytes))
    assert best.strategy == {"kind": "none"}
    assert best.accumulation == 2
    assert best.extra_flops == 0.0


def test_chunks_are_halved_from_all_frames_of_a_micro_batch_down_to_what_is_foretold_to_fit():
    with searching(named_workload("test_vit", "1,6,3,96,96", splittable=False)) as (searcher, network):
        chunks = [strategy for strategy, _ in searcher.uniform(network) if strategy["kind"] == "chunks"]
        assert [strategy["frames"] for strategy in chunks] == [8, 4, 2, 1]
        for strategy in chunks[:2]:
            searcher.candidate(strategy, 1)
        free_bytes = searcher.measured(chunks[2], 1).peak_bytes
        assert searcher.is_worth_trying(chunks[2], 0.3, free_bytes, None)
        assert not searcher.is_worth_trying(chunks[2], 0.3, free_bytes // 2, None)


@pytest.mark.parametrize("sizes", ["1,14", "2,7", "4,4"])
def test_many_chunks_are_foretold_from_few(sizes):
    workload = named_workload("test_vit", f"{sizes},3,96,96", splittable=False)
    with searching(workload) as (searcher, _):
        strategy = {"kind": "chunks", "frames": 2}
        foretold, simulated = searcher.candidate(strategy, 1), searcher.measured(strategy, 1)
        assert foretold.measurement is None
        assert foretold.peak_bytes == pytest.approx(simulated.peak_bytes, rel=0.005)
        assert foretold.extra_flops == pytest.approx(simulated.flops / searcher.plain.flops - 1, rel=1e-6)


@pytest.mark.parametrize("share", [0.8, 0.65])
def test_a_plan_fits_and_no_uniform_strategy_that_fits_costs_less(share):
    plain = whole_batch(UNET, {"kind": "none"})
    free = int(share * plain.peak_bytes)
    best, candidates = search(UNET, free, everything=True)
    fitting = [found for found in candidates if found.peak_bytes <= free]
    assert best in fitting
    assert len(candidates) >= 8
    assert best.extra_flops <= min(found.extra_flops for found in fitting) + NONE
    again = simulate_training_step(UNET.make_network, lambda: (torch.empty(1, 1, 80, 80, 80),), strategy=best.strategy)
    assert again.peak_bytes == best.peak_bytes <= free


def test_a_loss_over_the_batch_and_batch_norm_are_not_split():
    batch_norm = Workload(lambda: nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256)), (64,), 4096)
    over_pairs = Workload(layers, (512, 64), 8, splittable=False)
    for workload in (batch_norm, over_pairs):
        free = int(0.7 * whole_batch(workload, {"kind": "none"}).peak_bytes)
        _, candidates = search(workload, free)
        assert {found.accumulation for found in candidates} == {1}


def test_the_knapsack_saves_what_is_asked_for_with_the_fewest_flops():
    plain = simulate_training_step(layers, lambda: (torch.empty(512, 64),), device_type="cpu")
    one = plain.ran["0.0"].held_bytes + plain.ran["0.1"].held_bytes
    network = layers()
    assert cheapest_modules(network, plain, one // 2, 1.0) != []
    flops = [sum(part.flops for name, part in plain.ran.items() if name.startswith(f"{n}.")) for n in range(6)]
    assert len(set(flops)) == 1
    for number in (1, 3, 5):
        chosen = cheapest_modules(network, plain, int(number * 0.9 * one), 1.0)
        cost = sum(sum(part.flops for at, part in plain.ran.items() if at.startswith(name)) for name in chosen)
        assert 0 < cost <= number * flops[0]
    assert cheapest_modules(network, plain, 10**12, 1.0) == []


def test_the_plan_is_yaml_whose_strategy_can_be_applied():
    plan = make_plan(UNET, card_bytes(int(0.7 * whole_batch(UNET, {"kind": "none"}).peak_bytes)))
    knobs = yaml.safe_load(plan.yaml)
    assert knobs == plan.knobs
    assert knobs.keys() == {"batch_size", "accumulation_steps", "checkpointing", "amp"}
    assert checkpointing.checked(knobs["checkpointing"])["kind"] != "none"
    assert "chosen" in plan.text
    assert "At the peak" in plan.text


def test_what_cannot_fit_is_refused_with_the_card_it_needs():
    plan = make_plan(UNET, CONTEXT_BYTES + 10**7)
    assert plan.best is None
    assert "Nothing fits" in plan.text
    with pytest.raises(ValueError, match="needs a card"):
        plan.yaml  # noqa: B018


@pytest.mark.parametrize(("what", "step"), [("batch", 1), ("volume", 32)])
def test_the_largest_input_fits_and_the_next_does_not(what, step):
    volumes = Workload(lambda: nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 1, 1)), (1, 32, 32, 32))
    workload = volumes if what == "volume" else Workload(layers, (8, 64), 2)
    plain = {"kind": "none"}

    def peak(size):
        shape = {"batch": workload.shape, "volume": (1, size, size, size)}[what]
        batch = size if what == "batch" else workload.batch_size
        return whole_batch(Workload(workload.make_network, shape, batch), plain).peak_bytes

    with sizes_of(workload, what) as sizes:
        found = {free: sizes.largest(plain, free) for free in (60_000_000, 90_000_000)}
        simulated = len(sizes.peaks[str(plain)])
        assert [sizes.largest(plain, free) for free in found] == list(found.values())
        assert len(sizes.peaks[str(plain)]) == simulated <= 14  # what was simulated once is known
        assert sizes.largest(plain, 1) == 0
    for free, size in found.items():
        assert size > 0
        assert size % step == 0
        assert peak(size) <= free < peak(size + step)
    assert len(set(found.values())) == 2


def test_a_large_plain_batch_is_read_off_the_line_through_smaller_ones(monkeypatch):
    workload = named_workload("test_vit", (16, 4, 3, 64, 64))
    plain = whole_batch(workload, {"kind": "none"})
    assert plain_batch(workload) == plain
    monkeypatch.setattr(plans, "MOST_FRAMES", 32)  # lines through 2 and 4 samples of 16
    foretold = plain_batch(workload)
    assert foretold.measurement is None
    assert foretold.peak_bytes == pytest.approx(plain.peak_bytes, rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_many_frames_are_read_off_the_line_through_fewer(strategy, monkeypatch):
    workload = named_workload("test_vit", (2, 4, 3, 64, 64))
    with sizes_of(workload, "frames") as sizes:
        simulated = {size: sizes.peak(strategy, size) for size in (90, 120)}
    monkeypatch.setattr(largest, "SIMULATED", 64)
    with sizes_of(workload, "frames") as sizes:
        foretold = {size: sizes.peak(strategy, size) for size in simulated}
        fits = sizes.largest(strategy, simulated[120])
        assert {32, 64} < sizes.peaks[str(strategy)].keys()
    assert foretold == pytest.approx(simulated, rel=1e-3)
    assert abs(fits - 120) <= 1


def test_images_grow_by_whole_patches():
    plain = {"kind": "none"}
    with sizes_of(named_workload("test_vit", (4, 1, 3, 32, 32)), "image") as sizes:
        assert sizes.step == 16
        free = sizes.peak(plain, 80)
        assert sizes.largest(plain, free) == 80
        assert sizes.largest(plain, free - 1) == 64


def test_budgets_are_sizes_or_cards():
    assert read_budget("24GB") == read_budget("24 gb") == read_budget("RTX-3090") == read_budget(24 * 10**9)
    assert read_budget("NVIDIA GeForce RTX 3090") == 24 * 10**9
    assert read_budget("24GiB") == 24 * 2**30
    assert read_budget("500MB") == 5 * 10**8
    assert all(read_budget(card) == size * 10**9 for card, size in CARDS_GB.items())
    assert free_bytes(24 * 10**9) < 24 * 10**9
    assert free_bytes(card_bytes(10**9)) in range(10**9 - 1, 10**9 + 2)


@pytest.mark.parametrize(
    "budget",
    [
        "-3GB",
        "0",
        "24",
        24,
        -1,
        16.5,
        float("nan"),
        "24QB",
        "0GB",
        "",
        "GB",
        "24XB",
        "rtx 309",
        "nan",
        "inf",
        "1e99",
        "24GB extra",
    ],
)
def test_a_budget_that_is_none_is_told_in_one_line(budget):
    with pytest.raises(ValueError, match="budget is") as caught:
        read_budget(budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "subject is nothing"),
        (["--network", "monai.networks.nets.UNett", "--shape", "1,1,32,32,32"], "Near: UNet"),
        (["--network", "no.such.Net", "--shape", "1,1,32,32,32"], "network is no.such.Net"),
        (["--network", "test_vitt", "--shape", "1,2,3,32,32"], "encoder_name is test_vitt"),
        (["--network", "test_vit", "--shape", "1,3,32,32"], "shape is"),
        (["--network", "test_vit"], "shape is empty"),
        (["--network", "test_vit", "--shape", "1,2,3,32,-32"], "shape is"),
        (["--network", "test_vit", "--shape", "1,2,3,33,37"], "SequenceClassifier: input is"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--budget", "-1GB"], "budget is"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--budget", "0.1GB"], "budget is 0.10 GB"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--largest", "width"], "largest is width"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--optimizer", "lion"], "optimizer is lion"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--budget", "24"], "Did you mean 24GB"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--amp", "maybe"], "amp is maybe"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--report"], "report is True"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--batch_size", "4"], "flag is --batch_size"),
        (["--network", "test_vit", "--shape", "1,2,3,32,0"], "shape is"),
        (["--network", "test_vit", "--shape", "1,99999,3,32,32"], "from 1 to 4096"),
        (["--network", "test_vit", "--shape", "4096,4096,3,4096,4096"], "2\\^40 values"),
        (["--network", ".", "--shape", "1,1,32,32,32"], "network is ."),
        (["--network", "torch.Tensor", "--shape", "1,1,32,32,32"], "network is torch.Tensor"),
        (["--network", "torch.nn.functional.relu", "--shape", "1,1,32,32,32"], "a class of networks"),
        (
            ["--network", "torch.nn.Conv3d", "--shape", "1,1,32", "--options", "{out_channels: 1, kernel_size: 3}"],
            "input is",
        ),
        (["--network", "monai.networks.nets.UNet", "--shape", "1,1,32,32,32", "--options", "5"], "options is 5"),
        (["--network", f"{__name__}.Steered", "--shape", "2,8,8"], "steered by values"),
        (["--network", f"{__name__}.Steered", "--shape", "2,8,8", "--largest", "batch"], "steered by values"),
        (["--network", f"{__name__}.Steered", "--shape", "2,8,8", "--largest", "volume"], "needs one of batch"),
        (["--config", "configs/finetune.yaml", "--batch_sise", "4"], "--batch_size"),
        (["--config", "configs/finetune.yaml", "--batch_size", "0"], "--batch_size is 0"),
        (["--config", "configs/train.yaml"], "a workflow that has it"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--everything", "nope"], "everything is nope"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--report", ""], "report is empty"),
        (["--network", "test_vit", "--shape", "1,2,3,32,32", "--report", "x", "--fragment", "./x"], "another file"),
        (
            ["--network", "test_vit", "--shape", "1,2,3,32,32", "--largest", "batch", "--report", "x"],
            "flag is --report",
        ),
        (["--config", "configs/finetune.yaml", "--shape", "1,2,3,32,32"], "flag is --shape"),
        (["--config", "5"], "config is 5"),
        (["--table", "hardware", "--network", "test_vit"], "flag is --network"),
        (["--table", "everything"], "table is everything"),
        (["--table", "hardware", "--budget", "-1GB"], "budget is -1GB"),
        (["--config", "no/such.yaml"], "config is no/such.yaml"),
    ],
)
def test_nonsense_gets_one_line(monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["scripts", "plan", *arguments])
    monkeypatch.setattr("scripts.overrides.show_errors_plainly", lambda: None)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        main()
    assert "\n" not in str(caught.value)


def test_the_command_prints_a_plan_and_its_status_says_whether_something_fits(monkeypatch, capsys):
    call = ["scripts", "plan", "--network", "test_vit", "--shape", "2,3,3,64,64"]
    monkeypatch.setattr("scripts.overrides.show_errors_plainly", lambda: None)
    monkeypatch.setattr("sys.argv", [*call, "--budget", "t4"])
    main()
    assert "accumulation_steps: 1" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*call[:2], "--network", "torch.nn.Conv3d", "--shape", "1,1,64,64,64"])
    with pytest.raises(ValueError, match="kernel_size"):  # a class that needs more than the shape tells
        main()
    conv = ["--network", "torch.nn.Conv3d", "--shape", "1,1,64,64,64", "--options", "{out_channels: 9, kernel_size: 3}"]
    monkeypatch.setattr("sys.argv", [*call[:2], *conv, "--budget", "601MB"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "Nothing fits" in capsys.readouterr().out


def test_a_config_is_planned_for_by_its_ids(tmp_path):
    config = tmp_path / "finetune.yaml"
    config.write_text(
        "batch_size: 2\naccumulation_steps: 3\nmax_frames: 4\nimage_size: 32\n"
        "network_def: {_target_: torch.nn.Conv3d, in_channels: 4, out_channels: 1, kernel_size: 1}\n"
    )
    workload = config_workload(str(config)).workload
    assert (workload.batch_size, workload.shape) == (6, (4, 3, 32, 32))
    plan = make_plan(workload, "8GB")
    assert isinstance(plan, Plan)
    assert plan.best is plan.plain
    config.write_text("batch_size: 2\n")
    with pytest.raises(ValueError, match="id is network_def"):
        config_workload(str(config))


SMALL = {"encoder_name": "test_vit", "image_size": 32, "max_frames": 3, "batch_size": 2, "accumulation_steps": 3}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A clone without models or exams, seen from another folder."""
    shutil.copytree(ROOT / "configs", tmp_path / "clone" / "configs")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(tmp_path / "clone" / "configs" / "finetune.yaml")


def test_finetuning_is_planned_on_a_fresh_clone_from_any_folder_as_it_will_train(elsewhere):
    found = {}
    for blocks in (0, -1):
        subject = config_workload(elsewhere, SMALL | {"trainable_blocks": blocks})
        assert "start_from" in subject.assumed
        assert "5 classes" in subject.assumed
        workload = subject.workload
        assert (workload.batch_size, workload.shape) == (6, (3, 3, 32, 32))
        learned = sum(p.numel() for p in workload.make_network().parameters() if p.requires_grad)
        step = whole_batch(workload, {"kind": "none"}).measurement
        assert step.by_cause["optimizer"] == pytest.approx(8 * learned, rel=0.1)  # two numbers of AdamW a weight
        found[blocks] = step
    sizes = [found[blocks].held_bytes for blocks in (0, -1)]
    assert 3 * sizes[0] < sizes[-1]  # frozen blocks hold nothing


def test_what_a_clone_has_is_not_filled_in(elsewhere, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"task": {"type": "binary", "classes": ["no", "yes"]}, "test": []}))
    there = {"datalist": str(tmp_path / "list.json"), "dataset_dir": str(tmp_path), "start_from": "scratch"}
    subject = config_workload(elsewhere, SMALL | there)
    assert subject.assumed == ""
    network = subject.workload.make_network()
    assert network.head(torch.zeros(1, 3, network.encoder.num_features)).shape == (1, 2)


def test_the_fragment_is_laid_over_finetuning_as_it_is(elsewhere, tmp_path):
    fragment = tmp_path / "plans" / "plan.yaml"
    settings = {"amp": False, "splittable": True}
    text, fits = run_plan(config=elsewhere, overrides=SMALL, settings=settings, budget="24GB", fragment=fragment)
    assert fits
    assert text.endswith(f"written: {fragment}, to be given after configs/finetune.yaml")
    knobs = yaml.safe_load(fragment.read_text())
    assert knobs == {"batch_size": 6, "accumulation_steps": 1, "checkpointing": {"kind": "none"}, "amp": False}
    assert knobs.keys() <= yaml.safe_load((ROOT / "configs" / "finetune.yaml").read_text()).keys()
    both = config_workload([elsewhere, str(fragment)], {name: SMALL[name] for name in ("encoder_name", "image_size")})
    assert both.workload.batch_size == 6


def test_tables_of_the_docs_are_what_the_command_prints():
    page = (ROOT / "docs" / "memory.md").read_text()
    printed = {
        name: re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.S)[1].strip().splitlines() for name in TABLES
    }
    assert {name: len(rows) for name, rows in printed.items()} == {
        "hardware": len(HARDWARE) * len(STRATEGIES) + 2,
        "scenarios": len(SCENARIOS) + 2,
    }
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in printed["hardware"]]
    assert cells[0][2:] == [f"{gigabytes} GB" for gigabytes in CARDS]
    what, title, network, shape = HARDWARE[2]
    row = next(row for row in cells if row[:2] == [title, "nothing"])
    with sizes_of(named_workload(network, shape), what) as sizes:
        assert str(sizes.largest(STRATEGIES["nothing"], free_bytes(CARDS[0] * 10**9))) == row[2]


def test_named_networks_fit_their_shape():
    for name in ("UNet", "VNet", "DynUNet", "AttentionUnet", "SwinUNETR"):
        workload = named_workload(f"monai.networks.nets.{name}", (2, 1, 64, 64, 64))
        assert (workload.batch_size, workload.shape) == (2, (1, 64, 64, 64))
    assert whole_batch(named_workload("monai.networks.nets.UNet", "1,1,32,32,32"), {"kind": "none"}).peak_bytes > 10**8
