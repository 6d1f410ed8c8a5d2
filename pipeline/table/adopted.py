"""Know the files of an output that chunkmap did not write, but has adopted.

Their keys are not unique to an attempt: another program may write the same key again. So whatever
moves such a file compares its version with the adopted one first.
"""

from __future__ import annotations

from collections.abc import Iterable

from partitioning import ObjectInfo
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry


def adopted_versions(table_log: TableLog, entries: Iterable[CommitEntry]) -> dict[str, str]:
    """Return the version mark of each file that some commits have adopted, by its adopted key."""
    commits = table_log.load_all([entry for entry in entries if entry.adopts])
    return {
        key: parts[0]
        for commit in commits
        for key, parts in commit.files.select("key", "parts").iter_rows()
    }


def is_version(info: ObjectInfo, mark: str) -> bool:
    """Whether an object still has the version mark with which it was adopted."""
    return mark_of(info) == mark


def mark_of(info: ObjectInfo) -> str:
    """Return the version mark of an object, as commits store it."""
    return info.etag.strip('"')
