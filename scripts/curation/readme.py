"""What an exported store holds -> the README that goes with it."""

from typing import Any

from scripts.keys import CLASSES, SPLITS, TASK, TYPE
from scripts.networks.weights import NAMED, RANDOM_PREFIX, TIMM_HUB
from scripts.store.origin import Origin

_TEXT = """\
# Features of angiography sequences{synthetic}

{sequences} sequences, {frames} frames. Each frame is the output of a frozen image encoder; no image is here.

- Licence: {licence}
- Encoder: `{encoder}`, weights `{weights}` (digest `{digest}`)
- Features: {forms}, with the time and the position of each frame
- Labels: {labels}
- Made with version {version} of the MONAI bundle "angiography sequence classification"; its settings stand in
  `fingerprint.json`, its tensors are described in `manifest.json`

## Train from it

In the folder of that bundle, with this folder as `FEATURES`:

{commands}

Training reads the features; the encoder does not run. Its weights are needed because the trained model takes images.

## Check it

    sha256sum -c SHA256SUMS                        # here: every file is what was exported
    python -m scripts store verify FEATURES        # in the bundle: every sequence is what was computed

## What is in it

| file | content |
|---|---|
| `rank0-*.safetensors` | features, frame times (ms since the first frame, NaN = unknown), positions of frames, keys |
| `fingerprint.json` | encoder, preprocessing and versions that made them |
| `manifest.json` | what the tensors are, counts, licence |
{datalist_row}| `SHA256SUMS` | digests of all other files |

## What is not in it

No image, file name, path, patient's or institution's name, identifier or date. {pseudonyms}Two things remain:

- The key of a sequence is a SHA-256 of its source files. Who holds the same files can recognise them by it, and can
  thereby tell that they are part of this set.
- Features are computed from images and frame times are as recorded. What they reveal of a person is not known to be
  nothing: treat them by the rules that hold for pseudonymous data.
"""

_UNLABELLED = """

There are no labels here. Write a datalist that names sequences by their keys, `{"entry": KEY, "label": 0, "patient":
"P1"}`. All keys:

    python -c "from scripts.store.store import FeatureStore as S; print(*S.open('FEATURES').keys(), sep='\\n')"\
"""


def readme(manifest: dict[str, Any], origin: Origin, listed: dict[str, Any] | None) -> str:
    """The text, Markdown.

    Args:
        manifest: of the export.
        origin: of the store.
        listed: the exported datalist, None if there is none.
    """
    encoder, settings = origin.fingerprint.get("encoder", {}), origin.settings or {}
    return _TEXT.format(
        synthetic=" (synthetic: made by a program)" if manifest["synthetic"] else "",
        sequences=manifest["sequences"],
        frames=manifest["frames"],
        licence=manifest["licence"],
        encoder=encoder.get("name"),
        weights=settings.get("encoder_weights"),
        digest=str(encoder.get("digest"))[:16],
        forms=manifest["tensors"]["features"].partition(" of each")[0],
        labels=_labels(listed),
        version=manifest["bundle_version"],
        commands=_commands(str(settings.get("encoder_weights")), listed is not None),
        datalist_row="" if listed is None else "| `datalist.json` | label, split and pseudonyms of each sequence |\n",
        pseudonyms=""
        if listed is None
        else "Patients and sequences are numbered anew, in an order that says nothing. ",
    )


def _labels(listed: dict[str, Any] | None) -> str:
    if listed is None:
        return "none"
    counts = ", ".join(f"{len(listed[split])} {split}" for split in SPLITS)
    task = listed.get(TASK)
    return f"{counts}" + (f"; {task[TYPE]}: {', '.join(task[CLASSES])}" if task else "; no task")


def _commands(weights: str, with_datalist: bool) -> str:
    """The lines that train, indented as code."""
    lines = []
    override = ""
    if weights in NAMED:
        lines.append(f"python -m scripts weights {weights}")
    elif not weights.startswith(RANDOM_PREFIX) and weights != TIMM_HUB:
        override = f" --encoder_weights PATH_OF_{weights}"
    datalist = "FEATURES/datalist.json" if with_datalist else "YOUR_DATALIST.json"
    lines.append(
        "python -m monai.bundle run --config_file configs/train.yaml --features_dir FEATURES "
        f"--datalist {datalist} --dataset_dir FEATURES{override}"
    )
    text = "\n".join(f"    {line}" for line in lines)
    if with_datalist:
        return text
    return text + _UNLABELLED
