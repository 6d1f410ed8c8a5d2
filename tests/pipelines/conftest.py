"""Pipelines in a folder of their own, whose stages run in this process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from pipeline.config.pipeline_file import parse_pipeline
from pipeline.config.settings import Settings, load_settings
from pipeline.pipelines.driver import PipelineOptions, run_stages
from pipeline.pipelines.preview import StagePlan, preview_stages
from pipeline.pipelines.runner import LocalRunner
from pipeline.pipelines.state import PipelineStore
from pipeline.pipelines.summary import PipelineSummary, StageResult
from pipeline.storage import Storage, own_storage
from tests.support.faulty_storage import KilledError

CALLS = """\
calls = []


def note(facts, fails=False, rows=None):
    calls.append(facts)
    if fails:
        raise ValueError("no such address: https://me:secret@host/")
    return rows


def other(facts):
    return "text"
"""


@dataclass
class KillingRunner(LocalRunner):
    """Ends the process before or after it has run a stage."""

    settings: Settings
    storage: Storage
    at: str = ""
    """Stage."""
    after: bool = False

    def __post_init__(self) -> None:
        super().__init__(self.settings, self.storage)
        self.ran: list[str] = []
        self.shown: list[StageResult] = []

    def _do(self, stage: str, work: Callable[[], Any]) -> Any:
        if stage == self.at and not self.after:
            raise KilledError
        self.ran.append(stage)
        result = work()
        if stage == self.at:
            raise KilledError
        return result

    @override
    def ingest(self, stage: str, definition: Any, *, refresh: bool) -> Any:
        def work() -> Any:
            return super(KillingRunner, self).ingest(stage, definition, refresh=refresh)

        return self._do(stage, work)

    @override
    def map(self, stage: str, job: Any, early: Any, resume: Any) -> Any:
        return self._do(stage, lambda: super(KillingRunner, self).map(stage, job, early, resume))

    @override
    def load(self, stage: str, file: Any) -> Any:
        return self._do(stage, lambda: super(KillingRunner, self).load(stage, file))

    @override
    def call(self, stage: str, work: Any) -> Any:
        return self._do(stage, work)

    @override
    def passed(self, result: StageResult) -> None:
        self.shown.append(result)


@dataclass
class Folder:
    """A folder with a module of functions, which is the working directory."""

    root: Path
    module: str = field(default_factory=lambda: f"calls_{uuid.uuid4().hex[:8]}")
    ran: list[str] = field(default_factory=list)
    """Stages that the last run has run."""
    shown: list[StageResult] = field(default_factory=list)
    """Stages that it has passed over."""

    def __post_init__(self) -> None:
        (self.root / "conf").mkdir()
        (self.root / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{self.module}]}}\n")
        self.code(CALLS)

    def code(self, text: str) -> None:
        (self.root / f"{self.module}.py").write_text(text)

    @property
    def settings(self) -> Settings:
        return load_settings(overrides={"state_dir": str(self.root / ".chunkmap")})

    @property
    def store(self) -> PipelineStore:
        return PipelineStore.of(own_storage(), "notes/")

    def pipeline(self, stages: str, parameters: str = "{}", **values: Any) -> Any:
        text = f"name: daily\nstate: notes/\nparameters: {parameters}\npipeline:\n{stages}"
        text = text.replace("MODULE", self.module)
        return parse_pipeline(text, "daily.yaml", self.root).resolve(values)

    def run(
        self,
        pipeline: Any,
        *,
        storage: Storage | None = None,
        dies: str = "",
        after: bool = False,
        **options: Any,
    ) -> PipelineSummary:
        """Run a pipeline, in a process that ends at a stage if one is named."""
        storage = storage or own_storage()
        runner = KillingRunner(self.settings, storage, dies, after)
        self.ran, self.shown = runner.ran, runner.shown
        return run_stages(
            pipeline, self.settings, storage, runner, options=PipelineOptions(**options)
        )

    def plan(self, pipeline: Any, **options: Any) -> list[StagePlan]:
        return preview_stages(pipeline, self.settings, own_storage(), PipelineOptions(**options))

    def states(self, summary: PipelineSummary) -> list[str]:
        return [stage.state for stage in summary.stages]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def actions(plans: Sequence[StagePlan]) -> list[str]:
    return [plan.action for plan in plans]
