"""Publish a run of several outputs: to all of them, or to none.

Each output has a ledger of the run, whose completions share their attempts: an attempt at a chunk
stages a result for every output. What is published of a chunk is of the same attempt everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from pipeline.config.job import Job
from pipeline.errors import SchemaChangedError
from pipeline.runs.driver.appending import compared_since
from pipeline.runs.driver.commit import files_of, vanished_duplicates
from pipeline.runs.driver.drafts import Drafting
from pipeline.runs.driver.publish import finish_run
from pipeline.runs.driver.schemas import check_schemas, retyped_attempts
from pipeline.runs.driver.summary import OutputFigures
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.storage import Storage
from pipeline.table.claims import (
    claimed_commits,
    finish_open_claim,
    vanished_attempts,
    vanished_from,
)
from pipeline.table.errors import UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, CommitEntry, Manifest, run_of
from pipeline.table.publish import amend, refuse_released, released_names
from pipeline.table.publish_outputs import (
    OutputCommit,
    amend_part,
    freeze_part,
    publish_outputs,
)


@dataclass(slots=True)
class _RunOutput:
    """One of the outputs of a run."""

    ledger: Ledger
    record: RunRecord
    table_log: TableLog
    progress: Progress
    """Progress with the attempts that the first output's ledger chooses; `duplicates` has all
    others."""
    manifest: Manifest | None = None
    entries: Sequence[CommitEntry] = ()
    """Commits since the run's base."""

    @property
    def every(self) -> pl.DataFrame:
        """All completions."""
        return pl.concat([self.progress.completions, self.progress.duplicates])

    @property
    def files(self) -> pl.DataFrame:
        """Files of the chosen attempts (schema FILES)."""
        return files_of(self.table_log.output, self.progress.completions)

    def choose(self, attempts: pl.Series) -> None:
        """Choose these attempts."""
        self.progress = with_attempts(self.progress, attempts)

    def look(self) -> None:
        """Finish an open claim, and read what was published since the run's base.

        Raises:
            ForeignClaimError: it is another run's, which must map chunks again first.
            UploadsVanishedError: it is this run's.
        """
        run = self.ledger.run
        try:
            self.manifest = finish_open_claim(self.table_log)
        except UploadsVanishedError as error:
            if not error.waits_for(run):
                raise foreign_claim(self.table_log.output, error) from error
            raise
        self.entries = self.table_log.history(self.manifest.number, self.record.base)


def with_attempts(progress: Progress, attempts: pl.Series) -> Progress:
    """Choose these attempts; all others are duplicates."""
    every = pl.concat([progress.completions, progress.duplicates])
    chosen = every["attempt"].is_in(attempts.implode())
    completions = every.filter(chosen).sort("index", "attempt")
    return replace(progress, completions=completions, duplicates=every.filter(~chosen))


def follow_first(further: Ledger, first: Progress) -> Progress:
    """Read the progress of an output after the first, as far as the first output's ledger counts.

    Args:
        further: Ledger of the output.
        first: Progress that the first output's ledger has.
    """
    progress = with_attempts(further.read(), first.completions["attempt"])
    known = progress.duplicates.join(first.duplicates, on="attempt", how="semi")
    return replace(progress, duplicates=known)


def completions_of_outputs(ledger: Ledger, done: pl.DataFrame) -> list[tuple[Ledger, pl.DataFrame]]:
    """Return the completions for each output of the attempts that the first output's ledger counts.

    Args:
        ledger: Ledger of the first output.
        done: Its completions.
    """
    first, *others = ledger.of_outputs()
    read = [(other, other.read()) for other in others]
    return [
        (first, done),
        *((each, with_attempts(some, done["attempt"]).completions) for each, some in read),
    ]


def with_sums(done: pl.DataFrame, further: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add what attempts have written to further outputs to what they wrote to the first.

    Args:
        done: Completions for the first output.
        further: Completions of the same attempts for the others.
    """
    names = ("rows_out", "bytes_out")
    for frame in further:
        other = frame.select("attempt", *(pl.col(n).alias(f"{n}_more") for n in names))
        done = done.join(other, on="attempt", how="left", maintain_order="left")
        sums = [(pl.col(n) + pl.col(f"{n}_more").fill_null(0)).alias(n) for n in names]
        done = done.with_columns(sums).drop(f"{n}_more" for n in names)
    return done


def output_figures(
    job: Job, ledger: Ledger, done: pl.DataFrame, manifest: int | None
) -> tuple[OutputFigures, ...]:
    """Return what a run has written to each of its outputs.

    Args:
        job: The job.
        ledger: Ledger of the first output.
        done: Its completions.
        manifest: Number of the manifest that published the run to the first; None if none did.
    """
    pairs = completions_of_outputs(ledger, done)
    return tuple(
        OutputFigures(
            name=name,
            output=own.output,
            manifest=manifest if own is ledger or manifest is None else own.published(),
            rows=int(rows["rows_out"].sum()),
            bytes=int(rows["bytes_out"].sum()),
        )
        for name, (own, rows) in zip(job.outputs, pairs, strict=True)
    )


def publish_several(
    storage: Storage, ledger: Ledger, vanished: UploadsVanishedError | None = None
) -> int:
    """Publish what a run of several outputs has completed: to all of them, or to none.

    May be called repeatedly and by several processes, as `publish_run`.

    Args:
        storage: Where the outputs are.
        ledger: Ledger of the first output.
        vanished: Error of the last attempt, once its chunks have been mapped again.

    Returns:
        The number of the current manifest of the first output.

    Raises:
        UploadsVanishedError: staged outputs no longer exist; map their chunks and pass this error.
        ForeignClaimError, ConflictError, SchemaChangedError: as `publish_run`, of any of the
            outputs; nothing was published to the others.
    """
    if vanished is not None:
        ledger.void(vanished.attempts)
    outputs = _read(storage, ledger)
    for output in outputs:
        try:
            check_schemas(output.progress)
        except SchemaChangedError as error:
            where = f"{output.table_log.output}: {error.message}"
            raise SchemaChangedError(where, hint=error.hint) from error
    try:
        for output in outputs:
            if vanished is not None:
                _amend_claimed(output)
        while True:
            for output in outputs:
                output.look()
            parts = _parts(outputs)
            if not parts:
                break
            publish_outputs(parts, ledger.run)
    except UploadsVanishedError as error:
        for output in outputs:
            error.attempts += vanished_duplicates(output.table_log, output.progress.duplicates)
        ledger.void(error.attempts)
        raise
    _finish(outputs)
    manifest = outputs[0].manifest
    assert manifest is not None, "the outputs were looked at"
    return manifest.number


def _read(storage: Storage, ledger: Ledger) -> list[_RunOutput]:
    """Read the progress of all outputs, with the same attempts.

    Raises:
        UploadsVanishedError: chunks lack a completion for one of the outputs.
    """
    first, *others = ledger.of_outputs()
    chosen = first.read()
    followed = [follow_first(other, chosen) for other in others]
    retyped = [retyped_attempts(progress) for progress in (chosen, *followed)]
    if any(retyped):
        first.set_aside({attempt for attempts in retyped for attempt in attempts})
        chosen = first.read()
    outputs = [_output(storage, first, chosen)]
    for other in others:
        progress = with_attempts(other.read(), chosen.completions["attempt"])
        outputs.append(_output(storage, other, progress))
        lacking = chosen.completions.join(progress.completions, on="attempt", how="anti")
        if lacking.height:
            attempts = lacking["attempt"].to_list()
            first.void(attempts)
            raise UploadsVanishedError(attempts)
    return outputs


def _output(storage: Storage, ledger: Ledger, progress: Progress) -> _RunOutput:
    return _RunOutput(ledger, ledger.record(), TableLog(storage, ledger.output), progress)


def _amend_claimed(output: _RunOutput) -> None:
    """Amend the run's claimed commit with attempts at chunks that were mapped again.

    Only where the claimed attempts vanished from this output: others may be visible already, or
    another driver is about to make them visible.

    Raises:
        UploadsVanishedError: chunks have not been mapped again.
    """
    log, run = output.table_log, output.ledger.run
    head, _ = log.head()
    claim = head.publishing or Claim(base=head.current)
    own = [name for name in claim.commits if run_of(name) == run]
    for commit in claimed_commits(log, claim, own):
        gone = vanished_attempts(log, commit.files)
        if gone:
            amend(log, vanished_from([commit], gone), run, output.files)


def _parts(outputs: Sequence[_RunOutput]) -> list[OutputCommit]:
    """Freeze a commit for each output that lacks the run, with the same attempts."""
    released = [released_names(output.entries, output.ledger.run) for output in outputs]
    for output, names in zip(outputs, released, strict=True):
        refuse_released(output.table_log, output.progress.completions, names)
    parts: list[OutputCommit] = []
    for output, names in zip(outputs, released, strict=True):
        draft = _draft(output, names)
        if draft is None:
            continue
        frozen = freeze_part(draft)
        if not parts:
            # It may have been frozen before other attempts were stored; all outputs go by it.
            _choose_frozen(outputs, frozen.commit.files)
        parts.append(amend_part(frozen, output.files))
    return parts


def _draft(output: _RunOutput, released: Sequence[str]) -> OutputCommit | None:
    ledger, progress = output.ledger, output.progress
    drafting = Drafting(
        table_log=output.table_log,
        record=output.record,
        job=ledger.job(),
        plan=ledger.plan(),
        progress=progress,
        done=progress.completions,
        rule=None,
        windows={},
    )
    drafts = drafting.drafts(output.entries, released, without_failed=False)
    assert output.manifest is not None, "the outputs were looked at"
    compare = compared_since(output.table_log, output.manifest, ledger)
    rules = (ledger.accepted(), ledger.widens, compare)
    return next((OutputCommit(output.table_log, d, *rules) for d in drafts), None)


def _choose_frozen(outputs: Sequence[_RunOutput], files: pl.DataFrame) -> None:
    """Choose the attempts of a frozen commit, as far as all outputs have them."""
    frozen = files.select("chunk", "attempt")
    for output in outputs:
        frozen = frozen.join(output.every.select("attempt"), on="attempt", how="semi")
    usual = outputs[0].progress.completions.select("chunk", "attempt")
    chosen = pl.concat([frozen, usual.join(frozen, on="chunk", how="anti")])["attempt"]
    for output in outputs:
        output.choose(chosen)


def _finish(outputs: Sequence[_RunOutput]) -> None:
    """Abort duplicates, and record the run as published once it is in all outputs."""
    done = []
    for output in outputs:
        assert output.manifest is not None, "the outputs were looked at"
        own = [entry for entry in output.entries if entry.run == output.ledger.run]
        if not any(not entry.missing for entry in own):
            return
        done.append((output, output.manifest, own))
    # The first output's note comes last: by it, the run is done.
    for output, manifest, own in reversed(done):
        finish_run(
            output.ledger, output.table_log, output.progress, manifest, own=own, published=()
        )
