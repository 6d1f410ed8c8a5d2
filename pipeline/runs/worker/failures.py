"""Record why a chunk failed: which rows it has, and the user's own frames before all others."""

from __future__ import annotations

import inspect
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePath
from types import CodeType
from typing import Any

from partitioning import Chunk
from pipeline.errors import GroupsFailedError, TransformError, Transient
from pipeline.masking import mask_text
from pipeline.printable import encodable
from pipeline.runs.ledger.records import Failure
from pipeline.runs.transforms.reach import allows
from pipeline.runs.transforms.user_code import message_of

MESSAGE_CHARACTERS = 2000
"""Maximum length of an error message; longer ones (Polars prints whole query plans) are cut."""
TRACE_CHARACTERS = 2 * MESSAGE_CHARACTERS
"""Maximum length of the user's part of a traceback, and of the rest."""


def failure_of(
    chunk: Chunk,
    error: BaseException,
    batch: str,
    worker: str,
    *,
    call: Callable[..., Any] | None = None,
    allow: Sequence[str] = (),
) -> Failure:
    """Make the record of a failed attempt.

    Args:
        chunk: The chunk.
        error: What its work raised.
        batch: Name of its batch.
        worker: Name of the worker.
        call: The transform.
        allow: Modules and packages that may define transforms; the user's frames are theirs.
    """
    frames = list(_user_frames(_raised(error), allow))
    line = _place(frames[-1][0], frames[-1][1]) if frames else ""
    if not frames and call is not None and isinstance(error, TransformError) and error.__cause__:
        line = _query_of(call)
    return Failure(
        chunk=chunk.id,
        index=chunk.index,
        batch=batch,
        attempt=uuid.uuid4().hex,
        worker=worker,
        at=time.time(),
        error=type(error).__name__,
        # Masked before it is cut: a part of a secret is one too.
        message=encodable(mask_text(message_of(error)))[:MESSAGE_CHARACTERS],
        transient=isinstance(error, Transient),
        trace=encodable(_trace(error, frames)),
        where=encodable(error.groups if isinstance(error, GroupsFailedError) else where_of(chunk)),
        line=encodable(line),
    )


def where_of(chunk: Chunk) -> str:
    """Name a chunk's objects, rows and partition."""
    first, *others = chunk.fragments
    text = f"{first.uri}, rows {first.row_start:,} to {first.row_start + first.rows - 1:,}"
    objects = len({fragment.uri for fragment in chunk.fragments}) - 1
    if objects:
        rest = sum(fragment.rows for fragment in others)
        text += f", and {rest:,} rows of {objects:,} more {'object' if objects == 1 else 'objects'}"
    elif others:
        text += f", and {sum(fragment.rows for fragment in others):,} more rows"
    partition = "/".join(f"{name}={value}" for name, value in chunk.raw_partition)
    return f"{text} ({partition})" if partition else text


Frame = tuple[CodeType, int, str]
"""Code, line number and source line of a frame."""


def _raised(error: BaseException) -> BaseException:
    """Return what the user's code raised, if our error wraps it."""
    return error.__cause__ if isinstance(error, TransformError) and error.__cause__ else error


def _user_frames(error: BaseException, allow: Sequence[str]) -> Iterator[Frame]:
    """Yield the frames of allowed modules, the outermost first."""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if allows(allow, frame.f_globals.get("__name__", "")):
            summary = traceback.FrameSummary(frame.f_code.co_filename, number, frame.f_code.co_name)
            yield frame.f_code, number, summary.line or ""


def _place(code: CodeType, number: int) -> str:
    """Name a line of code: file below the last folder, number, function."""
    return f"{'/'.join(PurePath(code.co_filename).parts[-2:])}:{number} in {code.co_qualname}"


def _query_of(call: Callable[..., Any]) -> str:
    """Name the function that returned a query that Polars could not run."""
    while isinstance(call, partial):
        call = call.func
    code = getattr(inspect.unwrap(call), "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    return f"in the query of {_place(code, code.co_firstlineno)}"


def _trace(error: BaseException, frames: Sequence[Frame]) -> str:
    """Format a traceback, with the user's own frames before all of them."""
    whole = mask_text("".join(traceback.format_exception(error)))[-TRACE_CHARACTERS:]
    if not frames:
        return whole
    lines = ["Your code (most recent call last):"]
    for code, number, source in frames:
        lines += [f"  {_place(code, number)}", *([f"    {source}"] if source else [])]
    raised = _raised(error)
    lines.append(f"{type(raised).__name__}: {message_of(raised)}")
    text = mask_text("\n".join(lines))
    if len(text) > TRACE_CHARACTERS:
        text = f"{text[: TRACE_CHARACTERS // 2]}\n…\n{text[-TRACE_CHARACTERS // 2 :]}"
    return f"{text}\n\nAll frames:\n{whole}"
