"""A folder with a daily dataset, a job over it, and backfills through the serial engine."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.job import Job
from pipeline.config.settings import Settings, load_settings
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import Draft, WindowSelection, create, draft
from pipeline.runs.backfill.records import BackfillResumeOptions, Options
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.storage import Storage, own_storage
from pipeline.table.log import TableLog
from pipeline.table.scan import scan_output

TRANSFORM = """
import os
from pathlib import Path
import polars as pl

def double(frame):
    return frame.with_columns(twice=pl.col("value") * 2)

def only_double(frame):
    return frame.select(twice=pl.col("value") * 2)

def triple(frame):
    return frame.with_columns(twice=pl.col("value") * 3)

def nothing(frame):
    return double(frame).filter(pl.lit(False))

def fails(frame, days, fixed):
    bad = [] if Path(fixed).exists() else days
    def check(series):
        if series.dt.to_string("%Y-%m-%d").is_in(bad).any():
            raise ValueError(f"cannot do {series[0]}")
        return series
    return frame.with_columns(pl.col("ds").map_batches(check, return_dtype=pl.Date))
"""


def days(start: str, count: int) -> list[date]:
    first = date.fromisoformat(start)
    return [first + timedelta(days=number) for number in range(count)]


@dataclass
class Days:
    """A dataset `ds=2024-02-27/…` of some days, two files a day."""

    root: Path
    module: str = field(default_factory=lambda: f"transforms_{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        (self.root / f"{self.module}.py").write_text(TRANSFORM)
        (self.root / "conf").mkdir(exist_ok=True)
        (self.root / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{self.module}]}}\n")

    @property
    def input(self) -> Path:
        return self.root / "in"

    @property
    def output(self) -> str:
        return str(self.root / "out")

    def write(self, wanted: Iterable[date], value: float = 1.0) -> None:
        for day in wanted:
            folder = self.input / f"ds={day}"
            folder.mkdir(parents=True, exist_ok=True)
            for part in range(2):
                start = day.toordinal() * 10 + part * 5
                ids = pl.int_range(start, start + 5, eager=True)
                rows = pl.DataFrame({"id": ids, "value": ids * value})
                rows.write_parquet(folder / f"{part}.parquet")

    def job(self, function: str = "double", **more: Any) -> Job:
        return Job.model_validate(
            {
                "name": "daily",
                "input": {"uri": str(self.input)},
                "transform": f"{self.module}:{function}",
                "chunks": {"per_file": True},
                "output": {"uri": self.output, "mode": "overwrite-partitions"},
                "window": {"column": "ds", "grain": "day"},
                "rounds": 1,
                "retries": 0,
                **more,
            }
        )

    @property
    def settings(self) -> Settings:
        return load_settings(overrides={"state_dir": str(self.root / ".chunkmap")})

    @property
    def storage(self) -> Storage:
        return own_storage()

    def draft(
        self,
        job: Job,
        asked: WindowSelection | None = None,
        *,
        accept_code: bool = False,
        **options: Any,
    ) -> Draft:
        chosen = Options(**options)
        return draft(
            job,
            self.settings,
            self.storage,
            asked or WindowSelection(),
            chosen,
            accept_code=accept_code,
        )

    def create(
        self, job: Job, asked: WindowSelection | None = None, **options: Any
    ) -> BackfillStore:
        created = create(self.storage, self.draft(job, asked, **options))
        assert created is not None, "there is something to do"
        return created[0]

    def driver(
        self, store: BackfillStore, again: BackfillResumeOptions | None = None
    ) -> BackfillDriver:
        return BackfillDriver(
            store, self.settings, NoBackfillOrchestrator(), again or BackfillResumeOptions()
        )

    def drive(
        self, store: BackfillStore, again: BackfillResumeOptions | None = None
    ) -> BackfillSummary:
        return self.driver(store, again).run()

    def run(
        self, job: Job, asked: WindowSelection | None = None, **options: Any
    ) -> BackfillSummary:
        return self.drive(self.create(job, asked, **options))

    def rows(self, version: int | None = None) -> pl.DataFrame:
        """What readers of the manifest see, in order."""
        frame = scan_output(self.output, version=version).collect()
        return frame.sort("id").select(sorted(frame.columns))

    def expected(self, factor: float = 2.0) -> pl.DataFrame:
        """What plain Polars makes of the whole input."""
        frame = pl.read_parquet(self.input / "**/*.parquet", hive_partitioning=True)
        frame = frame.with_columns(twice=pl.col("value") * factor)
        return frame.sort("id").select(sorted(frame.columns))

    def manifest_numbers(self) -> int:
        return TableLog(self.storage, self.output).manifest().number

    def windows_held(self) -> list[str]:
        commits = TableLog(self.storage, self.output).manifest().commits
        return sorted({entry.window for entry in commits if entry.window})
