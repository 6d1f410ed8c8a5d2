"""Do works of an ingest of files in another process, from plain data and from what is stored."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pipeline.concurrency import single_flight
from pipeline.config.ingest import parse_ingest
from pipeline.errors import StateError
from pipeline.ingest.pieces import FindPiece, PieceFound
from pipeline.ingest.ranges import RangeFound, ScanRange
from pipeline.ingest.sources import FileSource
from pipeline.ingest.stage import StageFile, Staging
from pipeline.ingest.store import IngestStore, StagedFile, as_output
from pipeline.ingest.workers import LocalWorkers
from pipeline.storage import own_storage

_KINDS: Final[dict[str, tuple[type[BaseModel], type[BaseModel]]]] = {
    "scan": (ScanRange, RangeFound),
    "find": (FindPiece, PieceFound),
    "stage": (StageFile, StagedFile),
}
"""Works and their results."""


def packed(work: Any) -> str:
    """Return a work as text, for `do_packed`."""
    kind = next(name for name, (of, _) in _KINDS.items() if isinstance(work, of))
    return json.dumps([kind, work.model_dump(mode="json")])


def do_packed(text: str) -> dict[str, Any]:
    """Do a work with the storage of this process; return its result as plain data."""
    kind, data = json.loads(text)
    work: Any = _KINDS[kind][0].model_validate(data)
    if isinstance(work, StageFile):
        staging = _open_staging(work.definition, work.ingest, work.plan)
        assert isinstance(staging, Staging), "single_flight keeps types"
        return staging.stage(work.number).model_dump(mode="json")
    result: BaseModel = work.do(own_storage())
    return result.model_dump(mode="json")


def result_of(work: Any, data: Any) -> Any:
    """Return the result of a work from what a worker returned.

    Raises:
        StateError: It is not one.
    """
    of = next(result for kind, result in _KINDS.values() if isinstance(work, kind))
    try:
        return of.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise StateError(
            work.name, f"a worker returned no {of.__name__}: {problem['msg']}"
        ) from None


@single_flight(2)
def _open_staging(definition: str, ingest: str, plan: str) -> Staging:
    """Open what stages the files of a stored plan."""
    parsed, storage = parse_ingest(definition), own_storage()
    assert parsed.files is not None, "only files are staged by workers"
    store = IngestStore(storage, as_output(parsed.output.uri), ingest)
    stored = store.plan(plan)
    if stored is None:
        raise StateError(f"{store.prefix}plans/{plan}.json", "it does not exist")
    source = FileSource(parsed, parsed.files, storage, LocalWorkers(storage, 1))
    return Staging(parsed, store, source.rows(store), stored, lambda files, of_files: None)
