"""Progress and result of a pipeline, and the errors of one that a stage has stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import RunFailedError

ResultState = Literal["done", "unchanged", "skipped", "failed", "left out"]


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage has done."""

    name: str
    kind: str
    source: str
    """File or function, for people."""
    state: ResultState
    """`done`: it did something. `unchanged`: there was nothing to do. `skipped`: by its condition,
    or since a stage that it needs was skipped. `left out`: by `--from` or `--only`."""
    reason: str = ""
    """Why it has this state."""
    was: str = ""
    """State that was noted before, of a stage that is left out."""
    rows: int = 0
    """Rows of its result: of the ingest, the run, or the version that is loaded; what a call has
    returned."""
    changed: bool = False
    """Whether it did something in this attempt of the pipeline, even if an earlier process did."""
    published: bool = False
    """Whether there is a result."""
    output: str = ""
    """URI of its output, or the table."""
    manifest: int = 0
    version: str = ""
    """What identifies the result."""
    notes: tuple[str, ...] = ()
    """What a user should know, in sentences."""
    seconds: float = 0.0

    @property
    def fact_state(self) -> str:
        """The state that conditions see."""
        return self.was or self.state


@dataclass(frozen=True, slots=True)
class PipelineSummary:
    """The result of a pipeline."""

    pipeline: str
    run: str
    """Id; the same parameters have the same id."""
    parameters: dict[str, str]
    attempt: int
    state: Literal["done", "failed"]
    stages: tuple[StageResult, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


class StageFailedError(RunFailedError):
    """A stage failed, and the stages after it did not begin.

    Attributes:
        stage: Its name.
        summary: The pipeline's figures.
    """

    def __init__(
        self, stage: str, message: str, hint: str | None, summary: PipelineSummary
    ) -> None:
        super().__init__(f"stage {stage}: {message}", hint)
        self.stage = stage
        self.summary = summary


class StageRefusedError(StageFailedError):
    """A stage cannot use its definition, its input or its output."""

    exit_code = 2


class StageConflictError(StageFailedError):
    """Another run or commit was faster, or has replaced what a stage had published."""

    exit_code = 3


def stage_error(
    stage: str, error: Exception, message: str, hint: str | None, summary: PipelineSummary
) -> StageFailedError:
    """Return the error of a pipeline that ends with the error of a stage."""
    code = getattr(error, "exit_code", StageRefusedError.exit_code)
    kinds = {2: StageRefusedError, 3: StageConflictError}
    return kinds.get(code, StageFailedError)(stage, message, hint, summary)
