"""Run every benchmark and write what it printed to docs/benchmarks.md: `python -m tests.benchmarks [--quick]`.

A benchmark that missed a bar is written too, and the exit status says so.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.report import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- Below: written by `make bench`. -->\n"
NOT_BENCHMARKS = ("__init__", "__main__", "report")
PACKAGES = ("torch", "monai", "pydicom", "numpy")


def machine() -> str:
    """One line: processor, cores, memory, versions."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(named, platform.processor() or platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}."


def main() -> int:
    """Run them in the order of their names; the exit status is 1 if any failed or missed a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, each under a minute")
    options = ["--quick"] if parser.parse_args().quick else []
    sections, status = [f"Machine: {machine()}\n"], 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in NOT_BENCHMARKS:
            continue
        command = ["-m", f"tests.benchmarks.{path.stem}", "--check", *options]
        print(f"$ python {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout + done.stderr, flush=True)
        status |= done.returncode != 0
        tables = done.stdout.strip().rpartition("\n")[0].strip()  # all but the closing JSON
        sections.append(f"## {path.stem}: `python {' '.join(command)}`\n\n```text\n{tables}\n```\n")
    kept = PAGE.read_text().partition(MARK)[0].rstrip()
    PAGE.write_text("\n".join([kept, "", MARK, *sections]))
    return status


if __name__ == "__main__":
    sys.exit(main())
