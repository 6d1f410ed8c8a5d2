"""An output that is a Delta table, in a folder, and runs of it made by hand."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import polars as pl
from deltalake import DeltaTable

from partitioning import Plan
from pipeline.config.job import Job, Table
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.delta.log import DeltaLog
from pipeline.table.log import TableLog
from pipeline.table.scan import scan_output
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script
from tests.support.memory_storage import AT_ONCE
from tests.support.runs_by_hand import Run, job_of_run

Rows = Counter[tuple[str | None, int]]
"""Partition (None: no folder) and id of each row."""


@dataclass(frozen=True)
class DeltaOutput:
    """The output `<root>/t/`."""

    root: Path
    script: Script | None = None
    """How requests fail; None: they do not."""

    @property
    def uri(self) -> str:
        return f"file://{self.root}/t/"

    @property
    def storage(self) -> Storage:
        if self.script is None:
            return Storage({"file": LocalBackend()}, AT_ONCE)
        return Storage({"file": Faulty(LocalBackend(), self.script, KilledError)}, AT_ONCE)

    @property
    def table_log(self) -> TableLog:
        """As a new process sees it."""
        return TableLog(self.storage, self.uri)

    @property
    def _kept(self) -> Path:
        return self.root.with_name(f"{self.root.name}-kept")

    def keep(self) -> None:
        """Keep a copy of the output and its state, for `reset`."""
        # By links: staged files are known by their inodes.
        shutil.copytree(self.root, self._kept, copy_function=os.link)

    def reset(self) -> None:
        """Make the output what it was at `keep`; its URI is in its records."""
        shutil.rmtree(self.root)
        shutil.copytree(self._kept, self.root, copy_function=os.link)

    def job(self, mode: str, plan: Plan, code: str, **more: object) -> Job:
        job = job_of_run(mode, plan, code, self.uri)
        changes = {"table": Table(format="delta"), **more}
        return job.model_copy(update={"output": job.output.model_copy(update=changes)})

    def run(self, plan: Plan, mode: str, code: str = "code", **more: object) -> Run:
        """A run that is mapped, on top of what is current."""
        base = self.table_log.head()[0].current
        ledger = Ledger.create(self.storage, self.job(mode, plan, code, **more), plan, code, base)
        run = Run(self.storage, ledger, plan)
        run.complete()
        return run

    def publish(self, plan: Plan, mode: str, code: str = "code") -> Run:
        run = self.run(plan, mode, code)
        publish_run(self.storage, run.ledger)
        return run

    def visible(self) -> set[str]:
        """Parquet files that are in the output."""
        found = {info.uri.removeprefix(self.uri) for info in self.storage.objects(self.uri)}
        return {key for key in found if not key.startswith("_delta_log/")}

    def versions(self) -> dict[int, int]:
        """Version of the table for each manifest; each manifest was committed once."""
        commits = DeltaTable(f"{self.root}/t").history()
        ours = [commit for commit in commits if "chunkmap.manifest" in commit]
        numbers = [int(commit["chunkmap.manifest"]) for commit in ours]
        assert len(numbers) == len(set(numbers)), numbers
        return dict(zip(numbers, (commit["version"] for commit in ours), strict=True))

    def check(self, readers: int = 3) -> None:
        """The table has the files of the current manifest and their rows, as readers see them."""
        table_log = self.table_log
        head, _ = table_log.head()
        assert head.publishing is None
        manifest = table_log.manifest(head.current)
        named = set(table_log.keys(manifest.commits))
        table = DeltaTable(f"{self.root}/t")
        assert table.transaction_version("chunkmap") == head.current
        assert {uri.removeprefix(f"{self.root}/t/") for uri in table.file_uris()} == named
        if readers < 3:
            return
        wanted = scanned(self.uri, None) if named else Counter()
        assert rows_of(pl.scan_delta(f"{self.root}/t").collect()) == wanted
        assert rows_of(pl.DataFrame(pl.from_arrow(table.to_pyarrow_table()))) == wanted


def rows_of(frame: pl.DataFrame) -> Rows:
    """Count the rows by partition and id."""
    if "k" not in frame.columns:
        frame = frame.with_columns(k=pl.lit(None))
    return Counter((None if k is None else str(k), i) for k, i in frame.select("k", "id").rows())


def scanned(uri: str, version: int | None) -> Rows:
    return rows_of(scan_output(uri, version).collect())


def delta_rows(output: DeltaOutput, version: int | None) -> Rows:
    return rows_of(pl.scan_delta(f"{output.root}/t", version=version).collect())


class Calls:
    """Counts calls of `DeltaLog` together with requests of storage, and fails by a script."""

    def __init__(self, script: Script) -> None:
        self.count = 0
        self.names: list[str] = []
        self._script = script

    def request(self, number: int, name: str) -> Fault:
        """A request of the storage layer; its own number does not count."""
        return self._next(name)

    def _next(self, name: str) -> Fault:
        number, self.count = self.count, self.count + 1
        self.names.append(name)
        return self._script(number, name)

    @contextmanager
    def around_delta(self) -> Iterator[None]:
        """Let calls of the Delta log fail too: before they do anything, or after."""

        def wrap(name: str) -> object:
            original = getattr(DeltaLog, name)

            def call(log: DeltaLog, *args: object, **more: object) -> object:
                fault = self._next(f"delta {name}")
                if fault in ("before", "late"):
                    raise KilledError
                result = original(log, *args, **more)
                if fault == "after":
                    raise KilledError
                return result

            return call

        with (
            patch.object(DeltaLog, "read", wrap("read")),
            patch.object(DeltaLog, "create", wrap("create")),
            patch.object(DeltaLog, "add_columns", wrap("add_columns")),
            patch.object(DeltaLog, "commit", wrap("commit")),
        ):
            yield


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
