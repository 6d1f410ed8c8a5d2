"""What the storage door hands out: small frozen records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from partitioning import ObjectInfo
from pipeline.storage.tokens import TokenRule


@dataclass(frozen=True, slots=True)
class Blob:
    """One whole object."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class StagedObject:
    """The token of an output that is written but invisible."""

    uri: str
    """Where the object appears once it is published."""
    upload: str
    """Multipart upload id, URI of the object to be copied, or path of the temporary file."""
    parts: tuple[str, ...]
    """ETags of what was written, in order; of a local file, its one version mark."""
    size: int
    """Bytes."""
    attempt: str
    """Unique id of the attempt that wrote it; stored as metadata of the object."""
    created: float = 0.0
    """Unix seconds; only of what a listing found."""


class Backend(Protocol):
    """What `Storage` needs of one kind of storage. All URIs are of this kind."""

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose URI starts with the prefix, in any order."""
        ...

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        """Every object right in a folder whose name there is greater than one, in any order."""
        ...

    def head(self, uri: str) -> ObjectInfo:
        """ETag and size. Raises ObjectMissingError."""
        ...

    def get(self, uri: str) -> Blob:
        """The whole object. Raises ObjectMissingError."""
        ...

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Half-open byte ranges of exactly the version `info` names.

        Raises ObjectChangedError, ObjectMissingError.
        """
        ...

    def put(self, uri: str, data: bytes) -> None:
        """Write, whatever is there."""
        ...

    def put_new(self, uri: str, data: bytes) -> None:
        """Write only if nothing is there. Raises AlreadyExistsError."""
        ...

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """Write only if the object still has this ETag. Raises PreconditionFailedError."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy on the server's side."""
        ...

    def delete(self, uri: str) -> None:
        """Remove; an absent object is no error."""
        ...

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> StagedObject:
        """Write without making visible; `area` is a prefix for temporary files, if it needs any."""
        ...

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Those that can no longer be completed and are not complete by our own hand."""
        ...

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Make visible. Returns those that have vanished; completing twice changes nothing."""
        ...

    def abort_days(self, uri: str) -> float | None:
        """After how many days the storage drops what is staged; None if never, or unknown."""
        ...

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Drop; what is already gone is no error."""
        ...

    def token_rule(self, output: str, area: str) -> TokenRule:
        """What the tokens of outputs below a prefix can be that were staged with this area."""
        ...

    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        """What is staged for URIs that start with the prefix (parts and sizes left out)."""
        ...
