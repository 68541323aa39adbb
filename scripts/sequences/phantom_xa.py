"""Synthetic coronary X-ray runs: random generator and class -> frames (T, H, W), times (T,).

A branching tree is filled by a bolus that darkens it; a lesion on the main vessel decides what happens beyond it,
graded as TIMI flow (TIMI Study Group, N Engl J Med 1985;312:932):

    timi_0   nothing beyond the lesion
    timi_1   contrast enters the vessel beyond the lesion and stays there, its end is never filled
    timi_2   the end is filled, but late
    timi_3   the end is filled at once, and washes out

Grades 2 and 3 show the same course in other seconds. What a run of grade 2 has more of is shared out between
longer runs, a larger share of the run and lower frame rates, so that frame counts and rates overlap. The run's
duration is seconds too, and given that a run is of grade 2 or 3 it alone is right nine times in ten.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from scripts.sequences.phantom_ffa import OVERSAMPLING, Floats, Polyline, pixel_grid, smooth_noise, wander

XA_CLASSES = ("timi_0", "timi_1", "timi_2", "timi_3")

MIN_FRAMES, MAX_FRAMES = 10, 90
MIN_RATE, MAX_RATE = 7.5, 30.0  # frames a second
FILLING_S = {"timi_2": (1.45, 2.2), "timi_3": (0.5, 0.8)}  # from the ostium to the end of a vessel
BETWEEN_S = 1.05  # of filling: the border of the two grades
FILLING_SHARE = (0.25, 0.75)  # of the run's duration, before it is shared out
LESION_AT = (0.30, 0.45)  # of the main vessel's length
PENETRATION = (0.3, 0.6)  # of what lies beyond the lesion, in grade 1
MAIN_WIDTH, BRANCH_WIDTH = 0.045, 0.026  # in image widths


def xa_sequence(rng: np.random.Generator, label: int, rows: int) -> tuple[Floats, Floats]:
    """Frames of one coronary run, float32 (T, H, W) in [0, 1], and their times in ms, float64 (T,).

    Args:
        rng: source of all randomness.
        label: index into XA_CLASSES.
        rows: H and W.
    """
    grade = XA_CLASSES[label]
    progress, rate = schedule(rng, grade)
    reach = {"timi_0": 0.0, "timi_1": rng.uniform(*PENETRATION)}.get(grade, 1.0)
    bolus = rng.uniform(0.8, 1.1)  # its length: how long a point stays filled, in filling times
    thickness, distance, beyond = draw_tree(rng, rows)
    background = draw_chest(rng, rows)
    attenuation = rng.uniform(1.0, 1.6)
    exposure, photons = rng.uniform(0.7, 0.95), rng.uniform(400, 1500)
    motion = table_pan(rng, len(progress)) + heart_beat(rng, len(progress), rate)  # (T, 2)
    field = collimator(rng, rows)

    vessel = thickness > 0.01  # contrast is computed where there can be any: a tenth of the pixels
    inside, along, past = thickness[vessel], distance[vessel], beyond[vessel]
    frames = np.empty((len(progress), rows, rows), np.float32)
    for i in range(len(frames)):
        scene = background.copy()
        scene[vessel] *= np.exp(-attenuation * inside * contrast(progress[i], along, past, reach, bolus))
        scene = ndimage.shift(scene, motion[i] * rows, order=1, mode="nearest")
        first = i == 0  # fluoroscopy: the first frame is bright and noisy
        dose = photons * (0.25 if first else 1.0)
        frames[i] = (1.1 if first else 1.0) * exposure * field * rng.poisson(scene * dose) / dose
    return np.clip(frames, 0, 1), np.arange(len(frames)) * (1000.0 / rate)


def schedule(rng: np.random.Generator, grade: str) -> tuple[Floats, float]:
    """Progress of the bolus at each frame, (T,), and frames a second.

    Progress is below 0 before the bolus, 0 when it enters the tree, 1 when it has reached the end of a free vessel.
    """
    speeds = FILLING_S.get(grade) or FILLING_S[str(rng.choice(list(FILLING_S)))]
    filling_s = rng.uniform(*speeds)
    quickness = np.sqrt(BETWEEN_S / filling_s)  # above 1 for grade 3
    share = np.exp(rng.uniform(*np.log(FILLING_SHARE))) * quickness**-0.3
    duration_s = filling_s / share
    slowest = max(MIN_RATE * max(quickness, 1.0) ** 1.5, (MIN_FRAMES - 1) / duration_s)
    quickest = min(MAX_RATE * min(quickness, 1.0) ** 1.5, (MAX_FRAMES - 1) / duration_s)
    rate = float(np.exp(rng.uniform(np.log(slowest), np.log(quickest))))
    num_frames = int(np.clip(round(duration_s * rate) + 1, MIN_FRAMES, MAX_FRAMES))
    start_s = rng.uniform(0.05, 0.6) * (duration_s - filling_s)
    return (np.arange(num_frames) / rate - start_s) / filling_s, rate


def contrast(progress: float, distance: Floats, beyond: Floats, reach: float, bolus: float) -> Floats:
    """Contrast at some points of the tree, 0 to 1, (N,).

    Args:
        progress: of the bolus, as `schedule` has it.
        distance: from the ostium along the tree, 1 at the end of the main vessel, (N,).
        beyond: share of the way from the lesion to the end, 0 before the lesion, (N,).
        reach: how far beyond the lesion contrast gets, 0 to 1.
        bolus: progress from the arrival of contrast at a point to its wash-out.
    """
    front = 1 / (1 + np.exp(-(progress - distance) / 0.03))
    tail = 1 / (1 + np.exp((progress - distance - bolus) / 0.08))
    hangs = (beyond > 0) & (reach < 1)  # grade 1: what got through the lesion stays
    stopped = (beyond > 0) & (beyond > reach)
    return np.where(stopped, 0.0, front * np.where(hangs, 0.85, tail))


# --- what is drawn ---


def draw_tree(rng: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Thickness, distance from the ostium and share beyond the lesion of each pixel, three float32 (H, W)."""
    size = rows * OVERSAMPLING
    layers = [Image.new("F", (size, size)) for _ in range(3)]
    pens = [ImageDraw.Draw(layer) for layer in layers]
    lesion = rng.uniform(*LESION_AT)
    angle = rng.uniform(0, 2 * np.pi)
    start = (0.5 - 0.36 * np.cos(angle), 0.5 - 0.36 * np.sin(angle))
    main = wander(rng, start, angle, rng.uniform(-0.6, 0.6), 0.8)
    sides = rng.permutation([-1, 1, -1, 1, -1, 1])
    places = [*rng.uniform(0.06, lesion - 0.06, 2), *rng.uniform(lesion + 0.06, 0.85, 4)]
    for side, place in zip(sides, places, strict=True):
        at = int(place * (len(main) - 1))
        heading = np.arctan2(main[at + 1][1] - main[at][1], main[at + 1][0] - main[at][0])
        turn, length = side * rng.uniform(0.5, 1.1), rng.uniform(0.25, 0.42)
        branch = wander(rng, main[at], heading + turn, rng.uniform(-0.6, 0.6), length)
        distances = np.linspace(place, min(1.0, place + 0.5), len(branch))
        draw_vessel(pens, branch, distances, BRANCH_WIDTH, lesion if place > lesion else 1.0, size)
    draw_vessel(pens, main, np.linspace(0, 1, len(main)), MAIN_WIDTH, lesion, size)  # last: it lies on top
    thickness = np.asarray(layers[0].resize((rows, rows), Image.Resampling.BOX), np.float32)
    distance, beyond = (
        ndimage.maximum_filter(np.asarray(layer.resize((rows, rows), Image.Resampling.NEAREST), np.float32), 3)
        for layer in layers[1:]
    )
    return ndimage.gaussian_filter(thickness, 0.003 * rows), distance, beyond


def draw_vessel(
    pens: list[ImageDraw.ImageDraw],
    line: Polyline,
    distances: Floats,
    width: float,
    lesion: float,
    size: int,
) -> None:
    """Draw a tapering vessel on three layers: thickness, distance, share beyond the lesion.

    Args:
        pens: one a layer.
        line: points (x, y) in image widths.
        distances: of the points from the ostium.
        width: at the start, in image widths.
        lesion: distance at which the lesion narrows it.
        size: of the layers in pixels.
    """
    tapered = width * np.linspace(1.0, 0.45, len(line))
    for i in range(len(line) - 1):
        values = (
            tapered[i] / MAIN_WIDTH,
            distances[i],
            max(distances[i] - lesion, 0.0) / (1.0 - lesion + 1e-9),
        )
        narrowing = 0.35 if abs(distances[i] - lesion) < 0.02 else 1.0
        ends = [(x * size, y * size) for x, y in line[i : i + 2]]
        for pen, value in zip(pens, values, strict=True):
            pen.line(ends, fill=float(value), width=max(1, round(tapered[i] * narrowing * size)))


def draw_chest(rng: np.random.Generator, rows: int) -> Floats:
    """Transmission through all but the contrast: soft tissue, heart, spine, ribs, float32 (H, W) in (0, 1]."""
    y, x = pixel_grid(rows)
    tissue = 0.75 + 0.06 * smooth_noise(rng, rows, 0.08)
    centre_y, centre_x = rng.uniform(0.4, 0.7, 2)
    heart = 1 - rng.uniform(0.1, 0.25) / (1 + np.exp((np.hypot(y - centre_y, x - centre_x) - 0.35) / 0.02))
    spine = 1 - rng.uniform(0.1, 0.25) * np.exp(-(((x - rng.uniform(0.0, 1.0)) / 0.12) ** 2))
    bands = np.sin(2 * np.pi * (rng.uniform(1.5, 3) * y + rng.uniform(-0.8, 0.8) * (x - x**2) + rng.random()))
    ribs = 1 - rng.uniform(0.03, 0.07) / (1 + np.exp((0.55 - bands) / 0.08))
    return np.clip(tissue * heart * spine * ribs, 0.2, 1.0).astype(np.float32)


def collimator(rng: np.random.Generator, rows: int) -> Floats:
    """1 inside the exposed field, 0 on the black border, (H, W)."""
    field = np.zeros((rows, rows), np.float32)
    top, bottom, left, right = rng.integers(1, rows // 16 + 1, 4)
    field[top : rows - bottom, left : rows - right] = 1.0
    return field


def table_pan(rng: np.random.Generator, num_frames: int) -> Floats:
    """Shift of the picture as the table moves, in image widths, (T, 2)."""
    begins = rng.uniform(0, 0.7)
    moved = np.clip((np.linspace(0, 1, num_frames) - begins) / 0.3, 0, 1)
    return moved[:, None] * rng.normal(0, 0.025, 2)


def heart_beat(rng: np.random.Generator, num_frames: int, rate: float) -> Floats:
    """Shift of the picture as the heart beats, in image widths, (T, 2)."""
    beats_hz, phase = rng.uniform(0.8, 1.8), rng.uniform(0, 2 * np.pi)
    beat = np.sin(2 * np.pi * beats_hz * np.arange(num_frames) / rate + phase)
    return 0.010 * np.stack([beat, 0.5 * beat], axis=1)
