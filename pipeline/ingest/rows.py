"""The rows of an ingest, in units that files are made of: pages of an API, or files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.ingest.frames import frame_of, needs_exact_numbers, parse_records
from pipeline.ingest.paging import Answer, Paging
from pipeline.ingest.parsed import ParsedPages
from pipeline.ingest.schema import (
    ContradictionError,
    Types,
    add_known_types,
    add_types,
    contradiction,
)
from pipeline.ingest.store import IngestStore, PageRecord, total

SAMPLE_BYTES = 4 << 20
"""Bytes of pages that are encoded to learn how large files become."""
PAGES_AT_ONCE = 16
"""Number of pages that are read at the same time."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the rows that is not divided between files."""

    bytes: int
    has_rows: bool = True
    """Whether it may have rows."""


@dataclass(frozen=True, slots=True)
class Found:
    """What reading all rows has found."""

    types: Types
    rows: int


class Rows(Protocol):
    """The rows of an ingest."""

    @property
    def place(self) -> str:
        """Where they are from, for messages."""
        ...

    @property
    def units(self) -> Sequence[Unit]:
        """The units, in order."""
        ...

    @property
    def count(self) -> int:
        """Number of pages or files."""
        ...

    @property
    def cuts(self) -> str:
        """Digest of how files are cut into units; empty if they are not."""
        ...

    def find(self, declared: Types, pinned: Types | None) -> Found:
        """Read all rows; return the types of fields that are not declared.

        Args:
            declared: Types that the definition declares.
            pinned: Types of the output, if it has some.

        Raises:
            SchemaChangedError: A field has values that no type holds.
        """
        ...

    def frame(self, start: int, end: int, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of some units.

        Raises:
            SchemaChangedError: A value does not fit its type.
        """
        ...

    def frames(
        self, start: int, end: int, types: Types, texts: frozenset[str]
    ) -> Iterator[pl.DataFrame]:
        """Read what `frame` returns, little by little if that takes less memory."""
        ...

    def sample(self, types: Types, texts: frozenset[str]) -> tuple[pl.DataFrame, float]:
        """Return some rows, and the bytes of the units that they are from."""
        ...


@dataclass(frozen=True)
class PageRows:
    """The rows of stored pages."""

    store: IngestStore
    paging: Paging
    pages: Sequence[PageRecord]
    place: str
    parsed: ParsedPages = field(default_factory=ParsedPages)
    """What is known of those that were fetched now."""

    @cached_property
    def units(self) -> Sequence[Unit]:
        """The pages."""
        return [Unit(page.bytes, has_rows=page.records > 0) for page in self.pages]

    @property
    def count(self) -> int:
        """Number of pages."""
        return len(self.pages)

    @property
    def cuts(self) -> str:
        """Nothing: pages are not cut."""
        return ""

    def find(self, declared: Types, pinned: Types | None) -> Found:
        """Return the types of all records."""
        types: Types = {}
        unknown = [page for page in self.pages if self.parsed.types(page) is None]
        documents = self._documents(unknown, exact=False)
        for page in self.pages:
            known = self.parsed.types(page)
            try:
                if known is None:
                    add_types(types, next(documents)[1], declared)
                else:
                    add_known_types(types, known)
            except ContradictionError as error:
                raise contradiction(error, f"records up to {page.address}") from None
        return Found(types, total(self.pages))

    def frame(self, start: int, end: int, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of some pages."""
        exact = needs_exact_numbers(types, texts)
        frames = [
            frame_of(records, types, texts, page.address)
            for page, records in self._documents(self.pages[start:end], exact=exact)
        ]
        return pl.concat([pl.DataFrame(schema=pl.Schema(types)), *frames], rechunk=True)

    def frames(
        self, start: int, end: int, types: Types, texts: frozenset[str]
    ) -> Iterator[pl.DataFrame]:
        """Read the rows of some pages."""
        yield self.frame(start, end, types, texts)

    def sample(self, types: Types, texts: frozenset[str]) -> tuple[pl.DataFrame, float]:
        """Return the rows of the first pages."""
        end, size = 0, 0
        while end < len(self.pages) and size < SAMPLE_BYTES:
            size += self.pages[end].bytes
            end += 1
        return self.frame(0, end, types, texts), float(size)

    def _documents(
        self, pages: Sequence[PageRecord], *, exact: bool
    ) -> Iterator[tuple[PageRecord, list[dict[str, Any]]]]:
        for start in range(0, len(pages), PAGES_AT_ONCE):
            some = pages[start : start + PAGES_AT_ONCE]
            # Those that are kept have numbers that are not exact.
            kept = [None if exact else self.parsed.records(page) for page in some]
            read = [page for page, records in zip(some, kept, strict=True) if records is None]
            bodies = iter(map_concurrently(self.store.body, read))
            for page, records in zip(some, kept, strict=True):
                yield page, self._parse(page, next(bodies), exact) if records is None else records

    def _parse(self, page: PageRecord, body: bytes, exact: bool) -> list[dict[str, Any]]:
        document = parse_records(body, exact=exact) if body else None
        return self.paging.records(Answer(document), page.address)
