"""Stage the planned files of an ingest: invisible until they are published."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, PrivateAttr

from pipeline.config.ingest import Ingest
from pipeline.errors import PartitionColumnError, StateError
from pipeline.ingest.plan import chunk_of, file_format, text_columns, types_of
from pipeline.ingest.rows import Rows
from pipeline.ingest.store import IngestPlan, IngestStore, StagedFile, StagedPart
from pipeline.ingest.workers import Workers
from pipeline.report.humanize import plural
from pipeline.runs.ledger.keys import file_uri, refuse_long_folders
from pipeline.runs.worker.encoding import write_frames, write_parquet
from pipeline.runs.worker.slices import split
from pipeline.storage import StagedObject, Storage, staged_area
from pipeline.table.manifest import FILES


@dataclass(frozen=True, slots=True)
class Staging:
    """Stages the files of a plan."""

    ingest: Ingest
    store: IngestStore
    rows: Rows
    plan: IngestPlan
    listen: Callable[[int, int], None]
    """Called with the number of files that are staged, and of all."""
    workers: Workers | None = None
    """What stages files; None: this, one after the other."""

    def __post_init__(self) -> None:
        """Refuse a plan of other units.

        Raises:
            StateError: The files are cut otherwise than the plan was made for.
        """
        units = self.plan.pages if self.plan.units is None else self.plan.units
        if units != len(self.rows.units):
            raise StateError(
                f"{self.store.prefix}plans/{self.plan.plan}.json",
                f"it has {plural(units, 'unit')} instead of {len(self.rows.units):,}",
            )

    def all(self, void: Collection[str]) -> list[StagedFile]:
        """Stage the files that are not staged yet; return one for each planned file, in order.

        Args:
            void: Attempts whose staged objects no longer exist.

        Raises:
            StateError: A worker's answer or a note is no file of this ingest, or the files do not
                have the planned number of rows.
        """
        chosen: dict[int, StagedFile] = {}
        for staged in self.store.staged(self.plan):
            if all(part.attempt not in void for part in staged.parts):
                chosen.setdefault(staged.number, staged)
        left = [number for number in range(len(self.plan.files)) if number not in chosen]
        self.listen(len(chosen), len(self.plan.files))
        for staged in self._stage_all(left):
            chosen[staged.number] = staged
            self.listen(len(chosen), len(self.plan.files))
        files = [chosen[number] for number in range(len(self.plan.files))]
        self._refuse_other_rows(files)
        return files

    def _refuse_other_rows(self, files: Sequence[StagedFile]) -> None:
        rows = sum(part.rows for file in files for part in file.parts)
        if rows != self.plan.records:
            raise StateError(
                f"{self.store.prefix}files/{self.plan.plan}/",
                f"the staged files have {plural(rows, 'row')} instead of {self.plan.records:,}",
                hint=self.store.begin_again,
            )

    def duplicates(self, chosen: Collection[str]) -> list[StagedObject]:
        """Return what was staged in other attempts than the chosen ones."""
        parts = (part for staged in self.store.staged(self.plan) for part in staged.parts)
        return [
            StagedObject(part.uri, part.upload, part.parts, part.bytes, part.attempt)
            for part in parts
            if part.attempt not in chosen
        ]

    def _stage_all(self, numbers: Sequence[int]) -> Iterator[StagedFile]:
        if self.workers is None:
            yield from map(self.stage, numbers)
            return
        definition = self.ingest.to_yaml()
        works = [StageFile.of(self, number, definition) for number in numbers]
        for at, staged in self.workers.map(works):
            if (staged.ingest, staged.plan, staged.number) != (
                self.store.ingest,
                self.plan.plan,
                numbers[at],
            ):
                raise StateError(self.store.prefix, "a worker returned another file")
            self.store.refuse_foreign_keys(staged, self.store.prefix)
            yield staged

    def bytes_of(self, number: int) -> int:
        """Return the number of bytes that a planned file is made of."""
        start, end = self.plan.files[number]
        return sum(unit.bytes for unit in self.rows.units[start:end])

    def held_of(self, number: int) -> int:
        """Return the number of those that are in memory at a time."""
        start, end = self.plan.files[number]
        if self._is_streamed(number):
            return max(unit.bytes for unit in self.rows.units[start:end])
        return self.bytes_of(number)

    def _files_of(self, number: int) -> float:
        """Return the number of files of the target size that a planned file would be."""
        return self.plan.ratio * self.bytes_of(number) / self.ingest.output.file_bytes

    def _is_streamed(self, number: int) -> bool:
        """Whether units are written one after the other: only one of them is in memory."""
        start, end = self.plan.files[number]
        is_one = not self.ingest.output.partition_by and round(self._files_of(number)) <= 1
        return is_one and end - start > 1

    def stage(self, number: int) -> StagedFile:
        """Stage a planned file, and note it."""
        parts = tuple(self._stage_parts(number))
        staged = StagedFile(
            ingest=self.store.ingest,
            plan=self.plan.plan,
            number=number,
            attempt=uuid.uuid4().hex,
            parts=parts,
        )
        self.store.note_staged(staged)
        return staged

    def _stage_parts(self, number: int) -> Iterator[StagedPart]:
        start, end = self.plan.files[number]
        types, texts = types_of(self.plan), text_columns(self.ingest)
        how = file_format(self.ingest)
        if self._is_streamed(number):
            empty = pl.DataFrame(schema=pl.Schema(types))
            counted = _Counted(chain([empty], self.rows.frames(start, end, types, texts)))
            data, _ = write_frames(counted, how)
            yield self._stage_part(number, "", data, counted.rows)
            return
        frame = self.rows.frame(start, end, types, texts)
        for folder, whole in self._by_folder(frame):
            for rows in _cut(whole, self._files_of(number)):
                data, _ = write_parquet(rows, how)
                yield self._stage_part(number, folder, data, rows.height)

    def _by_folder(self, frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
        output = self.ingest.output
        if not output.partition_by or not frame.height:
            return [("", frame)]
        for name in output.partition_by:
            if name not in frame.columns:
                raise PartitionColumnError(
                    f"the records have no field {name!r} (output.partition_by)",
                    hint=f"name one of {', '.join(frame.columns[:20])}; or declare its type "
                    "(types)",
                )
        parts = split(frame, output.partition_by, output.max_partitions)
        refuse_long_folders(self.store.output, [folder for folder, _ in parts])
        return parts

    def _stage_part(self, number: int, folder: str, data: memoryview, rows: int) -> StagedPart:
        output, attempt = self.store.output, uuid.uuid4().hex
        digest = hashlib.sha256(data).hexdigest()
        uri = file_uri(output, folder, number, self.store.ingest, attempt)
        staged = self.store.storage.stage(uri, data, attempt, staged_area(output), digest)
        return StagedPart(
            folder=folder,
            uri=uri,
            attempt=attempt,
            upload=staged.upload,
            parts=staged.parts,
            rows=rows,
            bytes=len(data),
            sha256=digest,
        )


class _Counted:
    """Frames whose rows are counted as they pass."""

    def __init__(self, frames: Iterable[pl.DataFrame]) -> None:
        self._frames, self.rows = frames, 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for frame in self._frames:
            self.rows += frame.height
            yield frame


class StageFile(BaseModel):
    """The work of staging a planned file."""

    model_config = ConfigDict(frozen=True)

    definition: str
    """Text of the definition's file."""
    ingest: str
    plan: str
    number: int
    bytes: int
    """Number of bytes that are read."""
    _staging: Staging | None = PrivateAttr(default=None)
    """What stages it in this process; others open it."""

    @classmethod
    def of(cls, staging: Staging, number: int, definition: str) -> Self:
        """Return the work of a planned file."""
        work = cls(
            definition=definition,
            ingest=staging.store.ingest,
            plan=staging.plan.plan,
            number=number,
            bytes=staging.bytes_of(number),
        )
        work._staging = staging
        return work

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"write file {self.number + 1}"

    @property
    def held(self) -> int:
        """Number of those that are in memory at a time."""
        assert self._staging is not None, "other processes do one at a time"
        return self._staging.held_of(self.number)

    def do(self, storage: Storage) -> StagedFile:
        """Stage the file."""
        assert self._staging is not None, "other processes use `pipeline.ingest.remote`"
        return self._staging.stage(self.number)


def _cut(frame: pl.DataFrame, files: float) -> Iterator[pl.DataFrame]:
    """Cut the rows of something large into so many files of about the same size."""
    rows = max(1, ceil(frame.height / max(1, round(files))))
    return (frame[start : start + rows] for start in range(0, frame.height, rows))


def files_of(output: str, staged: Sequence[StagedFile]) -> pl.DataFrame:
    """Return staged files as the files of a commit (schema FILES)."""
    rows = [
        {
            "key": part.uri.removeprefix(output),
            "rows": part.rows,
            "bytes": part.bytes,
            "sha256": part.sha256,
            "chunk": chunk_of(file.plan, file.number, at),
            "index": file.number,
            "attempt": part.attempt,
            "upload": part.upload,
            "parts": list(part.parts),
        }
        for file in staged
        for at, part in enumerate(file.parts)
    ]
    return pl.DataFrame(rows, schema=FILES, orient="row") if rows else FILES.to_frame()
