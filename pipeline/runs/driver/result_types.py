"""Agree on the types of result columns that are all null in some chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import polars as pl
from typing_extensions import override

from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.null_types import MAX_TEXT, agreed_types, odd_attempts
from pipeline.storage.outages import retry_until_available
from pipeline.table.column_types import has_nulls
from pipeline.table.columns import Columns


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """Facts about the output that a map stage needs."""

    types: Callable[[], Columns] = dict
    """Returns the types of the output's columns, for columns that are all null in a chunk."""
    published: Callable[[], Collection[str]] = tuple
    """Returns the ids of the run's published chunks, which are not mapped again."""


@dataclass(slots=True)
class ResultTypes:
    """Types of a run's result columns: those of the output, and those that chunks agree on."""

    facts: OutputFacts
    _of_output: Columns = field(default_factory=dict)
    _agreed: Columns = field(default_factory=dict)
    """Types of the columns that are all null in some chunks."""

    def load(self, progress: Progress) -> None:
        """Read the output's types, and compare the chunks that are done."""
        self._of_output = retry_until_available(self.facts.types)
        self.update(progress)

    def update(self, progress: Progress) -> None:
        """Compare the chunks that are done."""
        self._agreed = agreed_types(progress, self._of_output)

    def to_text(self) -> str:
        """Return the types that go with each batch, as JSON; empty if there are none."""
        types = self.sent()
        return json.dumps(types) if types else ""

    def sent(self) -> Columns:
        """Return the types that go with each batch."""
        typed = {name: kind for name, kind in self._of_output.items() if not has_nulls(kind)}
        types = typed | self._agreed
        return types if len(json.dumps(types)) <= MAX_TEXT else self._agreed

    def odd_attempts(self, progress: Progress) -> pl.DataFrame:
        """Select completions whose all-null columns have a type in other chunks.

        Not those of published chunks, whose files stay as they are.
        """
        self.update(progress)
        odd = odd_attempts(progress, self._agreed)
        if odd.is_empty():
            return odd
        published = retry_until_available(self.facts.published)
        return odd.filter(~pl.col("chunk").is_in(list(published)))


@dataclass(slots=True)
class SeveralResultTypes(ResultTypes):
    """Types of the columns of several outputs."""

    further: Mapping[str, tuple[Callable[[Progress], Progress], ResultTypes]] = field(
        default_factory=dict
    )
    """Per output after the first: its progress, given that of the first, and its types."""

    @override
    def load(self, progress: Progress) -> None:
        ResultTypes.load(self, progress)
        for read, types in self.further.values():
            types.load(read(progress))

    @override
    def update(self, progress: Progress) -> None:
        ResultTypes.update(self, progress)
        for read, types in self.further.values():
            types.update(read(progress))

    @override
    def to_text(self) -> str:
        sent = {"": self.sent()} | {name: types.sent() for name, (_, types) in self.further.items()}
        return json.dumps(sent) if any(sent.values()) else ""

    @override
    def odd_attempts(self, progress: Progress) -> pl.DataFrame:
        odd = [ResultTypes.odd_attempts(self, progress)]
        odd += [types.odd_attempts(read(progress)) for read, types in self.further.values()]
        attempts = pl.concat([rows.select("attempt") for rows in odd]).unique()
        every = pl.concat([progress.completions, progress.duplicates])
        return every.join(attempts, on="attempt", how="semi", maintain_order="left")
