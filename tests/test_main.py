"""The command line: flags are known before anything runs, help names them, the exit status tells what was found."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import Commands, StoreCommands, known_flags, main
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.stores import FINGERPRINT, assert_holds, fill, flip

ROOT = Path(__file__).parent.parent
STORE_COMMANDS = ("info", "verify", "merge", "prune", "export")


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main() changes it
    monkeypatch.setattr(sys, "argv", ["python -m scripts", *map(str, arguments)])
    main()


@pytest.fixture
def store(tmp_path) -> Path:
    fill(FeatureStore.create(tmp_path / "features", FINGERPRINT), range(6), per_shard=3)
    return tmp_path / "features"


# --- flags ---


@pytest.mark.parametrize(
    ("given", "command", "near"),
    [
        (["datalist", "x", "--lables", "y"], "datalist", "--labels"),
        (["store", "prune", "x", "--dryrun"], "store prune", "--dry_run"),
        (["store", "prune", "--dryrun=True", "x"], "store prune", "--dry_run"),
        (["store", "verify", "x", "--data-list", "y"], "store verify", "--datalist"),
        (["store", "export", "x", "y", "--license", "z"], "store export", "--licence"),
        (["store", "merge", "x", "--paths", "y"], "store merge", None),
        (["store", "info", "x", "--zzz"], "store info", None),
    ],
)
def test_unknown_flag_of_a_command_or_nested_command_is_refused_with_the_nearest_one(given, command, near):
    with pytest.raises(ValueError, match="flag is --") as error:
        known_flags(given)
    assert_message(error.value, command, "flag")
    assert str(error.value).endswith(f"Did you mean {near}?" if near else ".")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--help"],
        ["store"],
        ["store", "--help"],
        ["nothing", "--such"],
        ["store", "nothing", "--such"],
        ["store", "prune", "x", "--dry_run"],
        ["store", "prune", "x", "--dry-run", "--datalist=a,b"],
        ["store", "merge", "x", "y", "z", "--help"],
        ["check", "x", "--sample", "3"],
    ],
)
def test_known_flags_pass_and_unknown_commands_are_left_to_fire(given):
    assert known_flags(given) == given


@pytest.mark.parametrize("given", ["plan --help", "cross_validate --folds 3 --help", "sweep -h", "plan x -- --help"])
def test_help_is_no_id_of_a_workflow_where_a_command_takes_those_too(given, monkeypatch, capsys):
    with pytest.raises(SystemExit) as done:
        run(monkeypatch, *given.split())
    assert done.value.code == 0
    shown = capsys.readouterr()
    assert f"{given.split()[0]} - " in shown.out + shown.err


@pytest.mark.parametrize("command", STORE_COMMANDS)
def test_help_of_a_store_command_explains_each_of_its_arguments(command, monkeypatch, capsys):
    with pytest.raises(SystemExit) as done:
        run(monkeypatch, "store", command, "--help")
    assert done.value.code == 0
    shown = capsys.readouterr()
    text = (shown.out + shown.err).lower()
    names = [name for name in inspect.signature(getattr(StoreCommands, command)).parameters if name != "self"]
    explained = inspect.getdoc(getattr(StoreCommands, command)).partition("Args:")[2]
    assert names
    for name in names:
        assert name in text
        assert f"\n    {name}: " in explained


def test_every_store_command_is_tested_here():
    public = {name for name, _ in inspect.getmembers(StoreCommands, inspect.isfunction) if not name.startswith("_")}
    assert public == set(STORE_COMMANDS)
    assert isinstance(Commands.store, StoreCommands)


def test_folder_whose_name_is_a_number_is_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in (["info", 5], ["verify", 5], ["merge", 6, 5], ["prune", 5], ["export", 5, 6, "CC0-1.0"]):
        with pytest.raises(FileNotFoundError, match="5: no feature store here"):
            run(monkeypatch, "store", *words)


def test_file_in_place_of_a_store_is_no_store(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileNotFoundError, match="no feature store here"):
        run(monkeypatch, "store", "info", tmp_path / "file")


def test_dry_run_is_true_or_false(store, monkeypatch):
    with pytest.raises(ValueError, match="--dry_run is maybe, needs True or False"):
        run(monkeypatch, "store", "prune", store, "--dry_run", "maybe")


# --- exit status ---


@pytest.mark.parametrize("command", ["info", "verify"])
def test_status_of_info_and_verify_is_1_for_a_damaged_store_alone(store, command, monkeypatch, capsys):
    run(monkeypatch, "store", command, store)
    flip(store / "rank0-1.safetensors", 20)
    with pytest.raises(SystemExit) as done:
        run(monkeypatch, "store", command, store)
    assert done.value.code == 1
    assert f"DAMAGED: {store / 'rank0-1.safetensors'}" in capsys.readouterr().out


def test_command_that_a_damage_message_names_repairs_the_store(store, monkeypatch, capsys):
    flip(store / "rank0-1.safetensors", 20)
    with pytest.raises(ValueError, match="damaged shard") as error:
        FeatureStore.open(store)
    command = str(error.value).partition("python -m scripts ")[2].partition(";")[0].split()
    run(monkeypatch, *command)
    assert "dropped: 1 shard that cannot be opened" in capsys.readouterr().out
    assert_holds(FeatureStore.open(store), range(3))


def test_merge_takes_any_number_of_stores(store, tmp_path, monkeypatch, capsys):
    more = [tmp_path / f"more{n}" for n in range(3)]
    for n, folder in enumerate(more):
        fill(FeatureStore.create(folder, FINGERPRINT), range(5 + n, 8 + n))
    run(monkeypatch, "store", "merge", tmp_path / "all", store, *more)
    assert_holds(FeatureStore.open(tmp_path / "all"), range(10))
    with pytest.raises(ValueError, match="at least one") as error:
        run(monkeypatch, "store", "merge", tmp_path / "none")
    assert_message(error.value, "configuration", "stores to merge")


def test_export_takes_its_licence_as_text_whatever_it_looks_like(store, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "store", "export", store, tmp_path / "out", "--licence", "4.0")
    assert "licence 4.0" in capsys.readouterr().out


def test_refusal_is_one_line_and_status_1(tmp_path):
    command = [sys.executable, "-m", "scripts", "store", "info", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}: no feature store here.")
    assert len(done.stderr.splitlines()) == 1
