"""Read and write the notes on a pipeline's runs: `<state>runs/<id>.json`.

A document is replaced with If-Match, so that two processes at a time lose no note. What is read is
untrusted: documents have checksums, and sizes are limited.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pipeline.concurrency import map_concurrently
from pipeline.config.pipeline_file import Pipeline
from pipeline.config.templates import text_of
from pipeline.errors import AlreadyExistsError, ConflictError, PreconditionFailedError, StateError
from pipeline.storage import Storage, as_prefix, parse
from pipeline.storage.documents import Moment, RunId, parse_stored, seal_json
from pipeline.table.errors import refuse_newer

STATE_VERSION: Final = 1
"""Format of the notes. Older releases refuse notes of a higher one."""
MAX_BYTES: Final = 1 << 20
MAX_TRIES: Final = 20
"""Maximum number of times that a note is written again because others wrote theirs."""
_HINT = (
    "delete it: the next run checks each stage again and does nothing twice, but for stages of "
    "kind `call`"
)

StageState = Literal["running", "done", "unchanged", "skipped", "failed"]
FINISHED: Final = ("done", "unchanged", "skipped")
"""States of a stage after which the next one runs."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageNote(_Stored):
    """What a stage of a run has done."""

    state: StageState
    attempt: PositiveInt
    """Number of the run's attempt that noted it."""
    digest: str = ""
    """Digest of its definition and code (see `driver.definition_digest`)."""
    version: str = ""
    """What identifies its result: the id of a run, or a digest."""
    rows: NonNegativeInt = 0
    changed: bool = False
    """Whether it did something in this attempt."""
    published: bool = False
    output: str = ""
    """URI of its output, or table."""
    manifest: NonNegativeInt = 0
    reason: Annotated[str, Field(max_length=2_000)] = ""
    """Why it has this state, for people."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    at: Moment = 0.0
    """When it was noted, in Unix seconds."""


class PipelineRecord(_Stored):
    """Notes on a run of a pipeline."""

    version: int = STATE_VERSION
    run: RunId
    pipeline: str
    parameters: dict[str, str] = {}
    """Values of the parameters, for people."""
    attempt: PositiveInt = 1
    """Number of the attempt: a run that has ended begins another one when it is started again."""
    names: tuple[str, ...] = ()
    """Names of its stages."""
    stages: dict[str, StageNote] = {}
    created: Moment
    updated: Moment
    writer: str = ""
    """Random id of each write."""

    @property
    def is_finished(self) -> bool:
        """Whether each stage of the attempt is done, unchanged or skipped."""
        return all(
            (note := self.stages.get(name)) is not None
            and note.attempt == self.attempt
            and note.state in FINISHED
            for name in self.names
        )

    @property
    def state(self) -> str:
        """State for people: `done`, `failed` or `unfinished`."""
        if self.is_finished:
            return "done"
        notes = [note for note in self.stages.values() if note.attempt == self.attempt]
        return "failed" if any(note.state == "failed" for note in notes) else "unfinished"


@dataclass(frozen=True)
class PipelineStore:
    """Reads and writes the notes on the runs of a pipeline."""

    storage: Storage
    prefix: str
    """URI with a slash at its end."""

    @classmethod
    def of(cls, storage: Storage, state: str) -> PipelineStore:
        """Return the store of a pipeline's `state`."""
        return cls(storage, as_prefix(parse(state).uri) + "runs/")

    def uri(self, run: str) -> str:
        """Return the URI of a run's notes."""
        return f"{self.prefix}{run}.json"

    def read(self, run: str) -> PipelineRecord | None:
        """Read the notes on a run; None if there are none. Raises StateError if damaged."""
        found = self._read(run)
        return None if found is None else found[0]

    def _read(self, run: str) -> tuple[PipelineRecord, str] | None:
        uri = self.uri(run)
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return None
        record = parse_stored(PipelineRecord, blob.data, uri, max_bytes=MAX_BYTES, hint=_HINT)
        refuse_newer(uri, record.version, STATE_VERSION)
        if record.run != run:
            raise StateError(uri, f"it has the notes of run {record.run}", _HINT)
        return record, blob.etag

    def begin(self, pipeline: Pipeline, *, again: bool) -> PipelineRecord:
        """Return the notes on a run that begins or resumes.

        Args:
            pipeline: The pipeline.
            again: Whether a run that has finished begins another attempt.
        """
        names = tuple(stage.name for stage in pipeline.stages)

        def change(record: PipelineRecord) -> PipelineRecord:
            more = 1 if again and record.is_finished else 0
            return record.model_copy(update={"attempt": record.attempt + more, "names": names})

        now = time.time()
        values = {name: text_of(value) for name, value in pipeline.parameters.items()}
        first = PipelineRecord(
            run=pipeline.run,
            pipeline=pipeline.name,
            parameters=values,
            names=names,
            created=now,
            updated=now,
        )
        return self._update(pipeline.run, change, first)

    def note(self, record: PipelineRecord, name: str, note: StageNote) -> PipelineRecord:
        """Note what a stage has done; returns the notes with it."""

        def change(current: PipelineRecord) -> PipelineRecord:
            return current.model_copy(update={"stages": {**current.stages, name: note}})

        return self._update(record.run, change, record)

    def _update(
        self, run: str, change: Callable[[PipelineRecord], PipelineRecord], first: PipelineRecord
    ) -> PipelineRecord:
        for _ in range(MAX_TRIES):
            found = self._read(run)
            old = first if found is None else found[0]
            stamp = {"updated": time.time(), "writer": uuid.uuid4().hex}
            new = change(old).model_copy(update=stamp)
            data = seal_json(new.model_dump_json().encode())
            with suppress(AlreadyExistsError, PreconditionFailedError):
                if found is None:
                    self.storage.put_new(self.uri(run), data)
                else:
                    self.storage.put_if(self.uri(run), data, found[1])
                return new
        raise ConflictError(
            f"{self.uri(run)} was changed by others {MAX_TRIES} times while this process wrote it",
            hint="several processes run this pipeline: leave one, and give the command again",
        )

    def all(self) -> list[PipelineRecord]:
        """Read the notes on all runs, in no order. Raises StateError if some are damaged."""
        names = (info.uri.removeprefix(self.prefix) for info in self.storage.objects(self.prefix))
        runs = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        records = map_concurrently(self.read, [run for run in runs if "/" not in run])
        return [record for record in records if record is not None]


def notes_of(record: PipelineRecord | None) -> Mapping[str, StageNote]:
    """Return the notes of a record, if there is one."""
    return {} if record is None else record.stages
