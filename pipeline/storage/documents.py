"""Read and seal the stored documents of an output: JSON and Arrow, which may be damaged.

Any problem of an object becomes a StateError that names it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from pipeline.errors import ChunkmapError, StateError
from pipeline.private import state_folder

M = TypeVar("M", bound=BaseModel)

MAX_JSON_BYTES: Final = 16 << 20
"""Maximum size of a JSON document. Parsed, it takes about thirty times as much memory."""
_MAX_SHOWN = 300
"""Maximum number of characters of a problem that are shown."""

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""Id of a run. It becomes part of local paths."""
BackfillId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""Id of a backfill. It becomes part of local paths."""

Moment = Annotated[float, Field(ge=0.0, lt=253_402_300_800.0, allow_inf_nan=False)]
"""Time in Unix seconds that can be formatted: before the year 10,000."""
"""Name of a commit: `<run>` or `<run>-<window>`, with `.<n>` for the n-th commit of that name."""
LABEL_PATTERN: Final = r"^[0-9A-Za-z_%~+-]{0,200}$"
"""Label of a window, as `partitioning.windows` makes it. It becomes part of keys."""

_SEAL: Final = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\s*$')
_TEXT_SEAL: Final = re.compile(r"# sha256 ([0-9a-f]{64})\n")
_BYTES_SEAL: Final = b"CMSEAL01"
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,400}")


def is_name(text: str) -> bool:
    """Whether a text is a single segment of a key or path: no separator, no leading dot."""
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


@contextmanager
def reading(uri: str, hint: str | None = None) -> Iterator[None]:
    """Turn any exception of a parser in the block into a StateError that names the object.

    Args:
        uri: The object that is parsed.
        hint: The next step, if it is not the usual one.
    """
    try:
        yield
    except ChunkmapError:
        raise
    except Exception as error:
        raise StateError(uri, problem_of(error), hint) from error


def problem_of(error: Exception) -> str:
    """Return the message of a parser as one short line."""
    if isinstance(error, ValidationError):
        first, *more = error.errors(include_url=False, include_input=False)
        where = ".".join(map(str, first["loc"]))
        message = f"{where}: {first['msg']}" if where else first["msg"]
        message += f" (and {len(more)} more)" if more else ""
    else:
        lines = str(error).splitlines()
        message = lines[0] if lines else type(error).__name__
    return message if len(message) <= _MAX_SHOWN else message[:_MAX_SHOWN] + " …"


def seal_json(document: bytes) -> bytes:
    """Add a checksum to a JSON object, as its last field, which `parse_stored` checks.

    It reveals a changed byte in a number or a name, which would otherwise go unnoticed.
    """
    body = document.rstrip()
    assert body.endswith(b"}") and body != b"{}", "only an object with fields is sealed"
    digest = hashlib.sha256(body).hexdigest().encode()
    return body[:-1] + b',"sha256":"' + digest + b'"}'


def _check_seal(data: bytes) -> None:
    seal = _SEAL.search(data)
    if seal is not None:
        body = data[: seal.start()] + b"}"
        if hashlib.sha256(body).hexdigest().encode() != seal[1]:
            raise ValueError("its content does not match its checksum")


def seal_text(text: str) -> bytes:
    """Prepend a checksum to a text in which `#` begins a comment.

    It is the first line, because a truncated YAML file may still be valid YAML.
    """
    return f"# sha256 {hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def parse_text(data: bytes, uri: str) -> str:
    """Read a text from `seal_text`, or a text without a checksum.

    Raises:
        StateError: It is damaged.
    """
    with reading(uri):
        _check_size(data, MAX_JSON_BYTES)
        text = data.decode()
        seal = _TEXT_SEAL.match(text)
        if seal is not None:
            text = text[seal.end() :]
            if hashlib.sha256(text.encode()).hexdigest() != seal[1]:
                raise ValueError("its content does not match its checksum")
        return text


def seal_bytes(data: bytes) -> bytes:
    """Prepend a checksum to bytes."""
    return _BYTES_SEAL + hashlib.sha256(data).digest() + data


def unseal_bytes(data: bytes) -> bytes:
    """Read bytes from `seal_bytes`; bytes without a checksum are returned unchanged.

    Raises:
        ValueError: They do not match their checksum.
    """
    if not data.startswith(_BYTES_SEAL):
        return data
    start = len(_BYTES_SEAL) + 32
    digest, body = data[len(_BYTES_SEAL) : start], data[start:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its content does not match its checksum")
    return body


def report_folder(state_dir: Path, name: str) -> Path:
    """Create the local folder of a report of a run or a backfill; return it.

    Raises:
        StateError: The name, which was read from storage, would lead elsewhere.
    """
    require_name(name)
    return state_folder(state_dir, "reports", name)


def require_name(name: str) -> None:
    """Raise StateError if an id that was read from storage could lead out of a folder."""
    if not is_name(name):
        raise StateError(repr(name), "it is not the id of a run or a backfill")


def parse_stored(
    model: type[M],
    data: bytes,
    uri: str,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    hint: str | None = None,
) -> M:
    """Parse a stored JSON document.

    Args:
        model: Model of the document.
        data: Content of the document.
        uri: URI of the document, for the error.
        max_bytes: Maximum size in bytes.
        hint: The next step if it is damaged, if it is not the usual one.

    Raises:
        StateError: It is empty, truncated, too large, not JSON, or not of this model.
    """
    with reading(uri, hint):
        _check_size(data, max_bytes)
        _check_seal(data)
        return model.model_validate_json(data)


def parse_number(data: bytes, name: str, uri: str) -> int:
    """Return a non-negative integer from a small stored JSON object.

    Raises:
        StateError: It is not a JSON object, or has no such number.
    """
    with reading(uri):
        _check_size(data, MAX_JSON_BYTES)
        _check_seal(data)
        document: Any = json.loads(data)
        value = document.get(name) if isinstance(document, dict) else None
        if type(value) is not int or value < 0:
            raise ValueError(f"{name!r} is not a number")
        return value


def _check_size(data: bytes, max_bytes: int) -> None:
    if not data:
        raise ValueError("it is empty")
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data):,} bytes; the maximum is {max_bytes:,}")
