"""Call `deltalake`: its options for a storage, and its errors as chunkmap's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Final

from pipeline.errors import AccessDeniedError, TransientStorageError, UsageError
from pipeline.masking import mask_text
from pipeline.storage import Storage
from pipeline.storage.documents import problem_of
from pipeline.table.errors import DamagedTableError

_DENIED: Final = re.compile(
    r"\b40[13]\b|Forbidden|AccessDenied|Unauthori[sz]ed|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|necessary privileges|valid authentication"
)
_STORE: Final = re.compile(
    r"Generic (?!DeltaTable)\w+ error|ObjectStore|object store|error sending request"
    r"|[Tt]imed? ?out|\b50[0234]\b"
)
_FRAME: Final = re.compile(r"\s*(\d+: |at |stack backtrace)")


class LostRaceError(Exception):
    """Another writer has made the next version of the table."""


def library_path(uri: str) -> str:
    """Return the URI of a table as the library takes it."""
    return uri.removeprefix("file://")


def library_options(storage: Storage, uri: str) -> dict[str, str]:
    """Return the options with which the library reaches a table; they hold secrets.

    Raises:
        UsageError: It would mix credentials of the settings with others of the environment.
    """
    options = storage.client_options(uri)
    if not options:
        return {}
    if "aws_access_key_id" in options and "aws_session_token" not in options:
        _refuse_token(uri)
    return options | {
        "conditional_put": "etag",
        "connect_timeout": "5s",
        "timeout": "60s",
        "max_retries": "5",
        "retry_timeout": "60s",
    }


def _refuse_token(uri: str) -> None:
    # The library would add the variable to our credentials, and S3 refuse both.
    if os.environ.get("AWS_SESSION_TOKEN"):
        raise UsageError(
            f"{uri}: the variable AWS_SESSION_TOKEN belongs to other credentials than "
            "those of the settings, and the Delta library would mix them",
            hint="unset AWS_SESSION_TOKEN, or set s3.session_token",
        )


@contextmanager
def library_errors(uri: str, *, is_commit: bool = False) -> Iterator[None]:
    """Turn errors of the library in the block into chunkmap's, without secrets and backtraces.

    Args:
        uri: URI of the table, with a slash at its end.
        is_commit: Whether the block commits to the table.

    Raises:
        LostRaceError: Another writer was faster.
        AccessDeniedError, TransientStorageError: The storage refuses, or does not answer.
        DamagedTableError: Any other error.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not (is_panic or isinstance(error, DeltaError | OSError)):
            raise
        message = mask_text(problem_of(Exception(_without_backtrace(str(error)))))
        if is_commit and (isinstance(error, CommitFailedError) or "already exists" in message):
            raise LostRaceError(message) from None
        uri = f"{uri}_delta_log/"
        if _DENIED.search(message):
            raise AccessDeniedError("read or write the Delta log", uri, message) from None
        if _STORE.search(message) or isinstance(error, OSError):
            raise TransientStorageError(f"{uri}: {message}") from None
        raise DamagedTableError(uri, message) from None


def _without_backtrace(message: str) -> str:
    lines = takewhile(lambda line: not _FRAME.match(line), message.splitlines())
    return ": ".join(filter(None, (line.strip().rstrip(":") for line in lines)))
