"""What every workflow does first: refuse override names that no config file has, and show errors plainly."""

import ast
import difflib
import math
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from scripts.errors import bad_value, reading

RUN_ARGUMENTS = (  # of `python -m monai.bundle run` itself
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
    "workflow_type",
)
# Least and most of the numbers among the knobs; those without an entry may be any number.
RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(("max_epochs", "patience", "val_interval", "hidden_size", "layers"), (1, None)),
    **dict.fromkeys(("max_frames", "chunk_frames", "max_sequence_bytes", "world_size"), (1, None)),
    "num_resamples": (1, 10**5),
    "folds": (3, 1000),
    "repeats": (1, 1000),
    "image_size": (1, 2**13),
    "batch_size": (1, 2**16),
    "accumulation_steps": (1, 2**12),
    "num_workers": (0, 2**8),
    "lora_rank": (0, 2**10),
    **dict.fromkeys(("dropout", "frame_dropout", "label_smoothing", "warmup", "drop_path"), (0.0, 0.99)),
    **dict.fromkeys(("weight_decay", "max_gradient_norm", "focal_gamma"), (0.0, None)),
    "ema_decay": (0.0, 0.999999),
    "time_jitter": (0.0, 0.5),
    **dict.fromkeys(("lower_percentile", "upper_percentile"), (0.0, 100.0)),
    "every_ms": (0.001, None),
    **dict.fromkeys(("learning_rate", "encoder_learning_rate"), (1e-9, 1e3)),
    "layer_decay": (1e-3, 1.0),
    "trainable_blocks": (-1, None),
    **dict.fromkeys(("seed", "augmentation_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("rank", "augmented_passes"), (0, None)),
}
PATHS = (  # a number among them is no text, to which the names of what lies there can be added
    *("bundle_root", "dataset_dir", "datalist", "output_dir", "models_dir", "model_path", "start_from", "input"),
    *("features_dir", "untrained_dir", "report_dir", "checkpoint_dir", "report", "fragment"),
)
FLAGS = ("bidirectional", "use_times")  # true or false, though the value may be left to the head or to a card
OUR_FOLDER = Path(__file__).resolve().parent


def start_run() -> None:
    """First step of every workflow."""
    show_errors_plainly()
    reject_unknown_ids()


def reject_unknown_ids(arguments: Sequence[str] | None = None) -> None:
    """Refuse a `--name value` whose first part is no id of the config files; MONAI would ignore it silently.

    Values are checked as well, also those of a file that is laid over the first.

    Args:
        arguments: of the command line; None means those of a `monai.bundle run`, and nothing outside of one.

    Raises:
        ValueError: names the override and the nearest id, or a config file that is none.
    """
    if arguments is None:
        if Path(sys.argv[0]).parts[-3:-1] != ("monai", "bundle"):
            return
        arguments = sys.argv[1:]
    from monai.bundle import ConfigParser
    from yaml import YAMLError

    given: dict[str, str] = {}
    names = []
    laid_over: dict[str, dict[str, object]] = {}  # file -> its ids and values
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            given[name] = value if has_value else next(iter(arguments[i + 1 :]), "")
            names.append(name)
    if given.get("args_file"):
        from_file = ConfigParser.load_config_file(given["args_file"])
        names += from_file
        laid_over[given["args_file"]] = from_file
        given.setdefault("config_file", str(from_file.get("config_file", "")))
    listed = given.get("config_file", "").strip("[]").replace("'", "").replace('"', "").split(",")
    files = [file.strip() for file in listed if file.strip()]
    with reading(", ".join(files), "content", "YAML or JSON of a workflow, in a file named so", (YAMLError,)):
        config = ConfigParser.load_config_files(files)
        first = ConfigParser.load_config_files(files[:1])
        laid_over |= {file: ConfigParser.load_config_file(file) for file in files[1:]}
    for file, content in laid_over.items():
        for name in first.keys() & content.keys():
            over = content[name]
            if isinstance(over, (bool, int, float, str)) and not str(over).startswith(("$", "@")):
                check_value(name, str(over), first[name], file)
    for name in names:
        top = name.replace("#", "::").split("::")[0].lstrip("+%")
        if top not in config and top not in RUN_ARGUMENTS and top != "_meta_":
            near = difflib.get_close_matches(top, sorted(config), n=1, cutoff=0.5)
            hint = f" Did you mean --{near[0]}?" if near else ""
            raise ValueError(f"command line: --{name} is no id of the config files, needs one of theirs.{hint}")
        if name in given and name in config:
            check_value(name, given[name], config[name])


def check_value(name: str, text: str, default: object, item: str = "command line") -> None:
    """Refuse an override that is not of its default's kind, or outside its range; MONAI would fail later or never.

    Args:
        name: id of a knob.
        text: the value as typed.
        default: the config file's value.
        item: where it stands.

    Raises:
        ValueError: names the id, the value and what it may be.
    """
    least, most = RANGES.get(name, (None, None))
    between = "" if least is None else f" of at least {least}" + ("" if most is None else f" and at most {most}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    follows = isinstance(default, str) and default.startswith(("$", "@"))  # the value of another id or of a card
    inside = number and (least is None or value >= least) and (most is None or value <= most)
    if value is None:
        fits, allowed = False, "a value; leave it out for the default"
    elif "#" in text:
        fits, allowed = False, "a text without #, which MONAI takes for a separator"
    elif name in PATHS:
        allowed = f"a path; ./{text} is one, if its name is a number" if isinstance(value, (int, float)) else "a path"
        fits = isinstance(value, str) and bool(value.strip())
    elif name == "device":
        import torch

        there = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
        known = ["cpu", *(["cuda"] if there else []), *there]
        fits, allowed = text in known, f"one of {', '.join(known)}, the devices of this machine"
    elif isinstance(default, bool) or name in FLAGS:
        fits, allowed = isinstance(value, bool), "True or False"
    elif isinstance(default, int) or (follows and isinstance(least, int)):
        fits, allowed = inside and isinstance(value, int), f"a whole number{between}"
    elif isinstance(default, float) or (follows and least is not None):
        fits, allowed = inside, f"a number{between}"
    else:
        return
    if not fits:
        raise ValueError(bad_value(item, f"--{name}" if item == "command line" else name, text, allowed))


def show_errors_plainly() -> None:
    """From now on an uncaught error that this bundle raised is shown as its message alone.

    MONAI wraps errors in the text of the config, which hides the one line that helps. Set ANGIOGRAPHY_TRACEBACK=1
    to see everything; errors from elsewhere always come with their traceback.
    """
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        said = "stopped: what is written is whole; the same command goes on, a training with --resume True"
        print(said, file=sys.stderr)
        return
    ours = our_error(error)
    if ours is None or os.environ.get("ANGIOGRAPHY_TRACEBACK"):
        traceback.print_exception(kind, error, trace)
    else:
        print(f"error: {_said(ours)}", file=sys.stderr)


def _said(error: BaseException) -> str:
    """Its message; of the operating system's errors in the form of ours, without their number."""
    if isinstance(error, OSError) and error.filename is not None:
        found = (error.strerror or type(error).__name__).lower()
        name = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
        return bad_value(name, "path", found, "one that can be read, or written to")
    return str(error)


def our_error(error: BaseException) -> BaseException | None:
    """The outermost error of the chain that a `raise` in this bundle made, or that names a file it cannot use."""
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        stated = frames and (frames[-1].line or "").startswith("raise ")  # said on purpose, not a slip
        if stated and Path(frames[-1].filename).resolve().is_relative_to(OUR_FOLDER):
            return cause
        if isinstance(cause, OSError) and cause.filename is not None:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
