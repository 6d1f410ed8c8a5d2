"""A Delta table as an input: the files of one version, with the partition values of its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

from partitioning import PinnedFiles
from partitioning.hive_paths import NULL_VALUE, quote_value, raw_values
from pipeline.errors import InputError
from pipeline.storage import Storage
from pipeline.table.delta.log import DeltaLog, TableState
from pipeline.uris import as_prefix, parse

_HIVE_TYPES: Final = {
    "string": "string",
    "byte": "int8",
    "short": "int16",
    "integer": "int32",
    "long": "int64",
    "date": "date",
}
"""Types of Hive columns by Delta's."""
_FEATURES: Final = frozenset(
    {"timestampNtz", "deletionVectors", "columnMapping", "vacuumProtocolCheck", "v2Checkpoint"}
)
"""Features of readers that are supported, or whose use is refused by itself."""


def pinned_files(storage: Storage, uri: str, version: int | None) -> PinnedFiles:
    """Return the files of a version of a Delta table, from its log.

    Args:
        storage: Where the table is.
        uri: Its prefix.
        version: Number of the version; default the newest.

    Raises:
        InputError: There is no such table or version, or it needs what chunkmap cannot read.
        DamagedTableError: The log cannot be read.
    """
    uri = as_prefix(parse(uri).uri)
    log = DeltaLog(storage, uri)
    newest = log.read()
    if newest is None:
        raise InputError(
            f"{uri} is no Delta table: it has no _delta_log/ (input.table)",
            hint="name the folder of a table, or read plain Parquet with input.uri",
        )
    if version is not None and version > newest.version:
        raise InputError(
            f"the Delta table {uri} has no version {version} (input.version); the newest is "
            f"{newest.version}"
        )
    state = newest if version is None else log.read(version)
    assert state is not None, "a table with newer versions exists"
    _refuse_features(uri, state, log)
    types = _hive_types(uri, state)
    directories, sizes = {}, {}
    for path, size, values in log.partitions(list(types)):
        if "://" in path or path.startswith("/"):
            raise InputError(
                f"version {state.version} of the Delta table {uri} has a file in another place "
                f"({path}), as shallow clones have",
                hint="read the table that it was cloned from, or make a deep clone",
            )
        key = unquote(path)
        directories[uri + key] = _directory(key, values)
        sizes[uri + key] = size
    return PinnedFiles(
        f"version {state.version} of the Delta table {uri}",
        directories,
        sizes,
        tuple(types.items()),
    )


def _refuse_features(uri: str, state: TableState, log: DeltaLog) -> None:
    where = f"version {state.version} of the Delta table {uri}"
    features, mapping = log.reader_features(), log.property("delta.columnMapping.mode")
    if mapping not in (None, "none"):
        raise InputError(
            f"{where} uses column mapping (mode {mapping}): its files have other names of columns "
            "than the table",
            hint="write the table's rows to a table without column mapping, and read that",
        )
    unknown = sorted(features - _FEATURES)
    if unknown:
        raise InputError(
            f"{where} needs features of its readers that chunkmap lacks: {', '.join(unknown)}",
            hint="write the table's rows to a table without them, and read that",
        )
    if "deletionVectors" in features and (count := log.files_with_deletions()):
        raise InputError(
            f"{where} has deletion vectors, which mark deleted rows in {count:,} of its files",
            hint="rewrite these files with an engine that supports it, e.g. Spark: "
            "REORG TABLE … APPLY (PURGE)",
        )


def _hive_types(uri: str, state: TableState) -> dict[str, str]:
    types = {}
    for name, kind in state.schema.partition_types.items():
        if not isinstance(kind, str) or kind not in _HIVE_TYPES:
            known = ", ".join(_HIVE_TYPES)
            raise InputError(
                f"the Delta table {uri} is partitioned by {name!r} of type {kind}, which chunkmap "
                f"cannot read; it reads {known}"
            )
        types[name] = _HIVE_TYPES[kind]
    return types


def _directory(key: str, values: Mapping[str, Any]) -> str:
    """Return the Hive directory that says a file's partition values, as the log has them.

    It is the file's own, if that says the same, so that outputs have folders of the same spelling.
    """
    own = key.rpartition("/")[0]
    raws = dict(raw_values(own))
    texts = {name: None if value in (None, "") else str(value) for name, value in values.items()}
    if {name: _text(raw) for name, raw in raws.items()} == texts:
        return own
    return "/".join(
        f"{name}={NULL_VALUE if text is None else quote_value(text)}"
        for name, text in texts.items()
    )


def _text(raw: str) -> str | None:
    return None if raw == NULL_VALUE else unquote_to_bytes(raw).decode(errors="replace")
