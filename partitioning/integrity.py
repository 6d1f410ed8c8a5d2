"""Check that a stored plan is what its id says."""

from __future__ import annotations

from partitioning.errors import PlanFormatError
from partitioning.model import Plan, chunk_id, plan_id, schema_identity

_TABLES = ("chunks", "row_groups", "objects", "schemas", "skipped")


def checked_plan(data: bytes) -> Plan:
    """Open a stored plan whose content is what its id says.

    A plan of an earlier release has no checksum: it is decoded as a whole for that.

    Raises:
        PlanFormatError: it is damaged, or another plan than it claims to be.
    """
    plan = Plan.from_bytes(data)
    try:
        if not plan._file.has_checksum:
            for name in _TABLES:
                plan.table(name).validate(full=True)
            _check_chunks(plan)
        chunks = plan.table("chunks")
        found = plan_id(schema_identity(plan._file.meta), chunks["id"].to_pylist())
        if found != plan.id or len(plan) != chunks.num_rows:
            raise PlanFormatError(f"damaged plan: its content is {found}, not {plan.id}")
    except PlanFormatError:
        raise
    except Exception as error:
        raise PlanFormatError(f"damaged plan: {error or type(error).__name__}") from error
    return plan


def _check_chunks(plan: Plan) -> None:
    for chunk in plan.chunks():
        identities = (fragment.identity for fragment in chunk.fragments)
        if chunk.id != chunk_id(identities).hex():
            raise PlanFormatError(f"damaged plan: chunk {chunk.index} is not what its id says")
