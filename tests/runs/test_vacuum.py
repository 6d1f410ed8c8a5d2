"""What vacuum leaves alone while others work on the same output."""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import override

from pipeline.runs.admin.vacuum import vacuum
from pipeline.storage import StagedObject, Storage
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import OUTPUT, Run, plan_of, run_of


class Busy(MemoryBackend):
    """Storage where a run begins, and completes a chunk, just before staged outputs are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Run] = []

    @override
    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        run = run_of(Storage({"s3": self}), plan_of(2), code=f"code {len(self.begun)}")
        run.complete(0)
        self.begun.append(run)
        return super().staged_under(prefix, area)


def test_what_a_run_stages_that_begins_meanwhile_is_spared() -> None:
    backend = Busy()
    result = vacuum(backend.storage(), OUTPUT, older_than=0.0)
    [run] = backend.begun
    assert (result.uploads, result.spared) == (0, (run.ledger.run,))
    assert len(backend.uploads) == 1
