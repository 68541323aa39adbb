"""What every workflow does first: refuse override names that no config file has, and show errors plainly."""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

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
OUR_FOLDER = Path(__file__).resolve().parent


def start_run() -> None:
    """First step of every workflow."""
    show_errors_plainly()
    reject_unknown_ids()


def reject_unknown_ids(arguments: Sequence[str] | None = None) -> None:
    """Refuse a `--name value` whose first part is no id of the config files; MONAI would ignore it silently.

    Args:
        arguments: of the command line; None means those of a `monai.bundle run`, and nothing outside of one.

    Raises:
        ValueError: names the override and the nearest id.
    """
    if arguments is None:
        if Path(sys.argv[0]).parts[-3:-1] != ("monai", "bundle"):
            return
        arguments = sys.argv[1:]
    from monai.bundle import ConfigParser

    given: dict[str, str] = {}
    names = []
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            given[name] = value if has_value else next(iter(arguments[i + 1 :]), "")
            names.append(name)
    if given.get("args_file"):
        from_file = ConfigParser.load_config_file(given["args_file"])
        names += from_file
        given.setdefault("config_file", str(from_file.get("config_file", "")))
    files = given.get("config_file", "").strip("[]").replace("'", "").replace('"', "").split(",")
    known = set(ConfigParser.load_config_files([file.strip() for file in files if file.strip()]))
    for name in names:
        top = name.replace("#", "::").split("::")[0].lstrip("+%")
        if top not in known and top not in RUN_ARGUMENTS and top != "_meta_":
            near = difflib.get_close_matches(top, sorted(known), n=1, cutoff=0.5)
            hint = f" Did you mean --{near[0]}?" if near else ""
            raise ValueError(f"command line: --{name} is no id of the config files, needs one of theirs.{hint}")


def show_errors_plainly() -> None:
    """From now on an uncaught error that this bundle raised is shown as its message alone.

    MONAI wraps errors in the text of the config, which hides the one line that helps. Set ANGIOGRAPHY_TRACEBACK=1
    to see everything; errors from elsewhere always come with their traceback.
    """
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    ours = _our_error(error)
    if ours is None or os.environ.get("ANGIOGRAPHY_TRACEBACK"):
        traceback.print_exception(kind, error, trace)
    else:
        print(f"error: {ours}", file=sys.stderr)


def _our_error(error: BaseException) -> BaseException | None:
    """The outermost error of the chain that a `raise` in this bundle made, if one did."""
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        stated = frames and (frames[-1].line or "").startswith("raise ")  # said on purpose, not a slip
        if stated and Path(frames[-1].filename).resolve().is_relative_to(OUR_FOLDER):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
