"""Measure the parameters of the simulation and write them down.

`chunkmap bench fit` takes about two minutes. The rest of the file (Amazon's documented limits,
prices, groups that are not named) is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.simulation import probes, probes_engine
from benchmarks.simulation.parameters import FILE, read_parameters
from benchmarks.suite.machine import cores, describe
from benchmarks.suite.session import DEFAULT_ROOT
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.storage import Storage, open_storage

HERE = "here"
COMMAND = "chunkmap bench fit"

GROUPS = ("engine", "worker", "planning", "ledger", "store")


def fit(path: Path, groups: Sequence[str], settings: Settings) -> None:
    """Measure groups of parameters on the stack that is up, and put the figures into a file.

    Args:
        path: The file; its other values are kept, or are those of the suite if it does not exist.
        groups: Of GROUPS; none means all.
        settings: Of the stack; they allow the suite's transforms.

    Raises:
        UsageError: There is no such group, or the file cannot be changed.
    """
    check_groups(groups)
    said = parameters_to_change(path)
    storage, machine = open_storage(settings), describe()
    mark = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "commit": machine.commit}
    said["made"] = {
        "command": COMMAND,
        "date": mark["measured"],
        "commit": machine.commit + (" with changes" if machine.dirty else ""),
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.system}, "
        f"Python {machine.python}",
        "load": machine.load,
        "packages": machine.packages,
    }
    for group in groups or GROUPS:
        print(f"measuring: {group}", flush=True)
        for name, (value, how) in _measured(group, settings, storage).items():
            print(f"{name:<32} {value:<12.4g} {how}", flush=True)
            section, _, key = name.partition(".")
            place = said["stores"].setdefault(HERE, {}) if section == "store" else None
            if place is None:
                place = said["parameters"].setdefault(section, {})
            place[key] = _entry(value, how, mark)
    probes.discard(storage, DEFAULT_ROOT)
    path.write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def _measured(group: str, settings: Settings, storage: Storage) -> probes.Figures:
    if group == "engine":
        return probes_engine.engine(settings, storage, DEFAULT_ROOT)
    if group == "store":
        store = probes.store(settings, storage, DEFAULT_ROOT)
        store["cores"] = (cores(), "driver, servers and workers share them")
        return {f"store.{name}": said for name, said in store.items()}
    found: probes.Figures = getattr(probes, group)(settings, storage, DEFAULT_ROOT)
    return found


def _entry(value: float, how: str, mark: dict[str, str]) -> dict[str, Any]:
    kept = value if isinstance(value, int) else float(f"{value:.4g}")
    return {"value": kept, "source": how, **mark}


def parameters_to_change(path: Path) -> dict[str, Any]:
    """Read the parameters of a file, or those of the suite if it does not exist.

    Raises:
        UsageError: The file holds no parameters, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write {path.name} to")
    return read_parameters(path if path.exists() else FILE)


def check_groups(groups: Sequence[str]) -> None:
    """Refuse unknown groups.

    Raises:
        UsageError: There is no such group.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise UsageError(
            f"no group {', '.join(unknown)} of parameters", hint=f"there are {', '.join(GROUPS)}"
        )
