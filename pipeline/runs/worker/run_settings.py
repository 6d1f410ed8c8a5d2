"""Send settings with a run to its workers; a worker's own allow-list stays the upper limit.

Functions that are sent by value go separately, once to each process: settings name them by digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import traces
from pipeline.config.sections import BatchSettings, ReadingSettings, TransformSettings
from pipeline.config.settings import Settings, own_settings
from pipeline.runs.transforms.by_value import ValueFunction, refuse_by_value
from pipeline.runs.transforms.parcels import KEPT, Parcels, parcel_digest
from pipeline.runs.transforms.reach import allows
from pipeline.traces import TraceParent

SECTIONS = ("transforms", "batches", "reading")
"""Sections of the settings that a run sends; others concern a process, e.g. its access to S3."""
TRACES = "traces"
"""Key of the span that is sent with them: the first, so that it is found without reading all."""


def sent_settings(settings: Settings) -> str:
    """Return, as JSON, the settings that workers use for a run of this process.

    With traces, the current span is with them: those of the workers are below it.
    """
    parent = traces.current_parent()
    sections: dict[str, Any] = {} if parent is None else {TRACES: parent}
    sections |= {name: getattr(settings, name).model_dump(mode="json") for name in SECTIONS}
    sections["transforms"]["path"] = [str(Path(p).resolve()) for p in settings.transforms.path]
    functions = settings.transforms.functions
    if functions:
        sections["functions"] = {name: value.to_json() for name, value in functions.items()}
    return json.dumps(sections)


@lru_cache(16)
def sent_parent(sent: str) -> TraceParent | None:
    """Return the span that was sent with the settings of a run; None if none was."""
    if not sent.startswith(f'{{"{TRACES}": '):
        return None
    return TraceParent(*json.loads(sent)[TRACES])


def sent_functions(settings: Settings) -> dict[str, bytes]:
    """Return the pickled functions that are sent by value in a run of this process, by digest."""
    parcels = (value.parcel for value in settings.transforms.functions.values())
    return {parcel_digest(parcel): parcel for parcel in parcels}


def keep_functions(parcels: Iterable[bytes]) -> None:
    """Keep pickled functions that a driver has sent, unless this process allows none."""
    if own_settings().transforms.allow_by_value:
        KEPT.add(parcels)


def lacking_functions(digests: Iterable[str]) -> list[str]:
    """Return those of some functions that this process allows, but has not got."""
    lacking = KEPT.lacking(digests)
    return lacking if lacking and own_settings().transforms.allow_by_value else []


def received_settings(own: Settings, sent: str, parcels: Parcels = KEPT) -> Settings:
    """Apply the settings of a run to those of a worker.

    Modules are searched in the run's folders that exist here, then in the worker's own. Code that
    differs from the driver's is refused later, by its fingerprint.

    Args:
        own: Settings of this process.
        sent: Result of `sent_settings`; empty for a run that sends none.
        parcels: Functions that this process has received.

    Raises:
        TransformNotAllowedError: The run sends functions by value, and this worker allows none.
        FunctionMissingError: One of them has not arrived here.
    """
    if not sent:
        return own
    sections = json.loads(sent)
    asked = TransformSettings.model_validate(sections["transforms"])
    folders = [path for path in asked.path if Path(path).is_dir()]
    transforms = own.transforms.model_copy(
        update={
            "allow": _within(asked.allow, own.transforms.allow),
            "path": tuple(dict.fromkeys([*folders, *own.transforms.path])),
        }
    )
    named = sections.get("functions", {})
    for name in named if not own.transforms.allow_by_value else ():
        raise refuse_by_value(name)
    functions = {name: ValueFunction.from_json(name, data, parcels) for name, data in named.items()}
    update = {
        "transforms": transforms.with_functions(functions),
        "batches": BatchSettings.model_validate(sections["batches"]),
        "reading": ReadingSettings.model_validate(sections["reading"]),
    }
    return own.model_copy(update=update)


def _within(asked: Sequence[str], ceiling: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that both lists allow."""
    both = [name for name in asked if allows(ceiling, name)]
    both += [name for name in ceiling if allows(asked, name)]
    return tuple(dict.fromkeys(both))
