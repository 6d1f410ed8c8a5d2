"""Read and write a backfill's state in `<output>.chunkmap/backfills/<id>/`.

backfill.json    its record: created once, and last, so that a backfill with a record is complete
windows.arrow    its windows (schema WINDOWS): created once
plan.arrow       the plan of all its windows: created once
job.yaml         the job: created once
control.json     the desired state, set by users: replaced with If-Match
driver.json      the driver: advisory
progress.arrow   the windows' progress at the driver's last heartbeat: advisory
report.html, report.json
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from partitioning import Plan
from partitioning.integrity import checked_plan
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    AlreadyExistsError,
    ObjectMissingError,
    PreconditionFailedError,
    StateError,
    UsageError,
)
from pipeline.runs.backfill.records import (
    BACKFILL_VERSION,
    LATER,
    PROGRESS,
    STATES,
    WINDOWS,
    BackfillRecord,
    Control,
)
from pipeline.runs.driver.heartbeat import DriverRecord, read_driver
from pipeline.storage import Storage, join, parse, same_place, state_prefix
from pipeline.storage.documents import (
    LABEL_PATTERN,
    parse_stored,
    parse_text,
    reading,
    seal_bytes,
    seal_json,
    seal_text,
    unseal_bytes,
)
from pipeline.table.errors import refuse_newer

log = logging.getLogger(__name__)


class BackfillStore:
    """Reads and writes one backfill's state in storage."""

    def __init__(self, storage: Storage, output: str, backfill: str) -> None:
        self.storage = storage
        self.backfill = backfill
        self.output = parse(output).uri.rstrip("/") + "/"
        self.prefix = join(state_prefix(self.output), "backfills", backfill) + "/"

    def create(self, record: BackfillRecord, windows: pl.DataFrame, plan: Plan, job: Job) -> bool:
        """Store a new backfill; return False if it was stored before."""
        control = Control(max_active=record.options.max_active, priority=record.options.priority)
        parts = {
            "plan.arrow": plan.to_bytes(),
            "windows.arrow": _pack(windows, WINDOWS),
            "job.yaml": seal_text(job.to_yaml()),
            "control.json": seal_json(control.model_dump_json().encode()),
        }
        for name, data in parts.items():
            with suppress(AlreadyExistsError):
                self.storage.put_new(self.prefix + name, data)
        try:
            document = seal_json(record.model_dump_json(indent=1).encode())
            self.storage.put_new(self.prefix + "backfill.json", document)
        except AlreadyExistsError:
            return False
        return True

    def record(self) -> BackfillRecord:
        """Read the backfill's record.

        Raises:
            UsageError: there is no backfill of this id.
            StateError: its record is damaged, another backfill's, or of a newer release.
        """
        uri = self.prefix + "backfill.json"
        try:
            data = self.storage.get(uri).data
        except ObjectMissingError as error:
            raise UsageError(f"there is no backfill {self.backfill} of {self.output}") from error
        record = parse_stored(BackfillRecord, data, uri)
        refuse_newer(uri, record.version, BACKFILL_VERSION)
        if record.backfill != self.backfill or not same_place(record.output, self.output):
            raise StateError(
                uri, f"it is the record of backfill {record.backfill} of {record.output}"
            )
        return record

    def windows(self) -> pl.DataFrame:
        """Read its windows (schema WINDOWS). Raises StateError if they are damaged."""
        uri = self.prefix + "windows.arrow"
        data = self.storage.get(uri).data
        with reading(uri):
            windows = _unpack(data, WINDOWS)
            runs = windows["run"].drop_nulls()
            if not runs.str.contains(r"^[0-9a-f]{16}$").all():
                raise ValueError("it contains invalid run ids")
            return windows

    def plan(self) -> Plan:
        """Read the frozen plan of all windows to do, in the order of time.

        Raises StateError if it is damaged.
        """
        uri = self.prefix + "plan.arrow"
        data = self.storage.get(uri).data
        with reading(uri):
            return checked_plan(data)

    def job(self) -> Job:
        """Read the job as of the creation. Raises StateError if it is damaged."""
        uri = self.prefix + "job.yaml"
        return parse_job(parse_text(self.storage.get(uri).data, uri), uri)

    def control(self) -> Control:
        """Read the desired state. Raises StateError if it is damaged."""
        return self._control()[0]

    def _control(self) -> tuple[Control, str]:
        """Read the desired state and its ETag."""
        uri = self.prefix + "control.json"
        blob = self.storage.get(uri)
        hint = "restore it, or write {} to it, which means neither paused nor cancelled"
        return parse_stored(Control, blob.data, uri, hint=hint), blob.etag

    def change(self, by: str, change: Callable[[Control], dict[str, Any]]) -> Control:
        """Change the desired state by compare-and-swap, so that no other change is lost.

        Args:
            by: Command that changes it, or Prefect.
            change: Returns the fields to change, given the current state. May raise.
        """
        while True:
            current, etag = self._control()
            fields = change(current)
            if all(getattr(current, name) == value for name, value in fields.items()):
                return current
            desired = Control.model_validate({**current.model_dump(), **fields, "by": by})
            data = seal_json(desired.model_dump_json().encode())
            with suppress(PreconditionFailedError):
                self.storage.put_if(self.prefix + "control.json", data, etag)
                return desired

    def driver(self) -> DriverRecord | None:
        """Read the record of the last driver; None if there is none or it is damaged."""
        return read_driver(self.storage, self.prefix)

    def write_progress(self, progress: pl.DataFrame) -> None:
        """Store the windows' progress (schema PROGRESS). Advisory."""
        self.storage.put(self.prefix + "progress.arrow", _pack(progress, PROGRESS))

    def progress(self) -> pl.DataFrame | None:
        """Read the windows' progress as last saved; None if there is none or it is damaged."""
        uri = self.prefix + "progress.arrow"
        blob = self.storage.get_or_none(uri)
        try:
            with reading(uri):
                progress = None if blob is None else _unpack(blob.data, PROGRESS)
                if progress is not None and not progress["state"].is_in(STATES).all():
                    raise ValueError("it contains invalid states")
        except StateError as error:
            log.warning("%s; counting the windows again", error)
            return None
        return progress


def _pack(frame: pl.DataFrame, schema: pl.Schema) -> bytes:
    sink = io.BytesIO()
    frame.match_to_schema(schema).write_ipc(sink, compression="zstd")
    return seal_bytes(sink.getvalue())


def _unpack(data: bytes, schema: pl.Schema) -> pl.DataFrame:
    # Read with Arrow, which validates the data and does not panic.
    with pa.ipc.open_file(pa.py_buffer(unseal_bytes(data))) as reader:
        table = reader.read_all()
    table.validate(full=True)
    frame = pl.DataFrame(pl.from_arrow(table))
    later = [name for name in LATER if name in schema and name not in frame.columns]
    frame = frame.with_columns(pl.lit(0, schema[name]).alias(name) for name in later)
    frame = frame.match_to_schema(schema)
    if (
        "label" not in schema
        or not frame["label"].str.contains(LABEL_PATTERN).fill_null(False).all()
    ):
        raise ValueError("it contains invalid window labels")
    return frame


def backfills_of(storage: Storage, output: str) -> list[BackfillRecord]:
    """Read the records of an output's backfills, oldest first; ignore damaged ones."""
    prefix = join(state_prefix(parse(output).uri), "backfills") + "/"
    names = (info.uri.removeprefix(prefix).partition("/") for info in storage.objects(prefix))
    ids = [backfill for backfill, _, rest in names if rest == "backfill.json"]

    def read(backfill: str) -> BackfillRecord | None:
        try:
            return BackfillStore(storage, output, backfill).record()
        except StateError as error:
            log.warning("%s; this backfill is ignored", error)
            return None

    records = [record for record in map_concurrently(read, ids) if record is not None]
    return sorted(records, key=lambda record: record.created)


def find_backfill(
    storage: Storage, outputs: Iterator[str] | list[str], wanted: str
) -> BackfillStore:
    """Find the backfill whose id starts with `wanted`.

    Raises:
        UsageError: there is none (the error names similar ids), or more than one.
    """
    records = {record.backfill: record for uri in outputs for record in backfills_of(storage, uri)}
    matches = [backfill for backfill in records if backfill.startswith(wanted)]
    if len(matches) == 1:
        record = records[matches[0]]
        return BackfillStore(storage, record.output, record.backfill)
    if matches:
        raise UsageError(f"{len(matches)} backfills start with {wanted!r}: {', '.join(matches)}")
    near = get_close_matches(wanted, records, 3, 0.5) or list(records)[-3:]
    hint = (
        f"nearest: {', '.join(near)}"
        if near
        else "no backfill is known on this machine; name its output: -o URI"
    )
    raise UsageError(f"there is no backfill {wanted!r}", hint=hint)
