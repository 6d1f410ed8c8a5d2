"""Measure the parameters of the simulation and write them down.

    chunkmap up && python -m benchmarks.simulation.fitting [engine worker planning ledger store]

Takes about two minutes. The rest of the file (Amazon's documented limits, prices, groups
that are not named) is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.simulation import probes, probes_engine
from benchmarks.simulation.parameters import FILE
from benchmarks.suite.machine import cores, describe
from benchmarks.suite.session import DEFAULT_ROOT
from benchmarks.suite.settings import suite_settings
from pipeline.config.settings import Settings
from pipeline.storage import Storage, open_storage

HERE = "here"
COMMAND = "python -m benchmarks.simulation.fitting"


GROUPS = ("engine", "worker", "planning", "ledger", "store")


def fit(path: Path, groups: Sequence[str] = GROUPS) -> None:
    """Measure some groups of parameters, and put the figures into a file.

    Args:
        path: The file; its other values are kept.
        groups: Of GROUPS.
    """
    with suite_settings() as settings:
        _fit(path, groups, settings)


def _fit(path: Path, groups: Sequence[str], settings: Settings) -> None:
    storage, machine = open_storage(settings), describe()
    mark = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "commit": machine.commit}
    said: dict[str, Any] = json.loads(path.read_text("utf-8"))
    said["made"] = {
        "command": COMMAND,
        "date": mark["measured"],
        "commit": machine.commit + (" with changes" if machine.dirty else ""),
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.system}, "
        f"Python {machine.python}",
        "load": machine.load,
        "packages": machine.packages,
    }
    for group in groups:
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


if __name__ == "__main__":
    asked = sys.argv[1:] or GROUPS
    if unknown := set(asked) - set(GROUPS):
        sys.exit(f"no group {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    fit(FILE, asked)
