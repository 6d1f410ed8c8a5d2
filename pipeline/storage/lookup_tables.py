"""Read small tables in transforms, each in the version with which the run was planned.

Planning runs the transform on no rows, and records the tables that it reads. Their versions become
part of the run, so that all its chunks see the same tables.
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
"""Number of tables that a process caches, the most recently used."""


class TableChangedError(ObjectChangedError):
    """A table is not the version with which the run was planned.

    Attributes:
        table: URI of the table, as the transform names it.
    """

    def __init__(self, table: str, uri: str, planned: str, found: str | None) -> None:
        super().__init__(
            uri, planned, found, hint="make a new plan with it: run the job with --replan"
        )
        self.table = table
        self.message = (
            f"table {table} was replaced after the run was planned: {uri} had ETag {planned}"
            + (f", and now has {found}" if found else "")
        )

    def __str__(self) -> str:
        return self.message


class Tables:
    """The tables that the transform of a run may read, each in one version.

    Within `used()`, `read_table` reads these versions.
    """

    def __init__(self, known: Iterable[TableVersion] | None = (), *, is_open: bool = False) -> None:
        """Create it with the versions of a run, or record the tables that a transform reads.

        Args:
            known: The versions; None for an old run without stored versions, which reads the
                present ones.
            is_open: Add tables as they are read, in their present version.
        """
        self._known = None if known is None else {version.uri: version for version in known}
        self._is_open = is_open
        self._lock = Lock()
        self.problem: ChunkmapError | None = None
        """Error of the last table that could not be read."""

    @property
    def versions(self) -> tuple[TableVersion, ...]:
        """The versions, ordered by URI."""
        return tuple(version for _, version in sorted((self._known or {}).items()))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make `read_table` read these versions in the block, and in threads that it waits for."""
        token = _current.set(self)
        with _active_lock:
            _active.append(self)
        try:
            yield
        finally:
            _current.reset(token)
            with _active_lock:
                _active.remove(self)

    def version(self, uri: str) -> TableVersion:
        """Return the version of a table to read.

        Raises:
            JobError: The run was planned without this table.
            ObjectMissingError: There is no such table.
        """
        uri = parse(uri).uri
        if self._known is None:
            return resolve_table(uri)
        with self._lock:
            version = self._known.get(uri)
            if version is None:
                try:
                    version = self._add(uri)
                except ChunkmapError as error:
                    self.problem = error
                    raise
            return version

    def _add(self, uri: str) -> TableVersion:
        if not self._is_open:
            raise JobError(
                f"the transform reads table {uri}, which planning did not find because the "
                "transform did not read it on no rows: name the table in the job, "
                f"`tables: [{uri}]`",
            )
        assert self._known is not None, "without versions it is never open"
        self._known[uri] = resolve_table(uri)
        return self._known[uri]


_current: ContextVar[Tables | None] = ContextVar("tables", default=None)
_active: list[Tables] = []
"""Tables in use in any thread of this process: Polars calls Python functions on columns in its own
threads, which lack the context variable."""
_active_lock = Lock()


def read_table(uri: str) -> pl.DataFrame:
    """Read a small table: a Parquet object, or all Parquet objects below a prefix.

    It is meant for joins in transforms. A run reads the version with which it was planned, and a
    process reads each version once. The frame is shared: do not change it in place.

    Args:
        uri: An object (`….parquet`) or a prefix, on S3 or local.

    Raises:
        TableChangedError: The table was replaced after the run was planned.
        ObjectMissingError: There is no such table.
        JobError: The run was planned without this table; name it in the job's `tables`.
    """
    return _read(_version(uri))


def resolve_table(uri: str) -> TableVersion:
    """Return the present version of a table. Raises ObjectMissingError if there is none."""
    storage, uri = own_storage(), parse(uri).uri
    if uri.endswith(".parquet"):
        return TableVersion(uri=uri, objects=(_object(storage.head(uri)),))
    infos = [info for info in storage.objects(uri) if info.uri.endswith(".parquet")]
    if not infos:
        raise ObjectMissingError(uri)
    return TableVersion(uri=uri, objects=tuple(sorted(map(_object, infos), key=lambda o: o.uri)))


def changed_tables(versions: Iterable[TableVersion]) -> frozenset[TableVersion]:
    """Return the table versions that are no longer present."""
    versions = frozenset(versions)
    present: dict[str, TableVersion | None] = {}
    for uri in {version.uri for version in versions}:
        present[uri] = None
        with suppress(ObjectMissingError):
            present[uri] = resolve_table(uri)
    return frozenset(version for version in versions if present[version.uri] != version)


def replaced_tables(versions: Iterable[TableVersion]) -> str:
    """Return the URIs of tables that are no longer present in these versions, for a message."""
    return ", ".join(sorted(version.uri for version in changed_tables(versions)))


def _object(info: ObjectInfo) -> TableObject:
    return TableObject(uri=info.uri, etag=info.etag.strip('"'), size=info.size)


def _version(uri: str) -> TableVersion:
    tables = _current.get()
    if tables is not None:
        return tables.version(uri)
    with _active_lock:
        users = list(dict.fromkeys(_active))
    if not users:
        return resolve_table(uri)
    versions = {user.version(uri) for user in users}
    if len(versions) > 1:
        raise StateError(
            uri,
            "several runs in this process read it in different versions, and in a function that "
            "Polars calls the run is unknown: read the table at the transform's top",
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
