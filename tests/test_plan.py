import pytest
import torch
import yaml
from monai.networks import nets
from torch import nn

from scripts.__main__ import main
from scripts.memory import checkpointing
from scripts.memory.budget import CARDS_GB, CONTEXT_BYTES, card_bytes, free_bytes, read_budget
from scripts.memory.largest import sizes_of
from scripts.memory.measure import simulate_training_step
from scripts.memory.plan import Plan, make_plan
from scripts.memory.search import NONE, Workload, cheapest_modules, search, whole_batch
from scripts.memory.subjects import config_workload, named_workload


def layers() -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(6)])


ROWS = Workload(layers, (512, 64), 8, amp=False)
UNET = Workload(lambda: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2), (1, 80, 80, 80), amp=False)


def test_what_fits_as_it_is_is_left_as_it_is():
    best, _ = search(ROWS, 10**12)
    assert (best.strategy, best.accumulation, best.extra_flops) == ({"kind": "none"}, 1, 0.0)


def test_accumulation_comes_first_since_it_costs_no_flops():
    plain = whole_batch(ROWS, {"kind": "none"})
    best, _ = search(ROWS, int(0.6 * plain.peak_bytes))
    assert best.strategy == {"kind": "none"}
    assert best.accumulation == 2
    assert best.extra_flops == 0.0


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


def test_images_grow_by_whole_patches_and_frames_by_one():
    workload = named_workload("test_vit", (1, 2, 3, 32, 32))
    plain = {"kind": "none"}
    for what, step in (("image", 16), ("frames", 1)):
        with sizes_of(workload, what) as sizes:
            assert sizes.step == step
            free = sizes.peak(plain, 5 * step)
            assert sizes.largest(plain, free) == 5 * step
            assert sizes.largest(plain, free - 1) == 4 * step


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
        (["--table", "everything"], "table is everything"),
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


def test_named_networks_fit_their_shape():
    for name in ("UNet", "VNet", "DynUNet", "AttentionUnet", "SwinUNETR"):
        workload = named_workload(f"monai.networks.nets.{name}", (2, 1, 64, 64, 64))
        assert (workload.batch_size, workload.shape) == (2, (1, 64, 64, 64))
    assert whole_batch(named_workload("monai.networks.nets.UNet", "1,1,32,32,32"), {"kind": "none"}).peak_bytes > 10**8
