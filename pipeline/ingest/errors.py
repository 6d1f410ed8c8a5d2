"""Errors of sources.

SourceError                     fix the definition, or contact the owner of the source
├── SourceUnavailableError      may pass on a retry; afterwards, give the command again
├── SourceDeniedError           fix the secret, or its rights
├── SourceFileError             give the ingest up, and begin again
└── PageLimitError              raise the limit, or narrow what is asked for
"""

from __future__ import annotations

from pipeline.errors import ChunkmapError
from pipeline.http_answers import PassingFailure


class SourceError(ChunkmapError):
    """A source answered something that cannot be used."""


class SourceUnavailableError(SourceError, PassingFailure):
    """A source did not answer, answered in part, or asked to come back later."""


class SourceDeniedError(SourceError):
    """A source refuses the credentials, or requires some."""

    exit_code = 2


class SourceFileError(SourceError):
    """A file has changed or vanished since the ingest has found it."""


class PageLimitError(SourceError):
    """There are more pages than the definition allows."""
