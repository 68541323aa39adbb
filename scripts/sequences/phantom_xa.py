"""Synthetic coronary X-ray runs: random generator and class -> frames (T, H, W), times (T,).

A branching tree is filled by a bolus that darkens it; a lesion on the main vessel decides what happens beyond it,
graded as TIMI flow (TIMI Study Group, N Engl J Med 1985;312:932):

    timi_0   nothing beyond the lesion
    timi_1   contrast enters the vessel beyond the lesion and stays there, its end is never filled
    timi_2   the end is filled, but late
    timi_3   the end is filled at once, and washes out

How many frames filling takes has one distribution for grades 2 and 3; the frame rate, and so only the seconds,
tell them apart.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Floats = NDArray[np.floating]

XA_CLASSES = ("timi_0", "timi_1", "timi_2", "timi_3")

MIN_RATE, MAX_RATE = 7.5, 30.0  # frames a second
FILLING_FRAMES = (13, 24)  # from the bolus at the ostium to the end of the vessel, whatever the grade
FILLING_S = {"timi_2": (1.6, 2.4), "timi_3": (0.5, 0.9)}
FRAMES_BEFORE, FRAMES_AFTER = (1, 9), (6, 40)
LESION_AT = (0.35, 0.5)  # of the main vessel's length
PENETRATION = (0.15, 0.4)  # of what lies beyond the lesion, in grade 1
OVERSAMPLING = 2  # of drawn lines, against jagged edges


def xa_sequence(rng: np.random.Generator, label: int, rows: int) -> tuple[Floats, Floats]:
    """Frames of one coronary run, float32 (T, H, W) in [0, 1], and their times in ms, float64 (T,).

    Args:
        rng: source of all randomness.
        label: index into XA_CLASSES.
        rows: H and W.
    """
    grade = XA_CLASSES[label]
    moments, filling_frames, rate = schedule(rng, grade)
    thickness, distance, beyond = draw_tree(rng, rows)
    background = draw_chest(rng, rows)
    reach = 1.0 if grade in FILLING_S else rng.uniform(*PENETRATION) if grade == "timi_1" else 0.0
    washes_out = grade == "timi_3" or rng.random() < 0.5
    attenuation = rng.uniform(0.8, 1.3)
    photons = rng.uniform(300, 1500)
    pan = rng.normal(0, 0.03 * rows, (2, 1)) * np.linspace(0, 1, len(moments))
    heart_hz, phase = rng.uniform(0.8, 1.8), rng.uniform(0, 2 * np.pi)
    beat = 0.012 * rows * np.sin(2 * np.pi * heart_hz * np.arange(len(moments)) / rate + phase)
    border = collimator(rng, rows)
    frames = np.empty((len(moments), rows, rows), np.float32)
    for i, moment in enumerate(moments):
        filled = contrast(moment / filling_frames, distance, beyond, reach, washes_out)
        scene = background * np.exp(-attenuation * thickness * filled)
        scene = ndimage.shift(scene, (pan[0, i] + beat[i], pan[1, i] + 0.5 * beat[i]), order=1, mode="nearest")
        first = 1.1 if i == 0 else 1.0  # fluoroscopy: the first frame is bright and noisy
        dose = photons * (0.25 if i == 0 else 1.0)
        frames[i] = first * rng.poisson(scene * dose) / dose * border
    return np.clip(frames * rng.uniform(0.7, 0.95), 0, 1), np.arange(len(moments)) * (1000.0 / rate)


def schedule(rng: np.random.Generator, grade: str) -> tuple[Floats, int, float]:
    """Frames since the bolus began (T,), negative before it; frames that filling takes; frames a second."""
    filling = int(rng.integers(FILLING_FRAMES[0], FILLING_FRAMES[1] + 1))
    if grade in FILLING_S:
        shortest, longest = FILLING_S[grade]
        rate = filling / rng.uniform(max(shortest, filling / MAX_RATE), min(longest, filling / MIN_RATE))
    else:
        rate = np.exp(rng.uniform(np.log(MIN_RATE), np.log(MAX_RATE)))
    before, after = int(rng.integers(*FRAMES_BEFORE)), int(rng.integers(*FRAMES_AFTER))
    moments = np.arange(-before, filling + after, dtype=np.float64) + rng.uniform(0, 1)
    return moments, filling, float(rate)


def contrast(progress: float, distance: Floats, beyond: Floats, reach: float, washes_out: bool) -> Floats:
    """Contrast at each pixel of the tree, 0 to 1, (H, W).

    Args:
        progress: time since the bolus began, 1 when a free vessel is filled to its end.
        distance: from the ostium along the tree, 1 at the end of the main vessel, (H, W).
        beyond: share of the way from the lesion to the end, 0 before the lesion, (H, W).
        reach: how far beyond the lesion contrast gets, 0 to 1.
        washes_out: whether the bolus ends within the run.
    """
    front = 1 / (1 + np.exp(-(progress - distance) / 0.03))
    tail = 1 / (1 + np.exp((progress - distance - 0.9) / 0.08)) if washes_out else 1.0
    stopped = (beyond > 0) & (beyond > reach)
    lingers = (beyond > 0) & (reach < 1)  # grade 1: what got through hangs
    return np.where(stopped, 0.0, front * np.where(lingers, 0.8, tail))


def draw_tree(rng: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Thickness, distance from the ostium and share beyond the lesion of each pixel, three float32 (H, W)."""
    size = rows * OVERSAMPLING
    layers = [Image.new("F", (size, size)) for _ in range(3)]
    pens = [ImageDraw.Draw(layer) for layer in layers]
    lesion = rng.uniform(*LESION_AT)
    angle = rng.uniform(0.25, 0.75) * np.pi * rng.choice([-1, 1]) + np.pi / 2
    start = (0.5 - 0.38 * np.cos(angle), 0.5 - 0.38 * np.sin(angle))
    main = _winding(rng, start, angle, 0.85)
    branches = []
    for at in np.concatenate([rng.uniform(0.1, lesion - 0.08, 2), rng.uniform(lesion + 0.1, 0.8, 3)]):
        heading = angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        point = main[int(at * (len(main) - 1))]
        branches.append((float(at), _winding(rng, point, heading, rng.uniform(0.25, 0.4))))
    for at, line in [*branches, (0.0, main)]:  # the main vessel last: it lies on top
        length = 1.0 if at == 0.0 else rng.uniform(0.35, 0.5)
        for i in range(len(line) - 1):
            along = at + (i / (len(line) - 1)) * min(length, 1.0 - at + 0.05)
            past = max(along - lesion, 0.0) / (1.0 - lesion) if at == 0.0 or at > lesion else 0.0
            width = (0.034 if at == 0.0 else 0.02) * (1 - 0.6 * i / len(line))
            narrow = 0.35 if at == 0.0 and abs(along - lesion) < 0.02 else 1.0
            ends = [(x * size, y * size) for x, y in line[i : i + 2]]
            for pen, value in zip(pens, (width / 0.034, along, past), strict=True):
                pen.line(ends, fill=value, width=max(1, round(width * narrow * size)))
    thickness = layers[0].resize((rows, rows), Image.Resampling.BOX)
    distance, beyond = (layer.resize((rows, rows), Image.Resampling.NEAREST) for layer in layers[1:])
    mask = np.asarray(thickness, np.float32)
    spread = [ndimage.maximum_filter(np.asarray(layer, np.float32), 3) for layer in (distance, beyond)]
    return ndimage.gaussian_filter(mask, 0.003 * rows), spread[0], spread[1]


def _winding(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float
) -> list[tuple[float, float]]:
    """A winding line of (x, y) points in image widths, steps of 0.015."""
    count = max(3, int(length / 0.015))
    angles = angle + np.cumsum(rng.normal(0, 0.07, count)) + rng.uniform(-0.4, 0.4) * np.linspace(0, 1, count)
    xs = start[0] + 0.015 * np.cumsum(np.cos(angles))
    ys = start[1] + 0.015 * np.cumsum(np.sin(angles))
    return [start, *zip(xs.tolist(), ys.tolist(), strict=True)]


def draw_chest(rng: np.random.Generator, rows: int) -> Floats:
    """Transmission through everything but the contrast: spine, ribs, soft tissue, float32 (H, W) in (0, 1]."""
    y, x = np.meshgrid(*[(np.arange(rows) + 0.5) / rows] * 2, indexing="ij")
    tissue = 0.75 + 0.1 * ndimage.gaussian_filter(rng.standard_normal((rows, rows)), 0.12 * rows) * 0.24 * rows
    spine = 1 - rng.uniform(0.1, 0.25) * np.exp(-(((x - rng.uniform(0.1, 0.9)) / 0.12) ** 2))
    ribs = 1 - 0.05 * (np.sin(2 * np.pi * (rng.uniform(2, 4) * y + rng.uniform(-0.5, 0.5) * x + rng.random())) > 0.6)
    return np.clip(tissue * spine * ribs, 0.25, 1.0).astype(np.float32)


def collimator(rng: np.random.Generator, rows: int) -> Floats:
    """1 inside the exposed field, 0 on the black border, (H, W)."""
    field = np.zeros((rows, rows), np.float32)
    top, bottom, left, right = rng.integers(0, max(rows // 16, 1), 4)
    field[top : rows - bottom, left : rows - right] = 1.0
    return field
