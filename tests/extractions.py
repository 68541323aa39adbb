"""Runs of extraction that a test can kill: processes forked from one that has imported everything."""

import faulthandler
import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from scripts.features.extract import cache_features
from scripts.features.fingerprint import make_fingerprint
from scripts.store.store import FeatureStore
from scripts.training.engine import start_processes, stop_processes
from tests.exams import item_of
from tests.test_extract import preprocessing_of

ROOT = Path(__file__).resolve().parent.parent
POLL_S, MAX_POLLS = 0.001, 60_000  # about a minute; counted in polls, so that a machine may sleep meanwhile


class Kill(NamedTuple):
    """When a process is killed, if it still runs."""

    delay_s: float
    shards: int = 0  # the delay begins when the store has so many


NEVER = Kill(math.inf)
# The writer of a store with a shard for each exam, so that there are some at any moment.
OFTEN = functools.partialmethod(FeatureStore.writer, shard_seconds=0.0)


class TinyEncoder(nn.Module):
    """Mean and spread of each channel, (N, 6); to the bit the same in whatever batch a frame comes."""

    name, pooling, layers = "tiny", "avg", 1

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.cat([f.mean(dim=(1, 2)), f.std(dim=(1, 2))]) for f in frames])


def extract(exams: list[Path], folder: Path, rank: int = 0, world_size: int = 1, digest: str = "0") -> None:
    """Cache the features of the exams."""
    encoder, preprocessing = TinyEncoder(), preprocessing_of()
    fingerprint = make_fingerprint(encoder, digest, preprocessing, "float32")
    options = {"batch_frames": 8, "progress": False, "rank": rank, "world_size": world_size}
    cache_features([item_of(path) for path in exams], preprocessing, encoder, folder, fingerprint, "cpu", **options)


class Extractions:
    """A process that forks others, which extract the same exams into any store.

    Args:
        exams: paths of the exams.
        log: where the processes write what goes wrong.
    """

    def __init__(self, exams: list[Path], log: Path) -> None:
        self.exams, self.log = [str(path) for path in exams], log
        strict = ["-W", "error", "-W", "ignore:`torch.jit.:DeprecationWarning"]  # torch 2.11, by ignite
        command = [sys.executable, *strict, "-c", "from tests.extractions import serve; serve()"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors, **pipes)

    def run(self, folder: Path, *kills: Kill, grouped: bool = True) -> tuple[list[int], float]:
        """Exit code of each process, -9 of a killed one, and the seconds until all had ended.

        Args:
            folder: the store.
            kills: one for each process.
            grouped: whether several processes share the exams, as under torchrun, or each wants all of them.
        """
        request = [self.exams, str(folder), grouped and len(kills) > 1, kills]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        told = self.process.stdout.readline()
        assert told, self.errors()
        return tuple(json.loads(told))

    def errors(self) -> str:
        """The end of what the processes wrote."""
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.errors()


def serve() -> None:
    """Fork the processes that each line of standard input asks for, kill them at their times, tell how they ended."""
    torch.set_num_threads(1)
    faulthandler.enable()
    tqdm.set_lock(threading.RLock())  # its own one is shared by forks: one killed with it would stop all others
    FeatureStore.writer = OFTEN
    for line in sys.stdin:
        exams, folder, grouped, kills = json.loads(line)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        begun, pids = time.monotonic(), []
        for rank in range(len(kills)):
            pids.append(os.fork())
            if not pids[-1]:
                _work([Path(path) for path in exams], Path(folder), rank, len(kills), port if grouped else None)
        codes = _watch(pids, [Kill(*kill) for kill in kills], Path(folder))
        print(json.dumps([codes, time.monotonic() - begun]), flush=True)
    os._exit(0)  # an interpreter that has torch takes seconds to tidy up


def _watch(pids: list[int], kills: list[Kill], folder: Path) -> list[int]:
    """The exit codes of processes, killed when it is time."""
    codes: dict[int, int] = {}
    reached = [0.0 if kill.shards else time.monotonic() for kill in kills]  # when there were so many shards
    polls = 0
    while len(codes) < len(pids):
        time.sleep(POLL_S)
        polls += 1
        count = len(list(folder.glob("rank*.safetensors")))
        for number, (pid, kill) in enumerate(zip(pids, kills, strict=True)):
            ended, status = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            if pid in codes:
                continue
            if not reached[number] and count >= kill.shards:
                reached[number] = time.monotonic()
            if reached[number] and time.monotonic() - reached[number] >= kill.delay_s:
                os.kill(pid, signal.SIGKILL)
            elif polls == MAX_POLLS:
                os.kill(pid, signal.SIGABRT)  # it hangs; the log tells where
    return [codes[pid] for pid in pids]


def _work(exams: list[Path], folder: Path, rank: int, world_size: int, port: int | None) -> None:
    """Extract as a process of torchrun that meets the others at a port, or without one as the only process."""
    try:
        if port is None:
            extract(exams, folder)
        else:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": world_size}
            os.environ.update({name: str(value) for name, value in place.items()})
            start_processes()
            extract(exams, folder, rank, world_size)
            stop_processes()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
