"""Read what is stored beside an output: JSON and Arrow that may be damaged, or not ours.

Whatever is wrong with an object comes out as a StateError that names it.
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

MOST_JSON_BYTES: Final = 16 << 20
"""Bytes of a stored JSON document. Parsed, it takes some thirty times as much memory."""
_SHOWN = 300
"""Characters of a problem that are shown."""

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""The id of a run, which becomes part of local paths."""
BackfillId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""The id of a backfill. It becomes part of local paths."""

Moment = Annotated[float, Field(ge=0.0, lt=253_402_300_800.0, allow_inf_nan=False)]
"""Unix seconds that can be shown: before the year 10,000."""
CommitName = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{16}(-[0-9A-Za-z_%~+-]{0,200})?(\.[0-9]{1,9})?$"),
]
"""The name of a commit: `<run>`, `<run>-<window>`, and `.<n>` for the n-th of them."""
LABEL_PATTERN: Final = r"^[0-9A-Za-z_%~+-]{0,200}$"
"""The label of a window, as `partitioning.windows` makes it. It becomes part of keys."""

_SEAL: Final = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\s*$')
_TEXT_SEAL: Final = re.compile(r"# sha256 ([0-9a-f]{64})\n")
_BYTES_SEAL: Final = b"CMSEAL01"
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,400}")


def is_name(text: str) -> bool:
    """Whether a text is one segment of a key or a path: no separator, no `..`, nothing hidden."""
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


@contextmanager
def reading(uri: str, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a parser raises inside the block into a StateError that names the object.

    Args:
        uri: The object that is parsed.
        hint: The next step, where it is another than the usual one.
    """
    try:
        yield
    except ChunkmapError:
        raise
    except Exception as error:
        raise StateError(uri, problem_of(error), hint) from error


def problem_of(error: Exception) -> str:
    """One short line of what a parser said."""
    if isinstance(error, ValidationError):
        first, *more = error.errors(include_url=False, include_input=False)
        where = ".".join(map(str, first["loc"]))
        said = f"{where}: {first['msg']}" if where else first["msg"]
        said += f" (and {len(more)} more)" if more else ""
    else:
        lines = str(error).splitlines()
        said = lines[0] if lines else type(error).__name__
    return said if len(said) <= _SHOWN else said[:_SHOWN] + " …"


def seal_json(document: bytes) -> bytes:
    """Add a checksum to a JSON object, as its last field; `parse_stored` looks after it.

    Without it, a changed byte in a number or a name would be another number or name.
    """
    body = document.rstrip()
    assert body.endswith(b"}") and body != b"{}", "only an object with fields is sealed"
    digest = hashlib.sha256(body).hexdigest().encode()
    return body[:-1] + b',"sha256":"' + digest + b'"}'


def _check_seal(data: bytes) -> None:
    found = _SEAL.search(data)
    if found is not None:
        body = data[: found.start()] + b"}"
        if hashlib.sha256(body).hexdigest().encode() != found[1]:
            raise ValueError("its content does not have its checksum")


def seal_text(text: str) -> bytes:
    """Put a checksum before a text in which `#` begins a comment.

    Before it, because the first lines of a YAML file may be a YAML file.
    """
    return f"# sha256 {hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def parse_text(data: bytes, uri: str) -> str:
    """Read a text that `seal_text` has made, or one without a checksum.

    Raises:
        StateError: it is damaged.
    """
    with reading(uri):
        _check_size(data, MOST_JSON_BYTES)
        text = data.decode()
        found = _TEXT_SEAL.match(text)
        if found is not None:
            text = text[found.end() :]
            if hashlib.sha256(text.encode()).hexdigest() != found[1]:
                raise ValueError("its content does not have its checksum")
        return text


def seal_bytes(data: bytes) -> bytes:
    """Put a checksum before bytes."""
    return _BYTES_SEAL + hashlib.sha256(data).digest() + data


def unseal_bytes(data: bytes) -> bytes:
    """Read what `seal_bytes` has made; bytes without a checksum come back as they are.

    Raises:
        ValueError: they do not have their checksum.
    """
    if not data.startswith(_BYTES_SEAL):
        return data
    start = len(_BYTES_SEAL) + 32
    digest, body = data[len(_BYTES_SEAL) : start], data[start:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its content does not have its checksum")
    return body


def report_folder(state_dir: Path, name: str) -> Path:
    """Make the local folder of the report of a run or a backfill; return it.

    Raises:
        StateError: the name, which was read from storage, would lead elsewhere.
    """
    require_name(name)
    return state_folder(state_dir, "reports", name)


def require_name(name: str) -> None:
    """Raise StateError if an id that was read from storage could lead a path elsewhere."""
    if not is_name(name):
        raise StateError(repr(name), "it is not the id of a run or a backfill")


def parse_stored(
    model: type[M],
    data: bytes,
    uri: str,
    *,
    most: int = MOST_JSON_BYTES,
    hint: str | None = None,
) -> M:
    """Parse a stored JSON document.

    Args:
        model: What it holds.
        data: Its bytes.
        uri: Where it was read, for the error.
        most: Bytes that it may have.
        hint: The next step if it is damaged, where it is another than the usual one.

    Raises:
        StateError: it is empty, cut short, too large, no JSON, or not of this model.
    """
    with reading(uri, hint):
        _check_size(data, most)
        _check_seal(data)
        return model.model_validate_json(data)


def parse_number(data: bytes, name: str, uri: str) -> int:
    """Return a non-negative integer out of a small stored JSON object.

    Raises:
        StateError: it is no JSON object, or has no such number.
    """
    with reading(uri):
        _check_size(data, MOST_JSON_BYTES)
        _check_seal(data)
        document: Any = json.loads(data)
        value = document.get(name) if isinstance(document, dict) else None
        if type(value) is not int or value < 0:
            raise ValueError(f"{name!r} is no number")
        return value


def _check_size(data: bytes, most: int) -> None:
    if not data:
        raise ValueError("it is empty")
    if len(data) > most:
        raise ValueError(f"it has {len(data):,} bytes, and {most:,} are the most")
