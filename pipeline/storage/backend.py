"""Types of the storage layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from partitioning import ObjectInfo
from pipeline.storage.tokens import TokenRule


@dataclass(frozen=True, slots=True)
class Blob:
    """The content of an object, and its ETag."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class StagedObject:
    """The token of a staged output, which is written but not visible."""

    uri: str
    """URI of the object once it is published."""
    upload: str
    """Multipart upload id, URI of the object to copy, or path of the temporary file."""
    parts: tuple[str, ...]
    """ETags of the written parts, in order; the version mark of a local file."""
    size: int
    """Size in bytes."""
    attempt: str
    """Unique id of the attempt that wrote it; stored as metadata of the object."""
    created: float = 0.0
    """Time of creation in Unix seconds; set by listings only."""


@dataclass(frozen=True, slots=True)
class ObjectStart:
    """The first bytes of one version of an object."""

    info: ObjectInfo
    size: int
    """Number of bytes."""


class Backend(Protocol):
    """Operations that `Storage` needs of a kind of storage. All URIs are of this kind."""

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose URI starts with the prefix, in any order."""
        ...

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        """Yield the direct children of a folder whose name is greater than one, in any order."""
        ...

    def head(self, uri: str) -> ObjectInfo:
        """Return ETag and size. Raises ObjectMissingError."""
        ...

    def get(self, uri: str) -> Blob:
        """Read an object. Raises ObjectMissingError."""
        ...

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read half-open byte ranges of exactly the version `info`.

        Raises ObjectChangedError, ObjectMissingError.
        """
        ...

    def put(self, uri: str, data: bytes) -> None:
        """Write, and overwrite any existing object."""
        ...

    def put_new(self, uri: str, data: bytes) -> None:
        """Write only if there is no object. Raises AlreadyExistsError."""
        ...

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """Write only if the object still has this ETag. Raises PreconditionFailedError."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy an object on the server's side."""
        ...

    def delete(self, uri: str) -> None:
        """Delete an object; a missing object is no error."""
        ...

    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        """Write without making visible.

        `area` is the prefix of temporary objects, if needed; `sha256` the content's, if known.
        """
        ...

    def can_extend(self, source: str, uri: str, size: int) -> bool:
        """Whether `extend` can put the first `size` bytes of an object at the start of another."""
        ...

    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        """Stage the start of an object, then `tail`; the start is copied where it is.

        Raises ObjectChangedError, ObjectMissingError.
        """
        ...

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Return those that have vanished: neither staged nor completed by the same attempt."""
        ...

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Make visible; return those that have vanished. Completing twice changes nothing."""
        ...

    def abort_days(self, uri: str) -> float | None:
        """Return the days after which staged outputs are dropped; None if never, or unknown."""
        ...

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Drop staged outputs; missing ones are no error."""
        ...

    def token_rule(self, output: str, area: str) -> TokenRule:
        """Return the rule for tokens of outputs below a prefix that were staged in this area."""
        ...

    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        """Yield staged outputs whose URI starts with the prefix, without parts and sizes."""
        ...
