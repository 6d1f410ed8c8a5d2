"""Define what planning needs of a store: list, head, and the last bytes of many objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from partitioning.model import ObjectInfo


@dataclass(frozen=True, slots=True)
class TailRequest:
    """A request for the last bytes of an object, in the version that was listed."""

    object: ObjectInfo
    length: int
    """Number of bytes; if the object is smaller, the whole object is read."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last bytes of an object, or an error."""

    object: ObjectInfo
    data: bytes | None
    """Bytes; None if `error` is set."""
    error: str | None = None
    """Error as a sentence: missing, replaced since it was listed, forbidden."""


@runtime_checkable
class Reader(Protocol):
    """Synchronous access to a store; implementations may be concurrent inside.

    For a mapper that runs elsewhere (`plan_dataset(mapper=…)`) a reader must be picklable.
    """

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose URI begins with the prefix, in any order, with raw keys."""
        ...

    def head(self, uri: str) -> ObjectInfo:
        """Return the version and size of an object.

        Raises:
            FileNotFoundError: There is no such object.
        """
        ...

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """Read many tails, at most `concurrency` in flight, in any order.

        Each read is conditional on the listed ETag, so that the bytes belong to the listed version.
        The failure of an object is its `Tail.error`, and never raised. An error is raised only if
        the store does not respond. Requests are consumed lazily, to limit memory.
        """
        ...
