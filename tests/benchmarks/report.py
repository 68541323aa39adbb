"""What every benchmark needs: pairs timed in turn, memory of a fresh process, a table, the closing JSON line."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Figure:
    """A measured number, and the bar it must reach or stay under, if it has one."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bar(self) -> str:
        """Such as `>= 3`; empty without a bar."""
        bars = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {bar:g}" for sign, bar in bars if bar is not None)

    @property
    def held(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True)
class Pair:
    """Seconds of two ways to do one thing, and how many times longer the second takes: medians over the pairs."""

    first_s: float
    second_s: float
    ratio: float


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed_pairs(first: Callable[[], object], second: Callable[[], object], repeats: int) -> Pair:
    """Time both in turn, `repeats` times after one call of each to warm up.

    The ratio is taken within a pair, so what slows the machine for a while slows both; who goes first alternates.
    """
    first(), second()
    pairs = []
    for repeat in range(repeats):
        order = [first, second] if repeat % 2 == 0 else [second, first]
        times = {work: seconds(work) for work in order}
        pairs.append((times[first], times[second]))
    return Pair(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def peak_bytes(start: str, work: str, over_start: bool = True) -> int:
    """Most memory that `work` holds in a fresh process, above what is there after `start`, in bytes (Linux only).

    Args:
        start: Python code: imports, inputs, a first small call that loads libraries.
        work: Python code that is measured.
        over_start: False counts what is there after `start` too: all that the process holds.
    """
    # VmHWM is the peak of this process alone; getrusage counts that of the process it was forked from.
    probe = (
        "def kib(field):\n"
        "    with open('/proc/self/status') as status:\n"
        "        return next(int(line.split()[1]) for line in status if line.startswith(field))\n"
        "import gc; gc.collect()\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak starts again from what is held now
        "before = kib('VmRSS')\n"
    )
    code = f"{start}\n{probe}{work}\nprint(kib('VmHWM') - before * {over_start:d})\n"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return int(answer.stdout.split()[-1]) * 1024


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with a title; the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  " + "  ".join([first, *others]).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def finish(name: str, figures: Sequence[Figure], settings: dict[str, object], check: bool) -> int:
    """Print the bars, then all figures as one JSON line; the exit status: 1 where `check` and a bar is missed."""
    barred = [figure for figure in figures if figure.bar]
    rows = [(f.name, f"{f.value:.2f}", f.bar, "held" if f.held else "MISSED") for f in barred]
    if rows:
        print_table("Bars", ("figure", "measured", "bar", ""), rows)
    missed = [figure.name for figure in barred if not figure.held]
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print()
    print(
        json.dumps(
            {
                "benchmark": name,
                "settings": settings,
                "machine": machine,
                "figures": {figure.name: round(figure.value, 4) for figure in figures},
                "bars": {figure.name: figure.bar for figure in barred},
                "missed": missed,
            }
        )
    )
    return int(check and bool(missed))
