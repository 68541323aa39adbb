"""Functional groups of an enhanced object (PS3.3 C.7.6.16): values put into the header, and each frame's clock."""

from pathlib import Path

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from scripts.dicom.display import COLLIMATOR_TAGS, SHUTTER_TAGS
from scripts.dicom.times import Clock, comparable, moment
from scripts.dicom.values import field_name, items, number, value_of
from scripts.errors import SequenceError, bad_value

PER_FRAME, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
FUNCTIONAL_TAGS = (PER_FRAME, SHARED)
# Macros of PS3.3 C.7.6.16.2 and C.8.19.6, and the attributes taken from them. PixelIntensityRelationshipLUTSequence is
# not among them: it is for analysis, not for display (PS3.3 C.7.6.16.2.13), as the modality LUT of X-ray.
LIFTED = {
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    "FrameDisplayShutterSequence": SHUTTER_TAGS,
    "CollimatorShapeSequence": COLLIMATOR_TAGS,
    "PositionerPositionSequence": ("PositionerPrimaryAngle", "PositionerSecondaryAngle"),
    "FrameAnatomySequence": ("FrameLaterality",),
}
ONE_A_SEQUENCE = ("FrameVOILUTSequence", "FrameDisplayShutterSequence", "CollimatorShapeSequence")


def lift_groups(path: Path, header: Dataset, num_frames: int) -> tuple[Clock | None, list[str]]:
    """Put shared values and those of the first frame at the top level of the header, where these are absent.

    Args:
        path: for messages.
        header: with FUNCTIONAL_TAGS; changed in place.
        num_frames: T.

    Returns:
        The clock of each frame, None where no group has one; and warnings of groups that differ between frames.

    Raises:
        SequenceError: per-frame groups of another number than the frames.
    """
    frames, shared = items(header, PER_FRAME), items(header, SHARED)
    if PER_FRAME in header and len(frames) != num_frames:
        raise SequenceError(
            bad_value(
                path, f"items of {field_name(PER_FRAME)}", len(frames), f"{num_frames}, one a frame (PS3.3 C.7.6.16)"
            )
        )
    if not frames and not shared:
        return None, []
    warnings = []
    for group, keywords in LIFTED.items():
        if group in ONE_A_SEQUENCE and len({_stored(frame, group, keywords) for frame in frames}) > 1:
            warnings.append(f"{field_name(group)} differs between frames: that of the first is used for all")
        found = next((inner for holder in [*shared[:1], *frames[:1]] for inner in items(holder, group)[:1]), Dataset())
        for keyword in keywords:
            tag = Tag("ImageLaterality" if keyword == "FrameLaterality" else keyword)
            element = found.get_item(keyword)
            if isinstance(element, RawDataElement) and tag not in header:
                header[tag] = element._replace(tag=tag)
            elif element is not None and tag not in header:  # a sequence of undefined length
                header[tag] = element
    return _clock(frames), warnings


def _stored(frame: Dataset, group: str, keywords: tuple[str, ...]) -> tuple:
    """The values of a group as they are in the file: to compare a thousand frames, none is converted."""
    elements = [inner.get_item(keyword) for inner in items(frame, group)[:1] for keyword in keywords]
    values = [getattr(element, "value", None) for element in elements]
    return tuple(value.strip(b" \0") if isinstance(value, bytes) else str(value) for value in values)


def _clock(frames: list[Dataset]) -> Clock | None:
    """Date-times of each frame's content, the representative ones first, else its temporal position in seconds."""
    contents = [next(iter(items(frame, "FrameContentSequence")), Dataset()) for frame in frames]
    for keyword in ("FrameReferenceDateTime", "FrameAcquisitionDateTime"):
        clock = comparable(keyword, [moment(value_of(content, keyword) or "") for content in contents])
        if None not in clock.moments_ms[:1] and len(set(clock.moments_ms)) > 1:
            return clock
    keyword = "TemporalPositionTimeOffset"  # of the Temporal Position macro; some put it beside the date-times
    positions = [next(iter(items(frame, "TemporalPositionSequence")), Dataset()) for frame in frames]
    values = [value_of(p if keyword in p else c, keyword) for p, c in zip(positions, contents, strict=True)]
    offsets = [number(value) for value in values]
    if any(offset is not None for offset in offsets):
        return Clock(keyword, [None if offset is None else offset * 1000.0 for offset in offsets], [])
    return None
