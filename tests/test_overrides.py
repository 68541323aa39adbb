"""The first step of every workflow: unknown override names are refused, our errors are one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.overrides import PATHS, RUN_ARGUMENTS, check_value, reject_unknown_ids
from tests.conftest import assert_message

ROOT = Path(__file__).parent.parent


@pytest.fixture
def configs(tmp_path) -> list[str]:
    """A config file and its overlay."""
    (tmp_path / "train.yaml").write_text("learning_rate: 0.1\ntrain:\n  trainer: 1\nimports: []\n")
    (tmp_path / "evaluate.yaml").write_text("split: test\ntrain::trainer: 2\n")
    return [str(tmp_path / "train.yaml"), str(tmp_path / "evaluate.yaml")]


# --- names ---


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (["--learning_rte", "0.2"], "learning_rate"),
        (["--learning_rte=0.2"], "learning_rate"),
        (["--trian::trainer", "1"], "train"),
        (["--learning-rate", "0.2"], "learning_rate"),
        (["--_meta", "x"], None),
        (["--zzz", "1"], None),
    ],
)
def test_unknown_id_is_refused_with_the_nearest_one(configs, given, near):
    name = given[0].partition("=")[0]
    with pytest.raises(ValueError, match=f"command line: {name} is no id of the config files") as error:
        reject_unknown_ids(["run", "--config_file", configs[0], *given])
    assert str(error.value).endswith(f"Did you mean --{near}?" if near else "needs one of theirs.")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--learning_rate", "0.2"],
        ["--learning_rate=0.2"],
        ["--learning_rate", "0.2"],
        ["--train::trainer", "3"],
        ["--train#trainer", "3"],
        ["--+imports", "[]"],
        ["--_meta_::version", "1"],
        *(["--" + name, "x"] for name in RUN_ARGUMENTS if name not in ("config_file", "args_file")),
    ],
)
def test_known_ids_pass_in_every_form(configs, given):
    reject_unknown_ids(["run", "--config_file", configs[0], *given])


@pytest.mark.parametrize("form", ["['{}','{}']", "[{},{}]", "['{}', '{}']", "{},{}", '["{}","{}"]'])
@pytest.mark.parametrize("joined", [True, False])
def test_ids_of_every_file_of_a_list_are_known(configs, form, joined):
    files = form.format(*configs)
    start = ["run", f"--config_file={files}"] if joined else ["run", "--config_file", files]
    reject_unknown_ids([*start, "--split", "validation", "--learning_rate", "0.2"])
    with pytest.raises(ValueError, match=r"--splt is no id of the config files.* Did you mean --split"):
        reject_unknown_ids([*start, "--splt", "validation"])


@pytest.mark.parametrize(
    ("name", "content"), [("notes.md", "a: 1"), ("a.yaml", "{a: ["), ("a.json", "{"), ("b.json", "")]
)
def test_file_that_is_no_config_is_refused_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match="content is unreadable") as refused:
        reject_unknown_ids(["plan", "--config_file", str(path)])
    assert_message(refused.value, path, "content", "YAML or JSON")


def test_id_of_an_overlay_is_unknown_without_it(configs):
    with pytest.raises(ValueError, match="--split is no id"):
        reject_unknown_ids(["run", "--config_file", configs[0], "--split", "test"])


def test_ids_of_the_arguments_file_are_checked_too(configs, tmp_path):
    arguments = tmp_path / "arguments.yaml"
    arguments.write_text("learning_rate: 0.2\n")
    given = ["run", "--config_file", configs[0], "--args_file", str(arguments)]
    reject_unknown_ids(given)
    arguments.write_text("learning_rte: 0.2\n")
    with pytest.raises(ValueError, match=r"--learning_rte is no id.*--learning_rate"):
        reject_unknown_ids(given)


@pytest.mark.parametrize("given_as", ["second config file", "arguments file"])
def test_values_of_a_file_laid_over_a_config_are_checked_as_typed_ones(configs, tmp_path, given_as):
    over = tmp_path / "over.yaml"
    files = f"['{configs[0]}','{over}']" if given_as == "second config file" else configs[0]
    given = ["run", "--config_file", files]
    given += ["--args_file", str(over)] if given_as == "arguments file" else []
    for text, said in (("learning_rate: -1", "-1"), ("learning_rate: 'false'", "false")):
        over.write_text(f"{text}\n")
        with pytest.raises(ValueError, match="learning_rate") as refused:
            reject_unknown_ids(given)
        assert_message(refused.value, over, "learning_rate", said, "a number")
    for text in ("learning_rate: 0.2", "learning_rate: $0.1 * 2", "learning_rate: {_target_: float}"):
        over.write_text(f"{text}\n")
        reject_unknown_ids(given)


def test_config_file_may_stand_in_the_arguments_file(configs, tmp_path):
    arguments = tmp_path / "arguments.yaml"
    arguments.write_text(f"config_file: {configs[0]}\nlearning_rate: 0.2\n")
    reject_unknown_ids(["run", "--args_file", str(arguments), "--train::trainer", "1"])


def test_nothing_is_checked_outside_of_a_bundle_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--learning_rte", "1"])
    reject_unknown_ids()


def test_command_line_of_a_bundle_run_is_checked(configs, monkeypatch):
    program = "/anywhere/site-packages/monai/bundle/__main__.py"
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", configs[0], "--learning_rte", "1"])
    with pytest.raises(ValueError, match="--learning_rte"):
        reject_unknown_ids()


def test_ids_of_every_config_of_this_bundle_are_known_to_it():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    overlay = {
        "multi_gpu_train.yaml": "train.yaml",
        "multi_gpu_cache.yaml": "cache_features.yaml",
        "volumes.yaml": "cache_features.yaml",
    }
    checked = 0
    for file in files:
        base = overlay.get(file.name)
        listed = f"['{file.with_name(base)}','{file}']" if base else str(file)
        folders = [] if file.name == "plan_memory.yaml" else ["--dataset_dir", "/data", "--output_dir", "/out"]
        reject_unknown_ids(["run", "--config_file", listed, *folders])
        checked += 1
    assert checked >= 6


def test_the_paths_of_every_config_are_known_as_paths():
    found = set()
    for file in (ROOT / "configs").glob("*.yaml"):
        block = re.search(r"# --- paths ---\n(.*?)\n\n", file.read_text(), re.S)
        found.update(re.findall(r"^(\w+):", block[1], re.M) if block else [])
    assert found == set(PATHS)


# --- errors ---

OURS = "from scripts.networks.heads import make_head; make_head('vit', 1, 1)"
WRAPPED = f"""
try:
    {OURS}
except ValueError as error:
    raise RuntimeError('config text of many lines') from error
"""
SLIP = "from scripts.networks.heads import make_head; make_head('gru')"  # TypeError in our code
PLAIN = (
    "error: configuration: head_name is vit, needs one of mean, max, last, attention, gru, lstm, tcn, transformer.\n"
)


def failed(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A process that shows errors plainly and runs the code."""
    start = "from scripts.overrides import show_errors_plainly; show_errors_plainly()\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done


def test_error_of_the_operating_system_is_a_line_in_the_form_of_ours(tmp_path):
    (tmp_path / "file").touch()
    code = f"from pathlib import Path; Path({str(tmp_path / 'file' / 'below')!r}).mkdir()"
    wrapped = f"try:\n    {code}\nexcept OSError as error:\n    raise RuntimeError('config') from error"
    said = (
        f"error: {tmp_path / 'file' / 'below'}: path is not a directory, needs one that can be read, or written to.\n"
    )
    assert failed(wrapped).stderr == said
    in_bytes = failed("open(b'/no/such', 'rb')").stderr
    assert (
        in_bytes == "error: /no/such: path is no such file or directory, needs one that can be read, or written to.\n"
    )


@pytest.mark.parametrize("code", [OURS, WRAPPED])
def test_our_error_is_shown_as_its_one_line_also_where_it_was_wrapped(code):
    assert failed(code).stderr == PLAIN


@pytest.mark.parametrize("code", ["1 / 0", SLIP, "raise ValueError('said elsewhere')"])
def test_other_errors_come_with_their_traceback(code):
    shown = failed(code).stderr
    assert shown.startswith("Traceback (most recent call last):")
    assert "error: " not in shown.splitlines()[0]
    assert any(kind in shown for kind in ("ZeroDivisionError", "TypeError", "ValueError: said elsewhere"))


def test_traceback_of_our_error_is_shown_on_request():
    shown = failed(OURS, ANGIOGRAPHY_TRACEBACK="1").stderr
    assert shown.startswith("Traceback (most recent call last):")
    assert "head_name is vit" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "text", "default", "allowed"),
    [
        ("use_times", "false", True, "True or False"),
        ("max_epochs", "0", 60, "at least 1"),
        ("max_epochs", "1.5", 60, "a whole number"),
        ("max_epochs", "None", 60, "leave it out for the default"),
        ("learning_rate", "abc", 0.001, "a number"),
        ("learning_rate", "nan", 0.001, "a number"),
        ("dropout", "2", 0.3, "at most 0.99"),
        ("device", "cud", {"_target_": "x"}, "cpu"),
        ("device", "cuda:99", {"_target_": "x"}, "devices of this machine"),
        ("dataset_dir", "/data/a#b", "x", "without #"),
        ("output_dir", "2024", "$@bundle_root + '/output'", "a path; ./2024 is one"),
        ("start_from", "5", "@model_path", "a path; ./5 is one"),
        ("num_workers", "1000000", 0, "at most 256"),
        ("image_size", "1000000000", 224, "at most 8192"),
        ("accumulation_steps", "10000000000", 4, "at most 4096"),
        ("num_resamples", "100000000000", 2000, "at most 100000"),
        ("folds", "nan", 5, "a whole number of at least 3 and at most 1000"),
        ("repeats", "1000000000", 2, "at most 1000"),
        ("use_times", "false", "$@start['use_times']", "True or False"),
        ("bidirectional", "no", None, "True or False"),
        ("image_size", "48.5", "$@start['image_size']", "a whole number of at least 1"),
        ("max_frames", "nan", "$@start['max_frames']", "a whole number of at least 1"),
        ("every_ms", "often", "$@card['every_ms']", "a number of at least 0.001"),
    ],
)
def test_override_of_another_kind_or_range_than_the_knob_is_refused(name, text, default, allowed):
    with pytest.raises(ValueError, match=f"command line: --{name} is {text}, needs .*{allowed}"):
        check_value(name, text, default)


@pytest.mark.parametrize(
    ("name", "text", "default"),
    [
        ("use_times", "False", True),
        ("learning_rate", "1e-3", 0.001),
        ("seed", "0", 0),
        ("device", "cpu", "x"),
        ("layers", "2", "$@start['layers']"),
        ("bidirectional", "True", None),
    ],
)
def test_override_that_fits_its_knob_passes(name, text, default):
    check_value(name, text, default)
