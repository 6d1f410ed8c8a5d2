"""Reduce: combine partial results in batches, then in a tree; then finalize and stage the result.

`combine` is associative and keeps the columns, so the grouping of chunks does not matter. Partials
and the tree's nodes are immutable objects in the run's state. The name of a node derives from its
inputs, so a reduce that was interrupted redoes only the nodes that are missing.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.errors import AccessDeniedError, StateError, TransformError
from pipeline.runs.ledger.checks import NODE_NAME, PARTIAL_NAME
from pipeline.runs.ledger.keys import reduced_uri
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL, REDUCE, Completion, digest_of
from pipeline.runs.transforms.loading import load_transform
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.chunk import (
    RunContext,
    arrange,
    check_figures,
    encode,
    open_run,
    schema_text,
)
from pipeline.runs.worker.chunk_source import engine_for
from pipeline.runs.worker.code_report import naming_worker
from pipeline.runs.worker.groups import store_pieces
from pipeline.storage import Storage, join, staged_area
from pipeline.storage.documents import reading, seal_bytes, unseal_bytes

_NAMES = re.compile(f"(?:{PARTIAL_NAME})|(?:{NODE_NAME})")
FAN_IN = 16
"""Maximum number of partials that one step combines."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the tree, which combines some partials or nodes into a node."""

    name: str
    """Name of the node, derived from the inputs."""
    inputs: tuple[str, ...]
    """Names of the combined objects below the run's prefix."""
    is_last: bool
    """Whether to finalize and stage the result."""


def tree(partials: Sequence[str]) -> list[list[Step]]:
    """Build the steps that combine all partials, level by level; the last level has one step."""
    levels: list[list[Step]] = []
    names = sorted(partials)
    while True:
        groups = [tuple(names[i : i + FAN_IN]) for i in range(0, len(names), FAN_IN)]
        level = [Step(_node(group), group, len(groups) == 1) for group in groups]
        levels.append(level)
        if len(level) <= 1:
            return levels
        names = [step.name for step in level]


def _node(inputs: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:32]
    return f"reduced/{digest}.arrow"


def store_partial(
    context: RunContext, name: str, frames: Sequence[pl.DataFrame]
) -> tuple[str, int]:
    """Combine chunks' results and store the partial in the run's state; return URI and bytes."""
    data = _to_ipc(combine(context, frames))
    uri = join(context.ledger.prefix, "partials", f"{name}.arrow")
    context.storage.put_new(uri, data)
    return uri, len(data)


def reduce_step(
    run_uri: str, fingerprint: str, step: Step, worker: str = "serial", *, sent: str = ""
) -> None:
    """Run one step, unless its result exists; `sent` are the settings of the run."""
    with naming_worker(worker):
        context = open_run(run_uri, fingerprint, sent)
    ledger, storage = context.ledger, context.storage
    if not step.is_last and _exists(storage, ledger.prefix + step.name):
        return
    started, clock = time.time(), time.perf_counter()
    frames = [_from_ipc(storage.get(uri).data, uri) for uri in _inputs(ledger, step)]
    result = combine(context, frames)
    if step.is_last:
        final, stage = finalize(context, result), _store_for_groups
        if context.job.then is None:
            final, stage = arrange(final, context.job), _stage
        schema = schema_text(final)  # Before anything is staged: it may be refused.
        done = stage(context, step, final, worker, (started, time.perf_counter() - clock))
        ledger.write_segment(f"reduce-{done.attempt}", [done], [schema])
    else:
        storage.put(ledger.prefix + step.name, _to_ipc(result))


def _exists(storage: Storage, uri: str) -> bool:
    # For missing objects, S3 denies access to clients without the right to list; then run the step.
    with suppress(AccessDeniedError):
        return storage.get_or_none(uri) is not None
    return False


def combine(context: RunContext, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Merge partial results with the job's `combine`.

    Raises:
        TransformError: `combine` raised, or changed the columns.
    """
    assert context.job.reduce is not None, "only a job with a reduce combines"
    name = context.job.reduce.combine
    call = load_transform(name, {}, context.settings.transforms).call
    with context.tables.used():
        result = call_and_collect(
            name, call, [frame.lazy() for frame in frames], sum(map(_bytes_of, frames))
        )
    if result.schema != frames[0].schema:
        raise TransformError(
            f"{name} changed the columns from {dict(frames[0].schema)} to {dict(result.schema)}",
            hint="combine must return a frame with the columns and types of its inputs; put other "
            "changes into finalize",
        )
    return result


def finalize(context: RunContext, frame: pl.DataFrame) -> pl.DataFrame:
    """Apply the job's `finalize`, if it has one, to the combined result."""
    assert context.job.reduce is not None, "only a job with a reduce finalizes"
    name = context.job.reduce.finalize
    if name is None:
        return frame
    with context.tables.used():
        return call_and_collect(
            name,
            load_transform(name, {}, context.settings.transforms).call,
            frame.lazy(),
            _bytes_of(frame),
        )


def _bytes_of(frame: pl.DataFrame) -> int:
    return int(frame.estimated_size())


def call_and_collect(
    name: str, call: Callable[..., Any], argument: Any, size: float = math.inf
) -> pl.DataFrame:
    """Call a user's function and collect the LazyFrame that it returns.

    Args:
        name: The function's name, for errors.
        call: The function.
        argument: What it is called with.
        size: Bytes of the frames in `argument`, if known.
    """
    with user_code(name):
        result = call(argument)
        if isinstance(result, pl.LazyFrame):
            return result.collect(engine=engine_for(size))
    raise TransformError(f"{name} returned {type(result).__name__}, not a LazyFrame")


def _stage(
    context: RunContext,
    step: Step,
    frame: pl.DataFrame,
    worker: str,
    timing: tuple[float, float],
) -> Completion:
    """Stage the result of the reduce as a file of the output."""
    data, encodings = encode(frame, context.job)
    attempt, clock = uuid.uuid4().hex, time.perf_counter()
    checked = check_figures(context, frame, attempt)
    uri = reduced_uri(context.ledger.output, context.record.run, attempt)
    staged = context.storage.stage(uri, data, attempt, staged_area(context.ledger.output))
    return _completion(
        context,
        step,
        frame,
        worker,
        timing,
        attempt=attempt,
        stage_seconds=time.perf_counter() - clock,
        bytes_out=len(data),
        uri=uri,
        upload=staged.upload,
        parts=staged.parts,
        sha256=hashlib.sha256(data).hexdigest(),
        encodings=encodings,
        checked=checked,
    )


def _store_for_groups(
    context: RunContext,
    step: Step,
    frame: pl.DataFrame,
    worker: str,
    timing: tuple[float, float],
) -> Completion:
    """Store the result of the reduce in pieces, over which `then` is mapped."""
    attempt, clock = uuid.uuid4().hex, time.perf_counter()
    uri = f"{context.ledger.prefix}reduced/{attempt}/"
    size = store_pieces(context.storage, uri, frame, context.job)
    return _completion(
        context,
        step,
        frame,
        worker,
        timing,
        attempt=attempt,
        stage_seconds=time.perf_counter() - clock,
        bytes_out=size,
        uri=uri,
        upload=PARTIAL,
        parts=(),
        sha256="",
    )


def _completion(
    context: RunContext,
    step: Step,
    frame: pl.DataFrame,
    worker: str,
    timing: tuple[float, float],
    **where: Any,
) -> Completion:
    """Make the completion of a reduce; `where` holds the fields of its stored result."""
    started, seconds = timing
    return Completion(
        chunk=step.name,
        index=0,
        batch=REDUCE,
        worker=worker,
        started=started,
        seconds=time.time() - started,
        read_seconds=0.0,
        compute_seconds=seconds,
        rows_in=frame.height,
        rows_out=frame.height,
        bytes_in=0,
        code=context.code,
        schema=digest_of(schema_text(frame)),
        **where,
    )


def _inputs(ledger: Ledger, step: Step) -> list[str]:
    """Return the URIs of a step's inputs, which must be below its run's prefix."""
    for name in (step.name, *step.inputs):
        if not _NAMES.fullmatch(name):
            raise StateError(ledger.prefix + name, "it is neither a partial nor a step of a reduce")
    return [ledger.prefix + name for name in step.inputs]


def _to_ipc(frame: pl.DataFrame) -> bytes:
    """Encode a frame as Arrow IPC with a checksum."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="zstd")
    return seal_bytes(buffer.getvalue())


def _from_ipc(data: bytes, uri: str) -> pl.DataFrame:
    """Decode what `_to_ipc` wrote, or earlier releases without a checksum.

    Raises:
        StateError: the data are damaged.
    """
    with reading(uri, "map all chunks again: run the job with --replan"):
        body = unseal_bytes(data)
        if not body.startswith(b"ARROW1"):
            raise ValueError("it is not a partial result")
        return pl.read_ipc(io.BytesIO(body))
