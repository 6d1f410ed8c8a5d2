"""A backend that fails by script: before a call does anything, or after it, with the reply lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Literal, TypeVar

from partitioning import ObjectInfo
from pipeline.errors import TransientStorageError
from pipeline.storage import Backend, Blob, StagedObject
from pipeline.storage.backend import ObjectStart
from pipeline.storage.tokens import TokenRule

T = TypeVar("T")
Fault = Literal["before", "after", "late"] | None
"""Late: the reply is lost, and the request arrives when nobody thinks of it any more."""
Script = Callable[[int, str], Fault]
"""Given a call's number (from 0) and its name, how it fails."""


CHANGES = frozenset({"put", "put_new", "put_if", "copy", "delete", "complete", "abort"})
"""Calls that change something."""


class KilledError(BaseException):
    """The process ended here: no `except Exception` may see it."""


def lost() -> BaseException:
    """What a broken connection becomes."""
    return TransientStorageError("the connection broke")


def at(number: int, fault: Fault) -> Script:
    """Fail at one call."""
    return lambda n, name: fault if n == number else None


def dies_at(number: int, fault: Fault) -> Script:
    """End at one call: this process makes no further ones."""
    return lambda n, name: fault if n == number else "before" if n > number else None


def each(name: str, times: int, fault: Fault) -> Script:
    """Fail the first calls of one name."""
    left = [times]

    def script(number: int, called: str) -> Fault:
        if called != name or not left[0]:
            return None
        left[0] -= 1
        return fault

    return script


class Faulty:
    """Wraps a backend; `calls` is what was called, in order."""

    def __init__(
        self, inner: Backend, script: Script, error: Callable[[], BaseException] = lost
    ) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.late: list[Callable[[], object]] = []
        """Requests that have not arrived yet."""
        self._script = script
        self._error = error
        self._lock = Lock()

    def _do(self, name: str, call: Callable[[], T]) -> T:
        with self._lock:
            number = len(self.calls)
            self.calls.append(name)
            fault = self._script(number, name)
        if fault == "late" and name in CHANGES:
            self.late.append(call)
        if fault in ("before", "late"):
            raise self._error()
        result = call()
        if fault == "after":
            raise self._error()
        return result

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._do("objects", lambda: iter(list(self.inner.objects(prefix))))

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        return self._do("after", lambda: iter(list(self.inner.after(folder, name))))

    def head(self, uri: str) -> ObjectInfo:
        return self._do("head", lambda: self.inner.head(uri))

    def get(self, uri: str) -> Blob:
        return self._do("get", lambda: self.inner.get(uri))

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return self._do("get_ranges", lambda: self.inner.get_ranges(info, ranges))

    def put(self, uri: str, data: bytes) -> None:
        return self._do("put", lambda: self.inner.put(uri, data))

    def put_new(self, uri: str, data: bytes) -> None:
        return self._do("put_new", lambda: self.inner.put_new(uri, data))

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        return self._do("put_if", lambda: self.inner.put_if(uri, data, etag))

    def copy(self, source: str, target: str) -> None:
        return self._do("copy", lambda: self.inner.copy(source, target))

    def delete(self, uri: str) -> None:
        return self._do("delete", lambda: self.inner.delete(uri))

    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        return self._do("stage", lambda: self.inner.stage(uri, data, attempt, area, sha256))

    def can_extend(self, source: str, uri: str, size: int) -> bool:
        return self.inner.can_extend(source, uri, size)

    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        return self._do("extend", lambda: self.inner.extend(start, tail, uri, attempt, area))

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        return self._do("missing", lambda: self.inner.missing(staged))

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        return self._do("complete", lambda: self.inner.complete(staged))

    def abort(self, staged: Sequence[StagedObject]) -> None:
        return self._do("abort", lambda: self.inner.abort(staged))

    def abort_days(self, uri: str) -> float | None:
        return self._do("abort_days", lambda: self.inner.abort_days(uri))

    def token_rule(self, output: str, area: str) -> TokenRule:
        return self.inner.token_rule(output, area)

    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        return self._do("staged_under", lambda: iter(list(self.inner.staged_under(prefix, area))))
