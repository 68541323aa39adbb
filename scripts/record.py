"""run.json: how an artefact was made, with what, on what, and how long it took; no person, place or folder in it.

A workflow makes a `RunRecord` when it starts and writes it beside what it leaves.
"""

import ast
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scripts.overrides import RUN_ARGUMENTS
from scripts.writing import write_file

RUN = "run.json"
PACKAGES = ("monai", "torch", "pytorch-ignite", "timm", "numpy", "scipy", "scikit-learn", "safetensors", "pydicom")
METADATA = Path(__file__).resolve().parent.parent / "configs" / "metadata.json"


class RunRecord:
    """The start of a run: its clock, and its peak of GPU memory, begin when this is made.

    Args:
        workflow: such as train.
        facts: known at the start, such as the datalist's digest.
    """

    def __init__(self, workflow: str, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = dict(facts or {})
        self.workflow, self.started, self.clock = workflow, datetime.now(UTC), time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def write(self, folders: Sequence[str | Path], facts: Mapping[str, Any]) -> None:
        """Write run.json into each folder, whole or not at all.

        Args:
            folders: made if absent.
            facts: of this workflow, as JSON holds them: seed, digests, results; paths in them are reduced too.
        """
        record = {
            "workflow": self.workflow,
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self.clock, 3),
            "command": reduced_command(sys.argv),
            "overrides": overrides(sys.argv[1:]),
            "versions": versions(),
            "host": host_class(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory_bytes(),
            **without_folders({**self.facts, **facts}),
        }
        text = json.dumps(record, indent=1) + "\n"
        for folder in folders:
            write_file(Path(folder) / RUN, text)


def write_run(
    record: RunRecord, folders: Sequence[str | Path], others: Mapping[str, Any] | None = None, **facts: Any
) -> None:
    """`RunRecord.write` for configs, with facts one by one and others together."""
    record.write(folders, {**facts, **(others or {})})


def reduced_command(arguments: Sequence[str]) -> list[str]:
    """The command line without the folders of whoever gave it."""
    program = Path(arguments[0])
    name = "monai.bundle" if program.parts[-3:-1] == ("monai", "bundle") else program.name
    return [name, *map(reduced, arguments[1:])]


def overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Ids that the command line gives, and their values as they were typed, paths reduced."""
    found = {}
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            if name not in RUN_ARGUMENTS:
                found[name] = reduced(value if has_value else next(iter(arguments[i + 1 :]), ""))
    return found


def reduced(text: str) -> str:
    """An argument, each path in it as `.../name` unless it lies inside the working directory; those name nobody."""
    option, has_value, value = text.partition("=") if text.startswith("--") else ("", "", text)
    if value.startswith("["):
        try:
            return option + has_value + str(without_folders(ast.literal_eval(value)))
        except (ValueError, SyntaxError):
            pass
    path = Path(value)
    outside = path.is_absolute() or ".." in path.parts or value.startswith("~") or "\\" in value or "://" in value
    if outside:
        value = f".../{value.replace(chr(92), '/').rstrip('/').rsplit('/', 1)[-1]}"
    return option + has_value + value


def without_folders(value: Any) -> Any:
    """The same, each text in it `reduced`."""
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    return reduced(value) if isinstance(value, str) else value


def versions() -> dict[str, str]:
    """Of the bundle, of Python and of the packages that results depend on."""
    found = {"bundle": json.loads(METADATA.read_text())["version"], "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}  # with its build, such as +cu132


def host_class() -> dict[str, Any]:
    """What kind of machine this is, not which."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:  # not Linux
        pass
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def peak_memory_bytes() -> dict[str, int | None]:
    """Most memory this process has held: resident (Linux only), and of PyTorch on its GPU."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # VmHWM is the peak of this process alone; getrusage counts that of the process it was forked from.
        resident = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    except OSError:
        resident = None
    return {"resident": resident, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}
