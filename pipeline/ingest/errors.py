"""Errors of sources.

SourceError                     fix the definition, or contact the owner of the source
├── SourceUnavailableError      may pass on a retry; afterwards, give the command again
├── SourceDeniedError           fix the secret, or its rights
├── SourceFileError             give the ingest up, and begin again
└── PageLimitError              raise the limit, or narrow what is asked for
"""

from __future__ import annotations

from pipeline.errors import ChunkmapError, Transient


class SourceError(ChunkmapError):
    """A source answered something that cannot be used."""


class SourceUnavailableError(SourceError, Transient):
    """A source did not answer, answered in part, or asked to come back later.

    Attributes:
        wait: Seconds that the source asks to wait; None if it does not say.
        throttled: Whether it answers that it gets too many requests.
    """

    wait: float | None = None
    throttled: bool = False


class SourceDeniedError(SourceError):
    """A source refuses the credentials, or requires some."""

    exit_code = 2


class SourceFileError(SourceError):
    """A file has changed or vanished since the ingest has found it."""


class PageLimitError(SourceError):
    """There are more pages than the definition allows."""
