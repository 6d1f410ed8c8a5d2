"""Read small tables in transforms: in a run, each in the version that the run was planned with.

Planning tries the transform on no rows, and notes what it reads. The versions become part of the
run, so all chunks of a run see the same tables, whichever worker maps them and whenever.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING

from partitioning import ObjectInfo
from pipeline.concurrency import single_flight
from pipeline.errors import (
    ChunkmapError,
    JobError,
    ObjectChangedError,
    ObjectMissingError,
    StateError,
)
from pipeline.storage.storage import own_storage
from pipeline.storage.table_versions import TableObject, TableVersion
from pipeline.uris import parse

if TYPE_CHECKING:
    import polars as pl

MAX_TABLES = 32
"""Tables that a process keeps in memory: those that were read last."""


class TableChangedError(ObjectChangedError):
    """A table is no longer the version that the run was planned with.

    Attributes:
        table: Its URI, as the transform names it.
    """

    def __init__(self, table: str, uri: str, planned: str, found: str | None) -> None:
        super().__init__(
            uri, planned, found, hint="plan again with the new table: run the job with --replan"
        )
        self.table = table
        self.message = (
            f"table {table} was replaced after the run was planned: {uri} had ETag {planned}"
            + (f", and now has {found}" if found else "")
        )

    def __str__(self) -> str:
        return self.message


class Tables:
    """The tables that one run's transform may read, each in one version.

    `versions` is the table versions by URI. `used()` makes them the ones that `read_table` reads.
    """

    def __init__(self, known: Iterable[TableVersion] | None = (), *, is_open: bool = False) -> None:
        """Take over what a run has stored, or begin to note what a transform reads.

        Args:
            known: The versions; None for a run that has stored none, since chunkmap did not yet:
                it reads what is there.
            is_open: Take in further tables as they are read, in the version of that moment.
        """
        self._known = None if known is None else {one.uri: one for one in known}
        self._is_open = is_open
        self._lock = Lock()
        self.problem: ChunkmapError | None = None
        """Why the last table that was asked for cannot be read."""

    @property
    def versions(self) -> tuple[TableVersion, ...]:
        """What is known, ordered by URI."""
        return tuple(one for _, one in sorted((self._known or {}).items()))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have `read_table` read these versions in the block, and in threads that it waits for."""
        token = _own.set(self)
        with _active_lock:
            _active.append(self)
        try:
            yield
        finally:
            _own.reset(token)
            with _active_lock:
                _active.remove(self)

    def version(self, uri: str) -> TableVersion:
        """The version of a table to read.

        Raises:
            JobError: the run was planned without this table.
            ObjectMissingError: there is no such table.
        """
        uri = parse(uri).uri
        if self._known is None:
            return resolve_table(uri)
        with self._lock:
            found = self._known.get(uri)
            if found is None:
                try:
                    found = self._add(uri)
                except ChunkmapError as error:
                    self.problem = error
                    raise
            return found

    def _add(self, uri: str) -> TableVersion:
        if not self._is_open:
            raise JobError(
                f"the transform reads table {uri}, which it did not read when it was tried on no "
                "rows, so the run does not say which version: name the table in the job, "
                f"`tables: [{uri}]`",
            )
        assert self._known is not None, "only what notes versions is open"
        self._known[uri] = resolve_table(uri)
        return self._known[uri]


_own: ContextVar[Tables | None] = ContextVar("tables", default=None)
_active: list[Tables] = []
"""Those in use in any thread of this process: a function that Polars calls for a column runs in a
thread of Polars', which has no context of ours."""
_active_lock = Lock()


def read_table(uri: str) -> pl.DataFrame:
    """A small table: one Parquet object, or every one below a prefix.

    For joins in transforms. A run reads the version that it was planned with, and a process reads
    each version once. The frame is shared: do not change it in place.

    Args:
        uri: An object (`….parquet`) or a prefix, on S3 or local.

    Raises:
        TableChangedError: the table was replaced after the run was planned.
        ObjectMissingError: there is no such table.
        JobError: the run was planned without this table; name it in the job's `tables`.
    """
    return _read(_version(uri))


def resolve_table(uri: str) -> TableVersion:
    """The version of a table that is there now. Raises ObjectMissingError if there is none."""
    storage, uri = own_storage(), parse(uri).uri
    if uri.endswith(".parquet"):
        return TableVersion(uri=uri, objects=(_object(storage.head(uri)),))
    found = [info for info in storage.objects(uri) if info.uri.endswith(".parquet")]
    if not found:
        raise ObjectMissingError(uri)
    return TableVersion(uri=uri, objects=tuple(sorted(map(_object, found), key=lambda o: o.uri)))


def changed_tables(versions: Iterable[TableVersion]) -> frozenset[TableVersion]:
    """Those of some table versions that are not there any more."""
    now: dict[str, TableVersion | None] = {}
    given = frozenset(versions)
    for uri in {version.uri for version in given}:
        now[uri] = None
        with suppress(ObjectMissingError):
            now[uri] = resolve_table(uri)
    return frozenset(version for version in given if now[version.uri] != version)


def replaced_tables(versions: Iterable[TableVersion]) -> str:
    """URIs of the tables that are not there any more in these versions, for a message."""
    return ", ".join(sorted(version.uri for version in changed_tables(versions)))


def _object(info: ObjectInfo) -> TableObject:
    return TableObject(uri=info.uri, etag=info.etag.strip('"'), size=info.size)


def _version(uri: str) -> TableVersion:
    own = _own.get()
    if own is not None:
        return own.version(uri)
    with _active_lock:
        users = list(dict.fromkeys(_active))
    if not users:
        return resolve_table(uri)
    versions = {user.version(uri) for user in users}
    if len(versions) > 1:
        raise StateError(
            uri,
            "several runs in this process read it in different versions, and a function that "
            "Polars calls cannot tell which run it is of: read the table at the transform's top",
        )
    return versions.pop()


@single_flight(MAX_TABLES)
def _read(version: TableVersion) -> pl.DataFrame:
    import polars as pl

    return pl.concat(pl.read_parquet(_bytes(version, part)) for part in version.objects)


def _bytes(version: TableVersion, part: TableObject) -> io.BytesIO:
    info = ObjectInfo(part.uri, part.etag, part.size)
    try:
        [data] = own_storage().get_ranges(info, [(0, part.size)])
    except ObjectChangedError as error:
        raise TableChangedError(version.uri, part.uri, part.etag, error.found) from error
    except ObjectMissingError as error:
        raise TableChangedError(version.uri, part.uri, part.etag, "gone") from error
    return io.BytesIO(data)
