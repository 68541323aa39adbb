"""How a sample lies in its bits: the attributes of the Image Pixel module (PS3.3 C.7.6.3) that decide it."""

from dataclasses import dataclass

import numpy as np

PIXEL_DATA_NAME = "(7FE0,0010) PixelData"
YBR = ("YBR_FULL", "YBR_FULL_422")


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Of one file; every frame has the same."""

    rows: int
    columns: int
    samples: int  # SamplesPerPixel, 1 or 3
    allocated: int  # BitsAllocated, 8 or 16
    stored: int  # BitsStored; HighBit is one less
    signed: bool
    by_plane: bool  # PlanarConfiguration 1
    photometric: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame: (H, W) or (H, W, 3)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, 3)

    @property
    def dtype(self) -> np.dtype:
        """Of stored values, native byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def native_bytes(self) -> int:
        """Of an uncompressed frame in the file."""
        samples = self.rows * self.columns * self.samples
        # PS3.3 C.7.6.3.1.2: of YBR_FULL_422 two pixels share one Cb and one Cr
        return (samples // 3 * 2 if self.photometric == "YBR_FULL_422" else samples) * self.allocated // 8

    def stored_values(self, samples: np.ndarray, precision: int | None = None, lossy: bool = False) -> np.ndarray:
        """Values of BitsStored bits, signed where the header says so, in `dtype`.

        PS3.5 8.1.1: bits above BitsStored are no part of the value; old files have overlays or the sign there.

        Args:
            samples: any shape, integers as decoded.
            precision: bits of a compressed sample, if compressed.
            lossy: an overshoot of the codec is cut to the range of BitsStored, not wrapped into it.
        """
        values = samples.astype(self.dtype)
        bits = min(precision or self.allocated, self.allocated)
        if not lossy:
            bits = min(bits, self.stored)
        if bits < self.allocated:
            values = (values << (self.allocated - bits)) >> (self.allocated - bits)
        if lossy and self.stored < bits:
            low = -(1 << self.stored - 1) if self.signed else 0
            values = values.clip(low, low + (1 << self.stored) - 1)
        return np.ascontiguousarray(values)


def pixels_of(data: bytes, layout: PixelLayout, order: str = "<") -> np.ndarray:
    """An uncompressed frame as (H, W) or (H, W, 3) samples; YBR_FULL_422 in full resolution.

    Args:
        data: `layout.native_bytes` of it.
        layout: of the file.
        order: of bytes, "<" or ">".
    """
    values = np.frombuffer(data, f"{order}u{layout.allocated // 8}", layout.native_bytes * 8 // layout.allocated)
    if layout.photometric == "YBR_FULL_422":  # Y1 Y2 Cb Cr
        pairs = values.reshape(layout.rows, layout.columns // 2, 4)
        chroma = pairs[:, :, None, 2:].repeat(2, axis=2)
        return np.concatenate([pairs[:, :, :2, None], chroma], axis=3).reshape(layout.shape)
    if layout.samples == 3 and layout.by_plane:
        return values.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
    return values.reshape(layout.shape)
