"""Each error pickles, says what is wrong in one sentence, and is a PlanningError."""

from __future__ import annotations

import inspect
import pickle

import pytest

from partitioning import BadObjectsError, PlanningError, errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PlanningError) and kind is not BadObjectsError
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_pickles_and_has_its_sentence(kind: type[PlanningError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("why")))
    assert (type(copy), str(copy)) == (kind, "why")
    assert (kind.__doc__ or "").strip().endswith(".")
    assert kind.__name__ in (errors.__doc__ or "")


def test_many_bad_objects_are_counted_but_not_all_printed() -> None:
    error = BadObjectsError([(f"s3://b/{i}", i, "why") for i in range(50)])
    assert str(error).startswith("50 objects are not readable Parquet:")
    assert str(error).endswith("… and 30 more")
    assert len(pickle.loads(pickle.dumps(error)).objects) == 50
    assert str(BadObjectsError([("s3://b/0", 0, "why")])).startswith("1 object is")
