"""What is in pages that were fetched now, so that they are not parsed again to plan and stage."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.errors import SchemaChangedError
from pipeline.ingest.schema import ContradictionError, Types, add_types
from pipeline.ingest.store import PageRecord

KEPT_BYTES: Final = 8 << 20
"""Maximum bytes of pages whose records are kept: in memory, they are about ten times as large."""

_Key = tuple[int, int]


@dataclass(slots=True)
class ParsedPages:
    """Types and records of the pages that this process has stored."""

    declared: Iterable[str] = ()
    """Columns whose types the definition declares."""
    _types: dict[_Key, Types] = field(default_factory=dict)
    _records: dict[_Key, list[dict[str, Any]]] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, page: PageRecord, records: list[dict[str, Any]]) -> None:
        """Note the records of a page, whose numbers are floats where they have fractions."""
        key, types = (page.feed, page.number), Types()
        # What is wrong is named when the types of all pages are found, in their order.
        with suppress(ContradictionError, SchemaChangedError):
            add_types(types, records, self.declared)
            self._types[key] = types
        if self._bytes + page.bytes <= KEPT_BYTES:
            self._bytes += page.bytes
            self._records[key] = records

    def types(self, page: PageRecord) -> Types | None:
        """Return the types of a page's records, as `add_types` finds them; None if unknown."""
        return self._types.get((page.feed, page.number))

    def records(self, page: PageRecord) -> list[dict[str, Any]] | None:
        """Return the records of a page, which must not be changed; None if they are not kept."""
        return self._records.get((page.feed, page.number))
