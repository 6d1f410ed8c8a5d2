"""Plans of the benchmarks whose input exists only as a listing."""

from __future__ import annotations

from datetime import timedelta

from benchmarks.micro.backfill_driver import FIRST, ManyDays
from benchmarks.micro.ledger_only import NO_INPUT, synthetic_plan
from partitioning import PlanRequest, plan_dataset


def test_a_plan_has_a_chunk_for_each_object() -> None:
    # The planner looks for a table's log in the folders above: they are empty.
    assert len(synthetic_plan(7)) == 7


def test_days_are_partitions() -> None:
    plan = plan_dataset(PlanRequest(NO_INPUT, per_file=True), ManyDays(NO_INPUT, 2, 3)).plan

    folders = [chunk.fragments[0].uri.split("/")[-2] for chunk in plan.chunks(range(len(plan)))]

    assert folders == [f"ds={FIRST + timedelta(days=day)}" for day in (0, 0, 0, 1, 1, 1)]
