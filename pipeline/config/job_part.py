"""Types that the sections of the job file share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, WithJsonSchema

FUNCTION_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
SHARE_PATTERN = r"^\d+(\.\d+)?\s*%$"
SHARE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": SHARE_PATTERN},
        {"type": "null"},
    ]
}


VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""


class Part(BaseModel):
    """Base of the sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


def _function(value: str) -> str:
    if not re.fullmatch(FUNCTION_PATTERN, value):
        raise ValueError(f"{value!r} is not module:function")
    return value


Function = Annotated[
    str, AfterValidator(_function), WithJsonSchema({"type": "string", "pattern": FUNCTION_PATTERN})
]


def check_limit(value: Any, of: str) -> int | str | None:
    """Validate a number of things, or a share such as `5%`.

    Args:
        value: The limit; None for none.
        of: What is counted, for the message.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    if isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value):
        if float(value.rstrip(" %")) > 100:
            raise ValueError(f"{value!r} is above 100%")
        return value
    raise ValueError(f"{value!r} is neither a number of {of} nor a share such as 5%")
