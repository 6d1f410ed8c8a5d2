"""Errors of loads, and how each is resolved.

UsageError
├── DestinationError            2  fix its address, password, rights or settings
└── TableMismatchError          2  change the table, or let it be widened
ConflictError
├── ReplacedCommitsError        3  load with mode replace or merge
└── DestinationBusyError        3  wait for the other process (Transient)
ChunkmapError
├── LoadFailedError             1  fix the rows, or what the database refuses
└── DestinationUnavailableError 1  load again (Transient)
"""

from __future__ import annotations

from pipeline.errors import ChunkmapError, ConflictError, Transient, UsageError


class DestinationError(UsageError):
    """The destination cannot be used: its address, a password, rights, a missing schema."""


class TableMismatchError(UsageError):
    """The table and the output differ in columns, or a column's type has no counterpart."""


class ReplacedCommitsError(ConflictError):
    """Rows that are in the table are no longer in the output, so commits cannot be appended."""


class DestinationBusyError(ConflictError, Transient):
    """Another process loads the same table, or writes the same file."""


class LoadFailedError(ChunkmapError):
    """The database refuses the rows, or has others than the manifest says; nothing was loaded."""


class DestinationUnavailableError(ChunkmapError, Transient):
    """The connection broke, or the database is starting or stopping."""
