"""A folder or list of PNG, JPEG, TIFF or BMP frames, a multi-page TIFF or one image -> header, chosen frames.

Of an image only size, kind of pixel and pixels are read; EXIF and other metadata stay behind, the EXIF orientation
too: no angiography camera turns its sensor, and viewers that set it would turn one frame and not the next.
"""

import csv
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader, check_decoded_size
from scripts.errors import SequenceError, bad_value, reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
TIMES_FILE = "times.csv"
MS_PER_UNIT = {"time_ms": 1.0, "elapsed_seconds": 1000.0}  # columns of the times file that hold a time
MAX_TIMES_BYTES = 2**24
MAX_PAGES = 5000  # Pillow takes 0.2 ms for each, whatever is in it
VALID = "a complete, valid PNG, JPEG, TIFF or BMP"
GREY_BITS = {"1": 8, "L": 8, "LA": 8, "I;16": 16, "I;16B": 16, "I;16L": 16}  # Pillow's modes -> BitsStored
COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr")  # become RGB; CMYK is for printing and needs a profile
WITH_ALPHA = ("LA", "RGBA", "PA")
TIFF_PHOTOMETRIC, TIFF_BITS, WHITE_IS_ZERO = 262, 258, 0  # TIFF 6.0 section 8

warnings.filterwarnings("ignore", module=r"PIL(\.|$)")  # of metadata, and of sizes that are checked here


@dataclass(frozen=True)
class _Page:
    rows: int
    columns: int
    colour: bool
    alpha: bool
    narrowed: bool  # colour of 16 bits, which Pillow reads with 8
    bits: int
    inverted: bool  # white is zero, and Pillow leaves it so


def read_header(source: Path | Sequence[Path], max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> SequenceHeader:
    """The header of a sequence of images, all of one size.

    A list keeps its order. A folder is ordered by the numbers in its names, 2 before 10, or by its times.csv: columns
    `file` and `time_ms` or `elapsed_seconds`. Without that file the times are unknown.

    Args:
        source: image, folder or list of images.
        max_sequence_bytes: largest decoded size accepted, checked before anything is decoded.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: an image that cannot be read, images of several sizes or depths, or too large.
    """
    files, times, notes = _ordered(source)
    name = source if isinstance(source, Path) else files[0].parent
    pages: list[_Page] = []
    for file in files:
        pages += _pages(file, single=len(files) > 1)
    first = pages[0]
    for i, page in enumerate(pages):
        if (page.rows, page.columns, page.bits) != (first.rows, first.columns, first.bits):
            which, of = (files[i].name, files[0].name) if len(files) > 1 else (f"page {i}", "page 0")
            found = f"{page.rows} x {page.columns} with {page.bits} bits"
            needs = f"{first.rows} x {first.columns} with {first.bits} bits, as {of}: one sequence has one format"
            raise SequenceError(bad_value(name, f"size of {which}", found, needs))
    colour, inverted = any(page.colour for page in pages), {page.inverted for page in pages}
    if len(inverted) > 1:
        raise SequenceError(bad_value(name, "PhotometricInterpretation", "0 and 1 in one sequence", "one of them"))
    frame_bytes = first.rows * first.columns * (3 if colour else (first.bits + 7) // 8)
    check_decoded_size(name, len(pages), frame_bytes, f"{first.rows} x {first.columns}", max_sequence_bytes)
    for what, count in (
        ("alpha channel left out", sum(page.alpha for page in pages)),
        ("16 bit colour read with 8 bits", sum(page.narrowed for page in pages)),
    ):
        if count:
            notes.append(f"{what}: {count} of {len(pages)} frames")
    if times is None:
        times = np.full(len(pages), np.nan)
        times[0] = 0.0
    return SequenceHeader(
        container="images",
        files=tuple(files),
        num_frames=len(pages),
        rows=first.rows,
        columns=first.columns,
        frame_times_ms=times,
        photometric="RGB" if colour else "MONOCHROME1" if first.inverted else "MONOCHROME2",
        bits_stored=first.bits,
        warnings=tuple(notes),
    )


def read_frames(header: SequenceHeader, indices: Sequence[int]) -> np.ndarray:
    """Pixels of chosen frames: (T, H, W) uint8 or uint16, or (T, H, W, 3) RGB uint8; only these are decoded.

    Args:
        header: of `read_header`.
        indices: 0-based, ascending.

    Raises:
        SequenceError: the pixels cannot be decoded, or are not what the header says.
    """
    colour = header.photometric == "RGB"
    shape = (header.rows, header.columns, 3) if colour else (header.rows, header.columns)
    frames = np.empty((len(indices), *shape), np.uint8 if header.bits_stored <= 8 else np.uint16)
    if len(header.files) == 1:  # opened once: a page is found by going through those before it
        with reading(header.files[0], "pixels", VALID), _opened(header.files[0]) as image:
            for position, page in enumerate(indices):
                if page:
                    image.seek(page)
                frames[position] = _pixels(header, image)
        return frames
    for position, index in enumerate(indices):
        with reading(header.files[index], "pixels", VALID), _opened(header.files[index]) as image:
            frames[position] = _pixels(header, image)
    return frames


def folder_images(folder: Path) -> list[Path]:
    """The images of a folder in the order of the numbers in their names.

    Raises:
        SequenceError: there is none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    files = sorted((path for path in found if path.is_file()), key=natural_order)
    if not files:
        raise SequenceError(bad_value(folder, "folder", "without images", f"files that end in {', '.join(SUFFIXES)}"))
    return files


def natural_order(path: Path) -> tuple:
    """Sort key of a file name by the numbers in it: 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _pixels(header: SequenceHeader, image: Image.Image) -> np.ndarray:
    if image.size != (header.columns, header.rows):
        found, needs = (
            f"{image.height} x {image.width}",
            f"{header.rows} x {header.columns}, as when its header was read",
        )
        raise SequenceError(bad_value(header.files[0], "size", found, needs))
    if header.photometric == "RGB":
        image.info.pop("transparency", None)  # of a palette: Pillow warns of it, and it is not shown
        return np.asarray(image.convert("RGB"))
    return np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with reading(path, "content", VALID, (Image.DecompressionBombError,)):
        image = Image.open(path, formats=FORMATS)
    with image:
        yield image


def _pages(path: Path, single: bool) -> list[_Page]:
    """What the header of each page of an image says; nothing is decoded."""
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    pages = []
    with reading(path, "header", VALID, (Image.DecompressionBombError,)), _opened(path) as image:
        several = image.format in ("TIFF", "PNG") and getattr(image, "n_frames", 1) > 1  # not a camera's MPO preview
        if several and (single or image.format == "PNG"):
            needs = "one picture in each file, or one TIFF with all pages"
            raise SequenceError(bad_value(path, "frames", getattr(image, "n_frames", 1), needs))
        if several and getattr(image, "n_frames", 1) > MAX_PAGES:
            raise SequenceError(bad_value(path, "frames", getattr(image, "n_frames", 1), f"at most {MAX_PAGES}"))
        for page in range(getattr(image, "n_frames", 1) if several else 1):
            if page:
                image.seek(page)
            pages.append(_page(path, image))
    return pages


def _page(path: Path, image: Image.Image) -> _Page:
    if image.mode not in GREY_BITS and image.mode not in COLOUR:
        known = "8 or 16 bit grey, palette or RGB"
        raise SequenceError(bad_value(path, "kind of pixel", f"{image.mode} (Pillow's mode)", known))
    bits, tags = GREY_BITS.get(image.mode, 8), getattr(image, "tag_v2", {})
    if bits == 16:
        bits = int(tags.get(TIFF_BITS, (16,))[0])  # 12 bit TIFF
    return _Page(
        rows=image.height,
        columns=image.width,
        colour=image.mode in COLOUR,
        alpha=image.mode in WITH_ALPHA or "transparency" in image.info,
        narrowed=bits == 8 and any(";16" in str(tile.args) for tile in getattr(image, "tile", ())),
        bits=bits,
        inverted=bits > 8 and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO,  # Pillow 13 turns 8 bit only
    )


def _ordered(source: Path | Sequence[Path]) -> tuple[list[Path], np.ndarray | None, list[str]]:
    """Files in the order of time, their times in ms if a times file gives them, and what is odd about those."""
    if not isinstance(source, Path):
        if not source:
            raise SequenceError(bad_value("list of files", "image", "empty", "at least one path"))
        return list(source), None, []
    if not source.is_dir():
        return [source], None, []
    files = folder_images(source)
    if not (source / TIMES_FILE).is_file():
        return files, None, []
    rows, repeated = _read_times(source / TIMES_FILE)
    return _by_time(files, rows, repeated)


def _read_times(path: Path) -> tuple[dict[str, float], int]:
    """Name of a file -> its time in ms, NaN where it is no number from 0 on; how many rows name a file again."""
    if path.stat().st_size > MAX_TIMES_BYTES:
        raise SequenceError(bad_value(path, "file size", f"{path.stat().st_size} bytes", f"at most {MAX_TIMES_BYTES}"))
    times: dict[str, float] = {}
    repeated = 0
    with (
        reading(path, "content", "a CSV file in UTF-8", (csv.Error,)),
        path.open(encoding="utf-8-sig", newline="") as file,
    ):
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        unit = next((column for column in MS_PER_UNIT if column in columns), None)
        if unit is None or "file" not in columns:
            raise SequenceError(bad_value(path, "columns", "others", f"file and one of {', '.join(MS_PER_UNIT)}"))
        for row in table:
            name = Path((row["file"] or "").strip()).name
            repeated += name in times
            times.setdefault(name, _milliseconds(row[unit], MS_PER_UNIT[unit]))
    return times, repeated


def _milliseconds(text: str | None, ms_per_unit: float) -> float:
    try:
        time = float(text or "") * ms_per_unit
    except ValueError:
        return math.nan
    return time if math.isfinite(time) and time >= 0 else math.nan


def _by_time(files: list[Path], rows: dict[str, float], repeated: int) -> tuple[list[Path], np.ndarray, list[str]]:
    """Files by time; one without a time keeps its place behind the file that its name follows."""
    times = [rows.get(file.name, math.nan) for file in files]
    moments, last = [], -1.0
    for time in times:
        last = last if math.isnan(time) else time
        moments.append(last)
    order = sorted(range(len(files)), key=lambda i: moments[i])
    ordered = np.array([times[i] for i in order])
    known = ordered[np.isfinite(ordered)]
    counts = {
        "unknown": len(files) - len(known),
        "equal to the one before": int((np.diff(known) == 0).sum()),
        "earlier than the one of the name before": int((np.diff(moments) < 0).sum()),
        "given again, the first of them kept": repeated,
        "of files that are absent": len(rows.keys() - {file.name for file in files}),
    }
    notes = [f"{TIMES_FILE}: {count} of {len(files)} times {what}" for what, count in counts.items() if count]
    if known.size:
        ordered -= known[0]
    else:
        ordered[0] = 0.0
    return [files[i] for i in order], ordered, notes
