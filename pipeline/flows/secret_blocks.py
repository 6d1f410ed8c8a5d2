"""Read secrets from Secret blocks of Prefect."""

from __future__ import annotations

from typing import Any

from prefect.blocks.system import Secret

from pipeline.errors import UsageError


def read_secret_block(name: str, key: str) -> str:
    """Return the secret in a Secret block.

    Args:
        name: Name of the block.
        key: Key of the file that names it, for messages.

    Raises:
        UsageError: There is no such block, or it holds no text.
    """
    try:
        block: Any = Secret.load(name)
        value = block.get()
    except ValueError as error:
        raise UsageError(
            f"Prefect has no Secret block {name} ({key})",
            hint="create it in the Prefect UI (Blocks, Secret), or with "
            "`prefect block create secret`",
        ) from error
    if not isinstance(value, str) or not value:
        raise UsageError(
            f"Prefect's Secret block {name} holds no text ({key})",
            hint="store the secret as text",
        )
    return value
