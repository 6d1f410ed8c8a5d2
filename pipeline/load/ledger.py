"""The table `_chunkmap_loads`, in which a database records the commits that its tables have.

A row is written in the transaction that brings the rows of its commit, so both are there or
neither. Its key makes two loads of one commit impossible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.load.destination import Session, TableName
from pipeline.load.plan import CommitFiles, LoadedCommit

LEDGER = "_chunkmap_loads"
"""Name of the table; it is in the schema of the tables that it records."""
_COLUMNS = {
    "table_name": "text NOT NULL",
    "output": "text NOT NULL",
    "commit_name": "text NOT NULL",
    "manifest": "bigint NOT NULL",
    "files": "bigint NOT NULL",
    "rows_loaded": "bigint NOT NULL",
    "sums": "text NOT NULL",
    "files_digest": "text NOT NULL",
    "load_id": "text NOT NULL",
    "loaded_at": "timestamptz NOT NULL DEFAULT now()",
}
_KEY = ("table_name", "output", "commit_name")


@dataclass(frozen=True)
class LoadLedger:
    """The records of one table."""

    session: Session
    table: TableName

    @property
    def name(self) -> TableName:
        """Name of the ledger's table."""
        return TableName(self.table.schema, LEDGER)

    @property
    def _table(self) -> str:
        """Name of the table as the database compares names: in DuckDB, `Orders` is `orders`."""
        return self.session.dialect.fold(self.table.name)

    def create(self) -> None:
        """Create the ledger's table if it does not exist."""
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        self.session.run(
            f"CREATE TABLE IF NOT EXISTS {self.name.sql} ({columns}, "
            f"PRIMARY KEY ({', '.join(_KEY)}))"
        )

    def exists(self) -> bool:
        """Whether the ledger's table exists."""
        return self.session.columns(self.name) is not None

    def read(self, output: str) -> list[LoadedCommit]:
        """Return the commits of an output that the table has."""
        rows = self.session.rows(
            "SELECT commit_name, manifest, rows_loaded, files_digest, load_id "
            f"FROM {self.name.sql} WHERE table_name = $1 AND output = $2",
            (self._table, output),
        )
        return [LoadedCommit(str(a), int(b), int(c), str(d), str(e)) for a, b, c, d, e in rows]

    def other_output(self, output: str) -> str | None:
        """Return another output that the table has rows of; None if there is none."""
        rows = self.session.rows(
            f"SELECT min(output) FROM {self.name.sql} WHERE table_name = $1 AND output <> $2",
            (self._table, output),
        )
        return None if rows[0][0] is None else str(rows[0][0])

    def record(
        self, output: str, manifest: int, commit: CommitFiles, load: str, sums: Mapping[str, str]
    ) -> None:
        """Record that the table has a commit."""
        values = (
            *(self._table, output, commit.name, manifest, len(commit.keys), commit.rows),
            *(json.dumps(dict(sums)), commit.digest, load),
        )
        names = list(_COLUMNS)[: len(values)]
        markers = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        self.session.run(
            f"INSERT INTO {self.name.sql} ({', '.join(names)}) VALUES ({markers})", values
        )

    def forget(self, output: str, names: Sequence[str]) -> None:
        """Delete the records of commits that the table no longer has."""
        for name in names:
            self.session.run(
                f"DELETE FROM {self.name.sql} "
                "WHERE table_name = $1 AND output = $2 AND commit_name = $3",
                (self._table, output, name),
            )

    def forget_all(self) -> int:
        """Delete the records of a table that is gone, of all outputs; returns their number."""
        return self.session.run(
            f"DELETE FROM {self.name.sql} WHERE table_name = $1", (self._table,)
        )

    def renew(
        self, output: str, manifest: int, commit: CommitFiles, load: str, sums: Mapping[str, str]
    ) -> None:
        """Record a commit that is loaded again."""
        # An UPDATE: DuckDB refuses a key that the same transaction has deleted.
        self.session.run(
            f"UPDATE {self.name.sql} SET manifest = $4, files = $5, rows_loaded = $6, sums = $7, "
            "files_digest = $8, load_id = $9, loaded_at = now() "
            "WHERE table_name = $1 AND output = $2 AND commit_name = $3",
            (
                *(self._table, output, commit.name, manifest, len(commit.keys), commit.rows),
                *(json.dumps(dict(sums)), commit.digest, load),
            ),
        )
