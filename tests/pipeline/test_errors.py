"""Errors survive the way between processes, and say what the command line exits with."""

import copy
import pickle
from typing import Any

import pytest

from pipeline import errors
from pipeline.errors import ChunkmapError, Transient, is_transient

ARGUMENTS: dict[type[ChunkmapError], tuple[Any, ...]] = {
    errors.AccessDeniedError: ("s3:GetObject", "s3://bucket/key"),
    errors.BucketMissingError: ("bucket",),
    errors.StateError: ("s3://bucket/key", "it is empty"),
    errors.UnreadableObjectError: ("s3://bucket/key", "row group 1, column a"),
    errors.WrongPageIndexError: ("s3://bucket/key", "row group 1, column a"),
    errors.GroupsFailedError: ("it raised ValueError", "country='DE'"),
    errors.ObjectChangedError: ("s3://bucket/key", '"planned"', '"found"'),
}
ALL = sorted(
    (
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, ChunkmapError)
    ),
    key=lambda error: error.__name__,
)


def make(error: type[ChunkmapError]) -> ChunkmapError:
    arguments: list[Any] = [*ARGUMENTS.get(error, ("s3://bucket/key is wrong",)), "chunkmap up"]
    return error(*arguments)


@pytest.mark.parametrize("error", ALL)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error: type[ChunkmapError], protocol: int) -> None:
    before = make(error)
    before.add_note("a note")
    after = pickle.loads(pickle.dumps(before, protocol))
    assert type(after) is error
    assert str(after) == str(before) == before.message
    assert vars(after) == vars(before)
    assert after.hint == "chunkmap up"
    assert after.args == before.args


@pytest.mark.parametrize("error", ALL)
def test_an_error_can_be_copied(error: type[ChunkmapError]) -> None:
    assert vars(copy.copy(make(error))) == vars(make(error))


@pytest.mark.parametrize("error", ALL)
def test_an_error_is_described_and_drawn_in_the_tree(error: type[ChunkmapError]) -> None:
    assert error.__doc__
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("error", ALL)
def test_exit_codes_are_those_of_the_kind(error: type[ChunkmapError]) -> None:
    if issubclass(error, errors.UsageError):
        expected = 2
    else:
        expected = {errors.ConflictError: 3, errors.RunInterruptedError: 130}.get(error, 1)
    assert error.exit_code == expected


def test_the_type_says_whether_an_error_is_transient() -> None:
    marked = {error.__name__ for error in ALL if issubclass(error, Transient)}
    assert marked == {"FunctionMissingError", "TransientStorageError", "ThrottledError"}
    assert is_transient(make(errors.TransientStorageError))
    assert not is_transient(make(errors.TransformError))
    assert not is_transient(TimeoutError())


def test_a_changed_object_names_itself_and_both_etags() -> None:
    text = str(make(errors.ObjectChangedError))
    assert "s3://bucket/key" in text
    assert '"planned"' in text
    assert '"found"' in text


def test_a_missing_permission_names_action_and_key() -> None:
    text = str(make(errors.AccessDeniedError))
    assert text == "no permission for s3:GetObject on s3://bucket/key"
