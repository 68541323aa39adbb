"""The plan command: a network or a workflow, a budget -> what is printed, a page, the YAML for finetune.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.errors import bad_value
from scripts.memory import budget as budgets
from scripts.memory.largest import LARGEST, SIMULATED, sizes_of
from scripts.memory.plan import Plan, make_plan, table
from scripts.memory.subjects import Subject, config_workload, named_workload
from scripts.memory.tables import STRATEGIES, TABLES
from scripts.writing import write_file


def print_plan(**asked: Any) -> None:
    """Print what `run_plan` says; exit status 1 if nothing fits."""
    text, fits = run_plan(**asked)
    print(text)
    if not fits:
        raise SystemExit(1)


def run_plan(
    *,
    budget: str | int = "24GB",
    everything: bool = False,
    enlarge: str | None = None,
    named_table: str | None = None,
    report: str | Path | None = None,
    fragment: str | Path | None = None,
    **subject: Any,
) -> tuple[str, bool]:
    """The text of the command, and whether something fits; arguments as of `python -m scripts plan`.

    Raises:
        ValueError: a value that is not allowed.
        FileNotFoundError: no such config.
    """
    places = {"report": report, "fragment": fragment}
    if named_table is not None:
        if named_table not in TABLES:
            raise ValueError(bad_value("plan", "table", named_table, f"one of {', '.join(TABLES)}"))
        named = {name: subject.get(name) for name in ("config", "network", "shape", "options")}
        _refuse_beside("table", named | {"largest": enlarge} | places)
        budgets.read_budget(budget)
        return "\n".join(TABLES[named_table](budget)), True
    for name, path in places.items():
        if path is not None and (not isinstance(path, (str, Path)) or not str(path)):
            raise ValueError(bad_value("plan", name, path, "the path of a file"))
    if fragment is not None and report is not None and Path(report).resolve() == Path(fragment).resolve():
        raise ValueError(bad_value("plan", "fragment", fragment, "another file than --report"))
    _check_flag("everything", everything)
    free = budgets.free_bytes(budgets.read_budget(budget))  # before the network is made: nonsense is told at once
    planned = asked_for(**subject)
    if enlarge is not None:
        _refuse_beside("largest", places)
        return _largest(planned, enlarge, free)
    plan = make_plan(planned, budget, everything)
    written = _written(plan, report, fragment)
    return "\n".join([plan.text, *written]), plan.best is not None


def asked_for(
    *,
    config: Any = None,
    network: Any = None,
    shape: Any = None,
    options: dict[str, Any] | None = None,
    settings: dict[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> Subject:
    """What is to be planned for.

    Args:
        config: a workflow, with `overrides` of its ids.
        network: or a network by name, with the `shape` of a batch and `options`.
        settings: of a Workload.

    Raises:
        ValueError: neither or both of config and network, a network without a shape, or a value that is not allowed.
        FileNotFoundError: no such config.
    """
    if (config is None) == (network is None):
        found = "nothing" if config is None else "both config and network"
        raise ValueError(bad_value("plan", "subject", found, "either --config or --network with --shape"))
    for name in ("amp", "splittable"):
        _check_flag(name, settings.get(name, True))
    if config is not None:
        _refuse_beside("config", {"shape": shape, "options": options})
        if not isinstance(config, (str, list, tuple)):
            raise ValueError(bad_value("plan", "config", config, "a file, or several"))
        return config_workload(config, overrides, **settings)
    if overrides:
        allowed = "a flag of --help; the ids of a workflow go with --config"
        raise ValueError(bad_value("plan", "flag", f"--{next(iter(overrides))}", allowed))
    if shape is None:
        raise ValueError(bad_value("plan", "shape", "", "that of a batch, such as 1,1,96,96,96"))
    if options is not None and not isinstance(options, dict):
        raise ValueError(bad_value("plan", "options", options, "{name: value}, arguments of the network"))
    return Subject(str(network), named_workload(str(network), shape, options, **settings))


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(bad_value("plan", name, value, "True or False"))


def _refuse_beside(flag: str, others: Mapping[str, Any]) -> None:
    """Refuse what would have no effect beside that flag."""
    for name, value in others.items():
        if value is not None:
            raise ValueError(bad_value("plan", "flag", f"--{name}", f"to be left out beside --{flag}"))


def _largest(subject: Subject, what: str, free: int) -> tuple[str, bool]:
    with sizes_of(subject.workload, what) as sizes:
        found = {name: sizes.largest(strategy, free) for name, strategy in STRATEGIES.items()}
        step = sizes.step
    about = [f"{subject.name}: the largest {what} that fits, simulated; {step} more does not.", subject.assumed]
    if what == "frames" and max(found.values()) > SIMULATED:
        about.append(f"Beyond {SIMULATED} frames it is read off the line through {SIMULATED // 2} and {SIMULATED}.")
    about.append(f"A step may hold {free / 1e9:.2f} GB: {budgets.WHY}.")
    rows = [[name, f"{size}{' or more' * (size > LARGEST - step)}"] for name, size in found.items()]
    lines = [*filter(None, about), "", *table(("what is computed again", f"largest {what}"), rows)]
    return "\n".join(lines), any(found.values())


def _written(plan: Plan, report: str | Path | None, fragment: str | Path | None) -> list[str]:
    """Write what was asked for; a line on each."""
    lines = []
    if fragment is not None and plan.best is not None:
        write_file(Path(fragment), f"# {plan.title}\n{plan.yaml}")
        lines.append(f"written: {fragment}" + ", to be given after configs/finetune.yaml" * plan.is_for_finetuning)
    if report is not None:
        from scripts.reports.plan_page import write_page

        lines.append(f"written: {write_page(Path(report), plan)}")
    return ["", *lines] if lines else []
