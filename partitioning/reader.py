"""What planning needs of a store: list, head, and the last bytes of many objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from partitioning.model import ObjectInfo


@dataclass(frozen=True, slots=True)
class TailRequest:
    """A wish for the last bytes of one object, of the version that was listed."""

    object: ObjectInfo
    length: int
    """Bytes from the end; more than the object has means the whole object."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last bytes of one object, or why there are none."""

    object: ObjectInfo
    data: bytes | None
    """The bytes, or None with `error` set."""
    error: str | None = None
    """One sentence: absent, replaced since it was listed, forbidden."""


@runtime_checkable
class Reader(Protocol):
    """A synchronous face; an implementation hides whatever concurrency it has.

    To be used with a mapper that runs elsewhere (`plan_dataset(mapper=…)`) a reader must
    pickle.
    """

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose URI begins with the prefix, in any order, keys raw."""
        ...

    def head(self, uri: str) -> ObjectInfo:
        """Return one object's version and size.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """Read many tails, at most `concurrency` in flight, in any order.

        Each read is conditional on the listed ETag, so that the bytes belong to the listed
        version. One object's failure is its `Tail.error`; it is never raised. What is raised is
        that the store itself does not answer, which says nothing about its objects. Requests
        are taken lazily: memory does not grow with their number.
        """
        ...
