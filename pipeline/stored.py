"""Read what is stored beside an output: JSON and Arrow that may be damaged, or not ours.

Whatever is wrong with an object comes out as a StateError that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, StringConstraints, ValidationError

from pipeline.errors import ChunkmapError, StateError

M = TypeVar("M", bound=BaseModel)

MOST_JSON_BYTES: Final = 16 << 20
"""Bytes of a stored JSON document. Parsed, it takes some thirty times as much memory."""
_SHOWN = 300
"""Characters of a problem that are shown."""

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""The id of a run, as `pipeline.ledger.run_id` makes it. It becomes part of local paths."""
BackfillId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""The id of a backfill. It becomes part of local paths."""

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
        return model.model_validate_json(data)


def parse_number(data: bytes, name: str, uri: str) -> int:
    """Return a non-negative integer out of a small stored JSON object.

    Raises:
        StateError: it is no JSON object, or has no such number.
    """
    with reading(uri):
        _check_size(data, MOST_JSON_BYTES)
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
