"""Stage the planned files of an ingest: invisible until they are published."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import polars as pl

from pipeline.config.ingest import Ingest
from pipeline.errors import PartitionColumnError
from pipeline.ingest.plan import chunk_of, file_format, text_columns, types_of
from pipeline.ingest.rows import Rows
from pipeline.ingest.store import IngestPlan, IngestStore, StagedFile, StagedPart
from pipeline.runs.ledger.keys import file_uri, refuse_long_folders
from pipeline.runs.worker.encoding import write_parquet
from pipeline.runs.worker.slices import split
from pipeline.storage import StagedObject, staged_area
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

    def all(self, void: Collection[str]) -> list[StagedFile]:
        """Stage the files that are not staged yet; return one for each planned file, in order.

        Args:
            void: Attempts whose staged objects no longer exist.
        """
        chosen: dict[int, StagedFile] = {}
        for staged in self.store.staged(self.plan):
            if all(part.attempt not in void for part in staged.parts):
                chosen.setdefault(staged.number, staged)
        for number in range(len(self.plan.files)):
            self.listen(number, len(self.plan.files))
            if number not in chosen:
                chosen[number] = self._stage(number)
        self.listen(len(self.plan.files), len(self.plan.files))
        return [chosen[number] for number in range(len(self.plan.files))]

    def duplicates(self, chosen: Collection[str]) -> list[StagedObject]:
        """Return what was staged in other attempts than the chosen ones."""
        parts = (part for staged in self.store.staged(self.plan) for part in staged.parts)
        return [
            StagedObject(part.uri, part.upload, part.parts, part.bytes, part.attempt)
            for part in parts
            if part.attempt not in chosen
        ]

    def _stage(self, number: int) -> StagedFile:
        start, end = self.plan.files[number]
        types = types_of(self.plan)
        frame = self.rows.frame(start, end, types, text_columns(self.ingest))
        size = self.plan.ratio * sum(unit.bytes for unit in self.rows.units[start:end])
        parts = tuple(
            self._stage_part(number, folder, rows)
            for folder, whole in self._by_folder(frame)
            for rows in _cut(whole, size / self.ingest.output.file_bytes)
        )
        staged = StagedFile(
            ingest=self.store.ingest,
            plan=self.plan.plan,
            number=number,
            attempt=uuid.uuid4().hex,
            parts=parts,
        )
        self.store.note_staged(staged)
        return staged

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

    def _stage_part(self, number: int, folder: str, frame: pl.DataFrame) -> StagedPart:
        output, attempt = self.store.output, uuid.uuid4().hex
        data, _ = write_parquet(frame, file_format(self.ingest))
        digest = hashlib.sha256(data).hexdigest()
        uri = file_uri(output, folder, number, self.store.ingest, attempt)
        staged = self.store.storage.stage(uri, data, attempt, staged_area(output), digest)
        return StagedPart(
            folder=folder,
            uri=uri,
            attempt=attempt,
            upload=staged.upload,
            parts=staged.parts,
            rows=frame.height,
            bytes=len(data),
            sha256=digest,
        )


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
