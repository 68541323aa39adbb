"""Sharing a list: every exam is taken by one process, and none is left with the long ones at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.features.sharing import share
from scripts.keys import IMAGE, SOURCE
from tests.conftest import assert_message

ROOT = Path(__file__).resolve().parent.parent
# A process of torchrun: takes exams until there are none, each costing its size in milliseconds.
TAKE = """
import json, os, sys, time
from pathlib import Path
import torch.distributed as dist
from scripts.features.sharing import share
from scripts.training.engine import start_processes, stop_processes
start_processes()
folder, rank = Path(sys.argv[1]), dist.get_rank()
items = [{"image": path, "source": path.name} for path in sorted(folder.glob("*.raw"))]
for turn in ("first", "second"):
    taken = []
    for index in share(items, rank, 2):
        taken.append(index)
        if turn == "first":
            time.sleep(items[index]["image"].stat().st_size / 1000)
    dist.barrier()
    (folder / f"{turn}-{rank}.json").write_text(json.dumps(taken))
stop_processes()
"""


def make_items(folder: Path, sizes: list[int]) -> list[dict]:
    paths = [folder / f"{i:03d}.raw" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    return [{IMAGE: path, SOURCE: path.name} for path in paths]


@pytest.mark.parametrize(("number", "world_size"), [(0, 1), (5, 1), (7, 3), (2, 4)])
def test_processes_without_a_group_take_every_nth_exam(tmp_path, number, world_size):
    items = make_items(tmp_path, [1] * number)
    taken = [list(share(items, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for part in taken for index in part) == list(range(number))
    assert all(part == sorted(part) for part in taken)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (1, 1)])
def test_rank_that_is_none_of_the_processes_is_refused(rank, world_size):
    with pytest.raises(ValueError) as error:
        next(share([], rank, world_size))
    assert_message(error.value, "configuration", "rank", rank, f"0 to {world_size - 1}")


def test_processes_of_torchrun_take_each_exam_once_and_end_together_though_the_longest_is_listed_last(tmp_path):
    sizes = [40] * 25 + [1000]
    make_items(tmp_path, sizes)
    script = tmp_path / "take.py"
    script.write_text(TAKE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for turn in ("first", "second"):  # the second begins its count anew
        taken = [json.loads((tmp_path / f"{turn}-{rank}.json").read_text()) for rank in range(2)]
        assert sorted(taken[0] + taken[1]) == list(range(len(sizes)))
        if turn == "first":
            costs = [sum(sizes[index] for index in part) for part in taken]
            assert max(costs) <= 1.1 * min(costs), costs
            assert any(part and part[0] == len(sizes) - 1 for part in taken)
