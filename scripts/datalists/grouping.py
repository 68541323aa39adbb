"""DICOM headers -> which files make one run: by series, acquisition, plane, eye and size, in the order of time."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pydicom

from scripts.dicom.part10 import open_object, reading
from scripts.dicom.times import CLOCKS, acquisition_clock, temporal_order
from scripts.errors import SequenceError

CLOCK_TAGS = (*(keyword for clock in CLOCKS for keyword in clock), "TimezoneOffsetFromUTC")
GROUPING_TAGS = [
    "PatientID",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImageType",
    "NumberOfFrames",
    "Modality",
    "ImageLaterality",
    "ContrastBolusAgent",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "Manufacturer",
    *CLOCK_TAGS,
]
OPHTHALMIC = ("OP", "OPT")
CLASS = "1.2.840.10008.5.1.4.1.1."  # PS3.4 B.5: storage SOP classes begin so
OPHTHALMIC_CLASSES = tuple(CLASS + end for end in ("77.1.5.1", "77.1.5.2", "77.1.5.4", "77.1.5.5", "77.1.5.6"))
XRAY_CLASSES = tuple(CLASS + end for end in ("12.1", "12.1.1", "12.2", "12.2.1", "12.3"))
SECONDARY_CAPTURE = CLASS + "7"  # PS3.3 A.8: a still from anywhere, not an acquisition
VOLUMES = (CLASS + "13.1.1", CLASS + "13.1.2")  # PS3.3 A.53, A.54: reconstructed X-ray volumes
OTHER_MODALITIES = ("CT", "MR", "US", "IVUS", "IVOCT", "PT", "NM", "MG", "CR", "DX", "IO", "PX", "SEG", "RTDOSE")
PLANES = ("BIPLANE A", "BIPLANE B")  # ImageType, value 3: PS3.3 C.8.7.1.1.1
SYNTHETIC_MANUFACTURER = "angiography_sequence_classification phantom"  # (0008,0070) of every synthetic exam


@dataclass(frozen=True)
class RunFile:
    """One DICOM file and what tells its run; `patient` and `run` stay inside this package."""

    path: Path
    name: str  # relative to the folder searched
    patient: Hashable
    instance: str
    synthetic: bool = False
    run: tuple[Hashable, ...] | None = None  # equal for files of one run; None: the file is one by itself
    shares_series: bool = True  # False in ophthalmic exports that give each file a series of its own
    acquisition: int | None = None
    number: int | None = None
    clock: pydicom.Dataset | None = None  # its CLOCK_TAGS alone; None: damaged


def read_run_file(path: Path, name: str) -> RunFile | str:
    """A file's place among the runs, or why it is none; a damaged one is kept, for the reader to say what is wrong.

    Args:
        path: a DICOM file.
        name: its path in the folder searched.
    """
    try:
        with open_object(path) as file, reading(name, "header"):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(GROUPING_TAGS))
            return _no_run(header) or _place(path, name, header)
    except SequenceError:
        return RunFile(path, name, top_folder(name), str(path))


def top_folder(name: str) -> tuple[str, str]:
    """What stands for the patient where nothing else does: the first folder of a path."""
    return ("folder", PurePosixPath(name).parts[0] if "/" in name else "")


def _no_run(header: pydicom.Dataset) -> str:
    """Why this object is not a run of angiography; empty if it is one, or may be."""
    if header.get("Rows") is None:
        return "no image in it"
    sop_class, modality = str(header.get("SOPClassUID")), header.get("Modality")
    if sop_class in VOLUMES:
        return "a reconstructed volume"
    if modality in OTHER_MODALITIES and sop_class not in XRAY_CLASSES + OPHTHALMIC_CLASSES:
        return f"modality {modality}, not angiography"
    return "a localizer" if "LOCALIZER" in _image_type(header) else ""


def _image_type(header: pydicom.Dataset) -> list[str]:
    value = header.get("ImageType") or ()
    return [value] if isinstance(value, str) else [str(part) for part in value]


def _place(path: Path, name: str, header: pydicom.Dataset) -> RunFile:
    sop_class = str(header.get("SOPClassUID"))
    patient = str(header.get("PatientID") or "") or top_folder(name)
    series = str(header.get("SeriesInstanceUID") or "")
    day = str(header.get("AcquisitionDateTime") or header.get("AcquisitionDate") or "")[:8]
    eye = (header.get("Modality") in OPHTHALMIC or sop_class in OPHTHALMIC_CLASSES) and bool(day)
    single = int(header.get("NumberOfFrames") or 1) == 1 and sop_class != SECONDARY_CAPTURE
    run: tuple[Hashable, ...]
    if eye:  # fluorescein and indocyanine green of one eye are two runs, taken in turns
        run = (day, str(header.get("ImageLaterality") or ""), str(header.get("ContrastBolusAgent") or ""))
    else:
        run = (series or str(path.parent), *(plane for plane in PLANES if plane in _image_type(header)))
    size = tuple(str(header.get(keyword)) for keyword in ("Rows", "Columns", "SamplesPerPixel"))
    clock = pydicom.Dataset()
    for keyword in CLOCK_TAGS:
        if keyword in header:
            clock[keyword] = header[keyword]
    number, acquisition = (header.get(keyword) for keyword in ("InstanceNumber", "AcquisitionNumber"))
    return RunFile(
        path=path,
        name=name,
        patient=patient,
        instance=str(header.get("SOPInstanceUID") or path),
        synthetic=header.get("Manufacturer") == SYNTHETIC_MANUFACTURER,
        run=(patient, eye, *run, *size) if single else None,
        shares_series=not eye,
        acquisition=None if eye or acquisition is None else int(acquisition),
        number=None if number is None else int(number),
        clock=clock,
    )


def as_sequences(files: Iterable[RunFile], root: Path, in_folder: Mapping[Path, int]) -> list[tuple[Any, Hashable]]:
    """The runs of a folder: (image, patient), `image` as a datalist has it, in the order of paths.

    Args:
        files: of `read_run_file`, in the order of paths.
        root: the folder searched.
        in_folder: DICOM files of each folder; a run of all of them is named by its folder.
    """
    runs: dict[Hashable, list[RunFile]] = defaultdict(list)
    for file in files:
        runs[(file.path,) if file.run is None else file.run].append(file)
    out: list[tuple[Any, Hashable]] = []
    for run in (part for whole in runs.values() for part in _parts(whole)):
        order = _order(run)
        folder = run[0].path.parent
        if order is None or len(run) == 1:
            out += [(file.name, file.patient) for file in run]
        elif folder != root and len(_by(run, _folder)) == 1 and in_folder[folder] == len(run):
            out.append((folder.relative_to(root).as_posix(), run[0].patient))
        else:
            out.append(([run[i].name for i in order], run[0].patient))
    return out


def _order(run: list[RunFile]) -> list[int] | None:
    """Positions of files in the order of time, as the reader will have them; None if nothing tells it."""
    clock = acquisition_clock([file.clock or pydicom.Dataset() for file in run])
    return temporal_order(clock.moments_ms, [file.number for file in run])


def _parts(run: list[RunFile]) -> list[list[RunFile]]:
    """Files of one series or eye -> runs, by AcquisitionNumber and folder where these tell any."""
    acquisitions = _by(run, lambda file: file.acquisition)
    if len(acquisitions) == len(run):  # it counts files, not runs
        acquisitions = [run]
    out = []
    for part in acquisitions:
        folders = _by(part, _folder)
        numbers = [file.number for file in part]
        # Media with names of eight characters spread a series over folders; two runs begin to count again.
        numbered = part[0].shares_series and None not in numbers and len(set(numbers)) == len(numbers)
        out += [part] if numbered or len(folders) == len(part) else folders
    return out


def _by(run: list[RunFile], key: Callable[[RunFile], Hashable]) -> list[list[RunFile]]:
    groups: dict[Hashable, list[RunFile]] = defaultdict(list)
    for file in run:
        groups[key(file)].append(file)
    return list(groups.values())


def _folder(file: RunFile) -> Path:
    return file.path.parent
