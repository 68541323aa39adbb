"""Small DICOM exams for tests, and datalist items that name them as `read_datalist` would."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, XRayAngiographicImageStorage

from scripts.keys import IMAGE, PATIENT, SEQUENCE, SOURCE

SIDE = 24  # rows and columns


def write_exam(path: Path, num_frames: int = 4, seed: int = 0, frame_time_ms: float = 100.0) -> Path:
    """Write an uncompressed multi-frame XA object that `seed` alone determines, frames (T, SIDE, SIDE)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_frames, SIDE, SIDE), dtype=np.uint8)
    exam = Dataset()
    exam.file_meta = FileMetaDataset()
    exam.file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    exam.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{seed + 1}")
    exam.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    exam.SOPClassUID = XRayAngiographicImageStorage
    exam.SOPInstanceUID = exam.file_meta.MediaStorageSOPInstanceUID
    exam.Modality = "XA"
    exam.Rows, exam.Columns = SIDE, SIDE
    exam.SamplesPerPixel, exam.PhotometricInterpretation = 1, "MONOCHROME2"
    exam.BitsAllocated = exam.BitsStored = 8
    exam.HighBit, exam.PixelRepresentation = 7, 0
    exam.NumberOfFrames = num_frames
    exam.FrameIncrementPointer = 0x00181063  # FrameTime
    exam.FrameTime = frame_time_ms
    exam.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    exam.save_as(path, enforce_file_format=True)
    return path


def item_of(path: Path, **more: Any) -> dict[str, Any]:
    """A datalist item of that file."""
    return {IMAGE: path, SOURCE: path.name, SEQUENCE: path.stem, PATIENT: f"of {path.stem}", **more}
