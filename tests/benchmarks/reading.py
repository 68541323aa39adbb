"""Reading an X-ray run: 20 of 96 frames against all, our reader against MONAI's, frames a second of each encoding.

    python -m tests.benchmarks.reading [--quick] [--check]

The runs are synthetic (96 frames of a phantom, 512 x 512), and beside them the public Siemens run of ../shared/data
where that folder is. All of it runs on one core. MONAI's reader leaves the choice of the decoder to pydicom.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pydicom
from monai.data import PydicomReader
from pydicom import uid

from scripts.dicom.pixels import decoder_versions
from scripts.dicom.sequence import read_frames, read_header
from scripts.sequences.choice import FrameChoice, choose_frames
from scripts.sequences.phantom_xa import xa_sequence
from tests.benchmarks.report import Figure, finish, peak_bytes, print_table, timed_pairs
from tests.conftest import save_dicom

NUM_FRAMES, ROWS, CHOSEN = 96, 512, 20
FASTER, LESS_MEMORY = 3.0, 4.0
NOT_SLOWER = 1.0
ENCODINGS = {
    "raw": uid.ExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg": uid.JPEGBaseline8Bit,
    "jpeg2000": uid.JPEG2000Lossless,
}
SIEMENS = Path(__file__).parents[3] / "shared" / "data" / "real_xa" / "xa_siemens_rubo0002_96f_jpegbaseline.dcm"


def phantom_frames() -> np.ndarray:
    """(NUM_FRAMES, ROWS, ROWS) uint8: the frames of one synthetic run, from its start again when they are used up."""
    frames, _ = xa_sequence(np.random.default_rng(0), 3, ROWS)
    stored = np.round(frames * 255).astype(np.uint8)
    return stored[np.arange(NUM_FRAMES) % len(stored)]


def write_run(path: Path, frames: np.ndarray, syntax: str, **attributes: object) -> Path:
    """One multi-frame file of the frames, at 15 frames a second."""
    timing = {"FrameIncrementPointer": 0x00181063, "FrameTime": "66.667"}
    by_pydicom = syntax in (uid.RLELossless, uid.JPEG2000Lossless)
    save_dicom(path, frames, syntax=uid.ExplicitVRLittleEndian if by_pydicom else syntax, **timing, **attributes)
    if by_pydicom:
        run = pydicom.dcmread(path)
        run.compress(uid.UID(syntax), encoding_plugin="pylibjpeg", generate_instance_uid=False)
        run.save_as(path)
    return path


def write_runs(folder: Path) -> dict[str, Path]:
    """A file of the same frames in each encoding, and the real one."""
    frames = phantom_frames()
    runs = {name: write_run(folder / f"{name}.dcm", frames, syntax) for name, syntax in ENCODINGS.items()}
    return runs | ({"siemens (real, jpeg)": SIEMENS} if SIEMENS.is_file() else {})


def read_ours(path: Path, frame_choice: str = "all") -> np.ndarray:
    """Stored values as the bundle reads them: header, its checks, choice, pixels of the chosen frames."""
    header = read_header(path)
    return read_frames(header, choose_frames(header.frame_times_ms, FrameChoice(frame_choice, CHOSEN)).tolist())


def read_monai(path: Path) -> tuple[np.ndarray, dict]:
    """The same file through MONAI's PydicomReader."""
    reader = PydicomReader()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the affine that such a file does not have
        return reader.get_data(reader.read(str(path)))


def peak_of_reading(path: Path, frame_choice: str, repeats: int) -> float:
    """Peak resident bytes over a start that has read one frame; a process that never imports torch or MONAI."""
    start = "from pathlib import Path\nfrom scripts.dicom.sequence import read_frames, read_header\n"
    start += "from scripts.sequences.choice import FrameChoice, choose_frames\n"
    start += f"path = Path({str(path)!r})\nread_frames(read_header(path), [0])"
    work = f"header = read_header(path)\nchoice = FrameChoice({frame_choice!r}, {CHOSEN})\n"
    work += "kept = read_frames(header, choose_frames(header.frame_times_ms, choice).tolist())"
    return statistics.median(peak_bytes(start, work) for _ in range(repeats))


def chosen_against_all(runs: dict[str, Path], quick: bool) -> list[Figure]:
    """20 of 96 frames against all 96: time, peak memory over the same start, bytes of the arrays."""
    figures, rows = [], []
    for name, path in runs.items():
        if name == "raw" or (quick and name == "rle"):
            continue
        pair = timed_pairs(lambda p=path: read_ours(p, "uniform"), lambda p=path: read_ours(p), 3 if quick else 7)
        chosen, everything = (peak_of_reading(path, kind, 1 if quick else 3) for kind in ("uniform", "all"))
        arrays = read_ours(path).nbytes / read_ours(path, "uniform").nbytes
        rows.append(
            (
                name,
                f"{pair.second_s * 1e3:.0f}",
                f"{pair.first_s * 1e3:.0f}",
                f"{pair.ratio:.2f}",
                f"{everything / 1e6:.1f}",
                f"{chosen / 1e6:.1f}",
                f"{everything / chosen:.2f}",
                f"{arrays:.2f}",
            )
        )
        figures += [
            Figure(f"{name}: {CHOSEN} of {NUM_FRAMES}, times faster", pair.ratio, FASTER),
            Figure(f"{name}: {CHOSEN} of {NUM_FRAMES}, times less peak memory", everything / chosen, LESS_MEMORY),
            Figure(f"{name}: {CHOSEN} of {NUM_FRAMES}, times fewer array bytes", arrays, LESS_MEMORY),
        ]
    columns = ("run", "all ms", "20 ms", "faster", "all MB", "20 MB", "less memory", "array bytes")
    title = f"{CHOSEN} of {NUM_FRAMES} frames (uniform) against all; MB: peak resident over the same start"
    print_table(title, columns, rows)
    return figures


def against_monai(runs: dict[str, Path], quick: bool) -> list[Figure]:
    """All frames through our reader and through PydicomReader; from ours, frames a second on one core."""
    figures, rows = [], []
    for name, path in runs.items():
        pair = timed_pairs(lambda p=path: read_ours(p), lambda p=path: read_monai(p), 3 if quick else 9)
        rate = NUM_FRAMES / pair.first_s
        rows.append(
            (name, f"{pair.first_s * 1e3:.0f}", f"{pair.second_s * 1e3:.0f}", f"{pair.ratio:.2f}", f"{rate:.0f}")
        )
        figures.append(Figure(f"{name}: PydicomReader's time over ours", pair.ratio, NOT_SLOWER))
        figures.append(Figure(f"{name}: frames per second and core", rate))
    columns = ("run", "ours ms", "PydicomReader ms", "theirs / ours", "our frames/s")
    print_table(f"All {NUM_FRAMES} frames on one core; ours with header, checks and times", columns, rows)
    return figures


def describe_results(folder: Path) -> None:
    """What both readers give for one small run, stored as MONOCHROME2 and as MONOCHROME1."""
    shown = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    rows: list[tuple[str, str, str]] = []
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        stored = shown if photometric == "MONOCHROME2" else 255 - shown
        path = write_run(folder / f"{photometric}.dcm", stored, ENCODINGS["raw"], PhotometricInterpretation=photometric)
        header, ours, (theirs, meta) = read_header(path), read_ours(path), read_monai(path)
        known = int(np.isfinite(header.frame_times_ms).sum())
        timing = {"00181063", "00181065", "FrameTime", "FrameTimeVector"} & set(meta)
        rows += [
            (f"{photometric}: shape, type", f"{ours.shape} {ours.dtype}", f"{theirs.shape} {theirs.dtype}"),
            ("  axes, values", axes_and_values(ours, stored), axes_and_values(theirs, stored)),
            ("  photometric", header.photometric, "kept" if "00280004" in meta else "dropped"),
            ("  frame times", f"{known} of {len(shown)} known", "a raw tag" if timing else "dropped"),
        ]
    print_table("A run of 3 frames, 4 rows, 6 columns as each reader gives it", ("", "ours", "PydicomReader"), rows)


def axes_and_values(result: np.ndarray, stored: np.ndarray) -> str:
    """Which axes a result has, and whether its values are those stored (T, H, W) or their inverse."""
    for order in itertools.permutations(range(3)):
        moved, axes = stored.transpose(order), ", ".join("THW"[axis] for axis in order)
        if np.array_equal(result, moved):
            return f"{axes}, as stored"
        if np.array_equal(result, 255 - moved):
            return f"{axes}, inverted"
    return "neither those stored nor their inverse"


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        runs = write_runs(Path(folder))
        figures = chosen_against_all(runs, options.quick)
        figures += against_monai(runs, options.quick)
        describe_results(Path(folder))
    settings = {"quick": options.quick, "frames": NUM_FRAMES, "rows": ROWS, "decoders": decoder_versions()}
    return finish("reading", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())
