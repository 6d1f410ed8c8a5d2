"""Recognise folders of table formats: Delta Lake, Apache Iceberg, Apache Hudi.

Such a folder also has files that the table has replaced or deleted. Only the table's log says which
files are live, so a plain reader of the folder would read deleted rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from partitioning.errors import TableFormatError
from partitioning.reader import Reader

MAX_PARENTS: Final = 8
"""Maximum number of folders above an input that are checked, the nearest first."""
MAX_PROBES: Final = 64
"""Maximum number of requests for the folders above all inputs."""
_THREADS: Final = 16
_ICEBERG_METADATA: Final = re.compile(
    r"(?:v\d+|\d{5,}-[0-9a-f-]{32,36})(?:\.gz)?\.metadata\.json(?:\.gz)?|version-hint\.text"
)


@dataclass(frozen=True, slots=True)
class TableRoot:
    """The folder of a table, and the evidence for its format."""

    uri: str
    """URI of the folder, with a slash at its end."""
    format: str
    """Name of the format, with an article."""
    evidence: str
    """URI of an object that only a table of this format has."""

    def error(self, object_uri: str) -> TableFormatError:
        """Return the error for an object in the table's folder."""
        return TableFormatError(
            f"{self.uri} is {self.format} table ({self.evidence} exists), and {object_uri} is in "
            "it: such a folder also has files that the table has replaced or deleted, so it "
            "cannot be read as plain Parquet"
        )


def table_root(uri: str) -> TableRoot | None:
    """Return the table that an object belongs to, judged by its name; usually None."""
    # Called for every object of a listing: three substring searches decide nearly all cases.
    if "/_delta_log/" in uri:
        return TableRoot(uri[: uri.index("/_delta_log/") + 1], "a Delta Lake", uri)
    if "/.hoodie" in uri:
        return _hudi_root(uri)
    if "/metadata/" in uri:
        folder, _, name = uri.rpartition("/")
        if folder.endswith("/metadata") and _ICEBERG_METADATA.fullmatch(name):
            return TableRoot(folder.removesuffix("metadata"), "an Apache Iceberg", uri)
    return None


def _hudi_root(uri: str) -> TableRoot | None:
    before, _, after = uri.partition("/.hoodie")
    # Each partition of a Hudi table has a file `.hoodie_partition_metadata`, the table a folder.
    if after.startswith(("/", "_partition_metadata")):
        return TableRoot(before + "/", "an Apache Hudi", uri)
    return None


def refuse_tables(roots: Iterable[TableRoot], uris: Iterable[str]) -> None:
    """Refuse objects in the folder of a table.

    Raises:
        TableFormatError: An object is in the folder of a table; the message names both.
    """
    by_uri = {root.uri: root for root in roots}
    if not by_uri:
        return
    for uri in uris:
        for folder in _folders(uri):
            if folder in by_uri:
                raise by_uri[folder].error(uri)


def refuse_inside_tables(inputs: Iterable[tuple[str, str]], reader: Reader) -> int:
    """Refuse inputs that are inside a table, which a listing of the input cannot show.

    It checks the nearest folders above each input, with few requests. It is no error if the reader
    has no permission to list there.

    Args:
        inputs: Items of the input, each with the URI above which to check.
        reader: The store.

    Returns:
        The number of requests.

    Raises:
        TableFormatError: A folder above an input is a table.
    """
    probes: dict[str, str] = {}
    for item, uri in inputs:
        for above in islice(_folders(uri), MAX_PARENTS):
            for probe in _probes(above, uri[len(above) :]):
                probes.setdefault(probe, item)
    probes = dict(list(probes.items())[:MAX_PROBES])
    if not probes:
        return 0
    with ThreadPoolExecutor(_THREADS) as pool:
        roots = pool.map(lambda probe: _find(probe, reader), probes)
        for item, root in zip(probes.values(), roots, strict=True):
            if root is not None:
                raise root.error(item)
    return len(probes)


def _find(probe: str, reader: Reader) -> TableRoot | None:
    try:
        if probe.endswith("/"):
            return next(filter(None, (table_root(info.uri) for info in reader.list(probe))), None)
        return table_root(reader.head(probe).uri)
    except Exception:
        # Missing, or no permission. If the store does not respond, listing the input fails anyway.
        return None


def _folders(uri: str) -> Iterator[str]:
    """Yield the folders above a URI, nearest first, with a slash at their end."""
    scheme, separator, rest = uri.partition("://")
    path = rest if separator else uri
    end = path.rstrip("/").rfind("/")
    while end > 0:
        yield f"{scheme}{separator}{path[: end + 1]}" if separator else path[: end + 1]
        end = path.rfind("/", 0, end)


def _probes(folder: str, rest: str) -> Iterator[str]:
    """Yield the URIs that show a table in a folder above an input; folders are to be listed.

    Args:
        folder: Folder above the input.
        rest: Path of the input below the folder.
    """
    if "=" in folder.rstrip("/").rpartition("/")[2]:
        return  # A partition; the table's folder is further up.
    yield folder + "_delta_log/"
    yield folder + ".hoodie/hoodie.properties"
    if rest.startswith("data/"):
        yield folder + "metadata/"
