"""Synthetic retinal fluorescein sequences: random generator and class -> frames (T, H, W), times (T,).

A spot is defined by how it changes from early to late frames, never by how it looks in one of them. Each
course is played forwards for one class and backwards for another, over the same ranges of size, brightness
and edge, so a set of frames without its order belongs to both:

    leakage        grows, brightens, its edge blurs          normal (half of them) is this played backwards
    pooling        grows to a sharp limit, steady brightness normal (the other half) is this played backwards
    staining       keeps its size, brightens                 window_defect is this played backwards
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Floats = NDArray[np.floating]
Polyline = list[tuple[float, float]]

FFA_CLASSES = ("normal", "leakage", "pooling", "staining", "window_defect")

MIN_FRAMES, MAX_FRAMES = 6, 16
FIRST_FRAME_S = (10.0, 40.0)  # after the injection
LAST_FRAME_S = (240.0, 1200.0)
MIDDLE_DIAMETER = (0.21, 0.42)  # of the spot, half-way through its course, in image widths
DIAMETER_CHANGE = (0.8, 1.05)  # logarithm of the largest over the smallest
MIDDLE_BRIGHTNESS = (0.32, 0.70)
BRIGHTNESS_CHANGE = {"leakage": (0.36, 0.46), "staining": (0.42, 0.52)}
STEADY_BRIGHTNESS = (0.3, 0.85)  # of pooling, as wide as the others' ranges together
EDGE_BLUR = (0.008, 0.03)  # in image widths
OVERSAMPLING = 2  # of drawn lines, against jagged edges


def ffa_sequence(rng: np.random.Generator, label: int, rows: int) -> tuple[Floats, Floats]:
    """Frames of one fluorescein run, float32 (T, H, W) in [0, 1], and their times in ms, float64 (T,).

    Args:
        rng: source of all randomness.
        label: index into FFA_CLASSES.
        rows: H and W.
    """
    frame_times_ms = exposure_times_ms(rng)
    diameter, brightness, blur = spot_course(rng, FFA_CLASSES[label], log_progress(frame_times_ms))
    background, vessels, disc = draw_fundus(rng, rows)
    spot_distance = draw_spot_distance(rng, rows)
    frames = np.empty((len(frame_times_ms), rows, rows), np.float32)
    for i in range(len(frames)):
        # Drawn anew for every frame: no part of the eye but the spot may tell early from late.
        scene = background * rng.uniform(0.9, 1.1) + vessels * rng.uniform(0.9, 1.1) + disc * rng.uniform(0.9, 1.1)
        spot = brightness[i] / (1 + np.exp((spot_distance - diameter[i] / 2) / blur[i]))
        scene = 1 - (1 - np.clip(scene, 0, 1)) * (1 - spot)
        frames[i] = expose(rng, scene)
    return frames, frame_times_ms


def exposure_times_ms(rng: np.random.Generator) -> Floats:
    """Times of the frames after the injection in whole ms, irregular, rising, float64 (T,)."""
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    first_s, last_s = rng.uniform(*FIRST_FRAME_S), np.exp(rng.uniform(*np.log(LAST_FRAME_S)))
    # Even steps of log time, jittered by almost a step: symmetric, so a course and its reverse give equal sets.
    steps = np.arange(num_frames) + np.pad(rng.uniform(-0.45, 0.45, num_frames - 2), 1)
    times_s = first_s * (last_s / first_s) ** (steps / (num_frames - 1))
    return np.round(times_s * 1000)


def log_progress(frame_times_ms: Floats) -> Floats:
    """Position of each frame between the first (0) and the last (1) in log time, (T,)."""
    log_times = np.log(frame_times_ms)
    return (log_times - log_times[0]) / (log_times[-1] - log_times[0])


def spot_course(rng: np.random.Generator, name: str, progress: Floats) -> tuple[Floats, Floats, Floats]:
    """Diameter, brightness and edge blur of the spot at each progress, three (T,), lengths in image widths."""
    course = name
    if name == "normal":
        course = str(rng.choice(["leakage", "pooling"]))
    elif name == "window_defect":
        course = "staining"
    change = sigmoid_change(rng, progress)
    if name in ("normal", "window_defect"):
        change = 1 - change

    centred = change - 0.5
    diameter = np.exp(rng.uniform(*np.log(MIDDLE_DIAMETER)) + np.zeros_like(progress))
    brightness = rng.uniform(*MIDDLE_BRIGHTNESS) + np.zeros_like(progress)
    blur = rng.uniform(*EDGE_BLUR) + np.zeros_like(progress)
    if course == "staining":
        diameter *= np.exp(rng.uniform(-0.6, 0.6) * DIAMETER_CHANGE[1])
    else:
        diameter *= np.exp(centred * rng.uniform(*DIAMETER_CHANGE))
    if course == "pooling":
        brightness[:] = rng.uniform(*STEADY_BRIGHTNESS)
    else:
        brightness += centred * rng.uniform(*BRIGHTNESS_CHANGE[course])
    if course == "leakage":
        blur *= 1 + 3 * change
    jitter = np.exp(rng.normal(0, 0.02, (2, len(progress))))
    return diameter * jitter[0], np.clip(brightness * jitter[1], 0.05, 0.95), blur


def sigmoid_change(rng: np.random.Generator, progress: Floats) -> Floats:
    """A rise from near 0 to near 1 at a random phase, (T,); symmetric under reversal of time."""
    midpoint, steepness = rng.uniform(0.3, 0.7), rng.uniform(6, 14)
    rise = 1 / (1 + np.exp(-steepness * (progress - midpoint)))
    low, high = 1 / (1 + np.exp(steepness * midpoint)), 1 / (1 + np.exp(-steepness * (1 - midpoint)))
    early, late = rng.uniform(0, 0.1), rng.uniform(0.9, 1)
    return early + (late - early) * (rise - low) / (high - low)


# --- what is drawn ---


def pixel_grid(rows: int) -> tuple[Floats, Floats]:
    """Coordinates y and x of the pixel centres in image widths, two (H, W)."""
    centres = (np.arange(rows, dtype=np.float32) + 0.5) / rows
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return y, x


def smooth_noise(rng: np.random.Generator, rows: int, scale: float) -> Floats:
    """Texture of mean 0 and standard deviation 1, float32 (H, W); scale in image widths."""
    noise = ndimage.gaussian_filter(rng.standard_normal((rows, rows), np.float32), scale * rows, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def wander(rng: np.random.Generator, start: tuple[float, float], angle: float, bend: float, length: float) -> Polyline:
    """A winding line of (x, y) points in image widths, steps of 0.02, bending by `bend` radians in all."""
    count = max(2, int(length / 0.02))
    turns = bend / count + rng.normal(0, 0.08, count)
    angles = angle + np.cumsum(turns)
    xs = start[0] + 0.02 * np.cumsum(np.cos(angles))
    ys = start[1] + 0.02 * np.cumsum(np.sin(angles))
    return [start, *zip(xs.tolist(), ys.tolist(), strict=True)]


def draw_fundus(rng: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Background, vessels and optic disc of one eye, three float32 (H, W), to be added."""
    y, x = pixel_grid(rows)
    side = rng.choice([-1.0, 1.0])  # left or right eye
    disc_x, disc_y = 0.5 + side * rng.uniform(0.24, 0.32), 0.5 + rng.uniform(-0.06, 0.06)
    macula_x = disc_x - side * rng.uniform(0.30, 0.36)
    macula = np.exp(-((x - macula_x) ** 2 + (y - disc_y) ** 2) / (2 * rng.uniform(0.06, 0.09) ** 2))
    flush = rng.uniform(0.16, 0.24)
    background = (
        flush * (1 + 0.12 * smooth_noise(rng, rows, 0.04) + 0.10 * smooth_noise(rng, rows, 0.012)) * (1 - 0.6 * macula)
    )
    disc_distance = np.hypot((x - disc_x) / rng.uniform(0.85, 1.0), y - disc_y)
    disc = rng.uniform(0.2, 0.35) / (1 + np.exp((disc_distance - rng.uniform(0.05, 0.065)) / 0.006))

    canvas = Image.new("F", (rows * OVERSAMPLING, rows * OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    level = rng.uniform(0.45, 0.6)
    for vertical in (-1, 1):
        for temporal, length in ((True, 0.8), (False, 0.35), (True, 0.55)):
            towards = -side if temporal else side
            angle = np.arctan2(vertical * rng.uniform(0.9, 1.6), towards * rng.uniform(0.4, 1.0))
            bend = vertical * towards * rng.uniform(0.2, 0.9) * (-1 if temporal else 1)  # round the macula
            width = rng.uniform(0.011, 0.016)
            draw_branches(rng, pen, (disc_x, disc_y), angle, bend, length, width, level, rows * OVERSAMPLING)
    small = canvas.resize((rows, rows), Image.Resampling.BOX)
    vessels = ndimage.gaussian_filter(np.asarray(small, np.float32), 0.0015 * rows)
    return background.astype(np.float32), vessels, disc.astype(np.float32)


def draw_branches(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    start: tuple[float, float],
    angle: float,
    bend: float,
    length: float,
    width: float,
    level: float,
    pixels: int,
) -> None:
    """Draw a vessel and its branches with `pen`, thinner with each generation."""
    line = wander(rng, start, angle, bend, length)
    pen.line(
        [(px * pixels, py * pixels) for px, py in line],
        fill=level,
        width=max(1, round(width * pixels)),
        joint="curve",
    )
    if width < 0.005:
        return
    for position in np.sort(rng.choice(np.arange(3, max(5, len(line) - 1)), size=2, replace=False)):
        at = line[min(int(position), len(line) - 2)]
        after = line[min(int(position), len(line) - 2) + 1]
        heading = np.arctan2(after[1] - at[1], after[0] - at[0])
        turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.0)
        draw_branches(rng, pen, at, heading + turn, -turn * 0.6, length * 0.55, width * 0.65, level * 0.85, pixels)


def draw_spot_distance(rng: np.random.Generator, rows: int) -> Floats:
    """Distance of each pixel from a random spot's centre, (H, W), wavy so that the spot is no circle."""
    y, x = pixel_grid(rows)
    radius, direction = rng.uniform(0, 0.16), rng.uniform(0, 2 * np.pi)
    dy, dx = y - 0.5 - radius * np.sin(direction), x - 0.5 - radius * np.cos(direction)
    angle = np.arctan2(dy, dx)
    waves = sum(rng.uniform(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    return np.hypot(dy, dx) * (1 + waves)


def expose(rng: np.random.Generator, scene: Floats) -> Floats:
    """One photograph of the scene: motion, vignetting, gain, noise and the round field stop, (H, W)."""
    rows = len(scene)
    y, x = pixel_grid(rows)
    shift = rng.normal(0, 0.006 * rows, 2)
    moved = ndimage.shift(scene, shift, order=1, mode="nearest")
    centre_y, centre_x = 0.5 + rng.uniform(-0.08, 0.08, 2)
    fall_off = 1 - rng.uniform(0.1, 0.4) * ((y - centre_y) ** 2 + (x - centre_x) ** 2)
    gain = rng.uniform(0.88, 1.0)
    image = gain * fall_off * moved + rng.normal(0, rng.uniform(0.01, 0.025), scene.shape)
    field = np.hypot(y - 0.5, x - 0.5) < 0.49
    return np.clip(image * field, 0, 1)
