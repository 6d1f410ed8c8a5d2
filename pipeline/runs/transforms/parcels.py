"""Keep the pickled functions that drivers have sent to this process, by their digests.

Such a function may be large, and each batch needs it. It is sent to each process once; batches name
it by its digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from threading import Condition

from pipeline.errors import FunctionMissingError

MAX_KEPT_BYTES = 64_000_000
"""Bytes of functions that a process keeps; the one that was used last is kept in any case."""


def parcel_digest(parcel: bytes) -> str:
    """Return the digest by which batches name a pickled function."""
    return sha256(parcel).hexdigest()


class Parcels:
    """Pickled functions by their digests. Nothing is unpickled here."""

    def __init__(self, limit: int = MAX_KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: dict[str, bytes] = {}
        """Those that were used longest ago come first."""
        self._changed = Condition()

    def add(self, parcels: Iterable[bytes]) -> None:
        """Keep functions; forget those that were used longest ago, beyond the limit."""
        with self._changed:
            for parcel in parcels:
                self._use(parcel_digest(parcel), parcel)
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._limit:
                del self._kept[next(iter(self._kept))]
            self._changed.notify_all()

    def get(self, digest: str) -> bytes:
        """Return a function.

        Raises:
            FunctionMissingError: This process has not got it.
        """
        with self._changed:
            parcel = self._kept.get(digest)
            if parcel is None:
                raise FunctionMissingError(
                    "a function that is sent by value has not arrived in this process",
                    hint="its batch is retried; if this stays so, run the job again",
                )
            self._use(digest, parcel)
            return parcel

    def lacking(self, digests: Iterable[str]) -> list[str]:
        """Return those of some functions that this process has not got."""
        with self._changed:
            return [digest for digest in digests if digest not in self._kept]

    def wait_for(self, digests: Iterable[str], seconds: float) -> bool:
        """Wait until functions have arrived, at most some seconds; return whether they have."""
        wanted = set(digests)
        with self._changed:
            return self._changed.wait_for(lambda: wanted <= self._kept.keys(), seconds)

    def _use(self, digest: str, parcel: bytes) -> None:
        self._kept.pop(digest, None)
        self._kept[digest] = parcel


KEPT = Parcels()
"""Those of this process."""
