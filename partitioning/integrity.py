"""Check that the content of a stored plan matches its id."""

from __future__ import annotations

from partitioning.errors import PlanFormatError
from partitioning.model import Plan, chunk_id, plan_id, schema_identity

_TABLES = ("chunks", "row_groups", "objects", "schemas", "skipped")


def checked_plan(data: bytes) -> Plan:
    """Open a stored plan, and check its content.

    Plans of earlier releases have no checksum, and are decoded completely.

    Raises:
        PlanFormatError: It is damaged, or another plan than its id says.
    """
    plan = Plan.from_bytes(data)
    try:
        if not plan._file.has_checksum:
            for name in _TABLES:
                plan.table(name).validate(full=True)
            _check_chunks(plan)
        chunks = plan.table("chunks")
        actual = plan_id(schema_identity(plan._file.meta), chunks["id"].to_pylist())
        if actual != plan.id or len(plan) != chunks.num_rows:
            raise PlanFormatError(f"damaged plan: its content has the id {actual}, not {plan.id}")
    except PlanFormatError:
        raise
    except Exception as error:
        raise PlanFormatError(f"damaged plan: {error or type(error).__name__}") from error
    return plan


def _check_chunks(plan: Plan) -> None:
    for chunk in plan.chunks():
        identities = (fragment.identity for fragment in chunk.fragments)
        if chunk.id != chunk_id(identities).hex():
            raise PlanFormatError(f"damaged plan: chunk {chunk.index} does not match its id")
