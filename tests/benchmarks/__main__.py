"""Run benchmarks and write what they printed to docs/benchmarks.md: `python -m tests.benchmarks [NAME ...] [--quick]`.

Without a name all of them; sections of others stay as they are. A benchmark that missed a bar is written too, and the
exit status says so.
"""

import argparse
import importlib.metadata
import os
import platform
import re
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
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, each under a minute")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    status = 0
    for name in given.names or known:
        command = ["-m", f"tests.benchmarks.{name}", "--check", *["--quick"] * given.quick]
        print(f"$ python {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout + done.stderr, flush=True)
        status |= done.returncode != 0
        tables = done.stdout.strip().rpartition("\n")[0].strip()  # all but the closing JSON
        keep(name, f"## {name}: `python {' '.join(command)}`\n\n```text\n{tables or 'It ended with an error.'}\n```\n")
    return status


def keep(name: str, section: str) -> None:
    """Put a section into the page in place of the one of that name, in the order of names."""
    above, _, below = PAGE.read_text().partition(MARK)
    parts = re.split(r"^(?=## )", below, flags=re.M)
    sections = {part[3:].partition(":")[0]: part.rstrip() + "\n" for part in parts if part.startswith("## ")}
    sections[name] = section
    measured = [f"Machine: {machine()}\n", *(sections[each] for each in sorted(sections))]
    PAGE.write_text("\n".join([above.rstrip(), "", MARK, *measured]))


if __name__ == "__main__":
    sys.exit(main())
