"""What may be said of a DICOM object: its kind, the facts that leave the reader, hints at a person in its pixels."""

from pathlib import Path

from pydicom import Dataset, uid

from scripts.dicom.part10 import is_not_image
from scripts.dicom.pixels import SAMPLES
from scripts.dicom.values import field_name, first, number, shown, value_of
from scripts.errors import SequenceError, bad_value

# PS3.3 C.7.3.1.1.1; DS, DF, CF, VF and FA are retired terms for angiography, of old archives
X_RAY_MODALITIES = ("XA", "RF", "DS", "DF", "CF", "VF", "CR", "DX")
EYE_MODALITIES = ("OP", "OPT", "OPTBSV", "OPTENF", "OPM", "FA")
OTHER_MODALITIES = ("OT", "XC", "GM", "ES", "CT", "MR", "US", "IVUS", "IVOCT")
# What leaves the reader beside pixels and times: known codes and numbers, so that free text in them stays behind.
CODES = {
    "Modality": (*X_RAY_MODALITIES, *EYE_MODALITIES, *OTHER_MODALITIES),
    "PhotometricInterpretation": tuple(SAMPLES),
    "PixelIntensityRelationship": ("LIN", "LOG", "DISP"),  # PS3.3 C.8.7.1.1.2
    "ImageLaterality": ("R", "L", "B", "U"),
}
ANGLES = {"PositionerPrimaryAngle": 180.0, "PositionerSecondaryAngle": 90.0}  # degrees, PS3.3 C.8.7.5
NUMBERS = {"BitsStored": (1.0, 16.0), **{key: (-most, most) for key, most in ANGLES.items()}}
FACT_TAGS = (*CODES, *NUMBERS, "SOPClassUID", "BurnedInAnnotation")

X_RAY = (
    uid.XRayAngiographicImageStorage,
    uid.EnhancedXAImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.EnhancedXRFImageStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.12.3"),  # X-Ray Angiographic Bi-Plane, retired
)
OPHTHALMIC = (
    uid.OphthalmicPhotography8BitImageStorage,
    uid.OphthalmicPhotography16BitImageStorage,
    uid.OphthalmicTomographyImageStorage,
    uid.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
    uid.WideFieldOphthalmicPhotography3DCoordinatesImageStorage,
)
SECONDARY_CAPTURE = uid.SecondaryCaptureImageStorage  # and its multi-frame forms .1 to .4


def _is_capture(sop_class: object) -> bool:
    return sop_class == SECONDARY_CAPTURE or str(sop_class).startswith(f"{SECONDARY_CAPTURE}.")


def is_x_ray(header: Dataset) -> bool:
    """True for angiographic and fluoroscopic X-ray, by class or Modality."""
    return value_of(header, "SOPClassUID") in X_RAY or value_of(header, "Modality") in ("XA", "RF")


def facts(header: Dataset) -> dict[str, str | float]:
    """Attributes that hold one of the codes known for them, or a number in its range; anything else is left out."""
    found: dict[str, str | float] = {}
    for keyword, known in CODES.items():
        value = value_of(header, keyword)
        if isinstance(value, str) and value in known:
            found[keyword] = str(value)
    for keyword, (lowest, highest) in NUMBERS.items():
        stated = number(value_of(header, keyword))
        if stated is not None and lowest <= stated <= highest:
            found[keyword] = stated
    return found


def check_class(path: Path, header: Dataset) -> list[str]:
    """What is odd about the kind of object: any image is taken, one of no angiography class with a warning.

    Raises:
        SequenceError: a class that holds no images.
    """
    field = field_name("SOPClassUID")
    stated = value_of(header, "SOPClassUID")
    known = isinstance(stated, uid.UID) and stated.type == "SOP Class"
    name = uid.UID(str(stated)).name if known else shown(stated)
    if known and is_not_image(str(stated)):
        raise SequenceError(bad_value(path, field, name, "an image storage class"))
    if stated in (*X_RAY, *OPHTHALMIC):
        return []
    if known and _is_capture(stated):
        return [f"{field} is {name}: a secondary capture, whose pixels can be anything"]
    return [f"{field} is {name}: not an angiography class"]


def privacy_warnings(header: Dataset) -> list[str]:
    """Attributes that say, or fail to deny, that a person's name stands in the pixels (PS3.3 C.7.6.1)."""
    value = value_of(header, "BurnedInAnnotation")
    if value == "NO" or (value is None and not _is_capture(value_of(header, "SOPClassUID"))):
        return []
    return [f"{field_name('BurnedInAnnotation')} is {shown(value, ('YES',))}: the pixels may show a person's data"]


def intensity_warnings(header: Dataset) -> list[str]:
    """A PixelIntensityRelationship that is none of the standard's: subtraction cannot tell linear from log."""
    value = first(value_of(header, "PixelIntensityRelationship"))
    if value is None or value in CODES["PixelIntensityRelationship"]:
        return []
    return [f"{field_name('PixelIntensityRelationship')} is {shown(value)}: taken as unknown"]
