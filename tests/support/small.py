"""A folder with a transform, a small input, and runs through the serial engine."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.job import Job
from pipeline.config.settings import Settings, load_settings
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, own_storage
from pipeline.table.scan import scan_output


class Small:
    """Input, output and code in a folder, which the test has made its working directory."""

    def __init__(self, root: Path, code: str) -> None:
        self.root = root
        self.module = f"transforms_{uuid.uuid4().hex[:8]}"
        (root / "conf").mkdir()
        (root / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{self.module}]}}\n")
        self.code(code)

    def code(self, text: str) -> None:
        """Replace the transforms."""
        (self.root / f"{self.module}.py").write_text(text)

    def write(self, key: str, frame: pl.DataFrame, folder: str = "in") -> None:
        path = self.root / folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)

    @property
    def input(self) -> str:
        return f"file://{self.root}/in/"

    @property
    def output(self) -> str:
        return f"file://{self.root}/out/"

    def job(self, function: str = "same", mode: str = "append", **more: Any) -> Job:
        output = {"uri": self.output, "mode": mode} | more.pop("output", {})
        said: dict[str, Any] = {
            "name": "test",
            "input": {"uri": self.input},
            "transform": f"{self.module}:{function}",
            "chunks": {"per_file": True},
            "output": output,
            "rounds": 1,
        }
        return Job.model_validate(said | more)

    @property
    def settings(self) -> Settings:
        return load_settings(overrides={"state_dir": str(self.root / ".chunkmap")})

    @property
    def storage(self) -> Storage:
        return own_storage()

    def run(self, job: Job, **resume: Any) -> RunSummary:
        return run_serially(job, self.settings, self.storage, ResumeOptions(**resume))

    def ledger(self, summary: RunSummary) -> Ledger:
        return Ledger(self.storage, self.output, summary.run)

    def rows(self) -> pl.DataFrame:
        """What the current manifest of the output has."""
        return scan_output(self.output).collect()
