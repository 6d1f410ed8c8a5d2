"""Functions by value: what their fingerprints cover, what is sent, and where it is refused."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import polars as pl
import pytest

from pipeline.config.sections import TransformSettings
from pipeline.config.settings import Settings
from pipeline.errors import FunctionMissingError, JobError, TransformNotAllowedError
from pipeline.runs.transforms.by_value import ValueFunction, send_by_value
from pipeline.runs.transforms.loading import fingerprint_of, load_transform
from pipeline.runs.transforms.parcels import Parcels, parcel_digest
from pipeline.runs.worker.run_settings import received_settings, sent_functions, sent_settings

FACTOR = 2
BASE = """
RATE = 2
NAMES = {"a", "b", "c"}

def helper(x):
    return x + 1

class Model:
    weight = 3
    def apply(self, x):
        return x * self.weight

def function(lf, *, shift=1):
    '''Doc.'''
    doubled = lf.with_columns(y=pl.col("x") * RATE + shift)
    return doubled.filter(pl.col("x").map_batches(lambda s: s > 0)), helper, Model().apply, NAMES
"""


def _function(text: str = BASE, before: str = "") -> Callable[..., Any]:
    """Define the functions of a cell, as a notebook does."""
    cell: dict[str, Any] = {"__name__": "__main__", "pl": pl}
    exec(compile(before + text, "<cell>", "exec"), cell)
    function: Callable[..., Any] = cell["function"]
    return function


def _digests(function: Callable[..., Any]) -> dict[str, str]:
    return send_by_value(function).digests


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ("", ("", "")),
        ("\n\n\n", ("", "")),
        ("", ("'''Doc.'''", "'''Another text.'''")),
        ("", ("doubled", "twice")),
        ("", ('{"a", "b", "c"}', '{"c", "b", "a"}')),
    ],
    ids=["same", "moved", "docstring", "local name", "order of a set"],
)
def test_the_same_cell_is_the_same_code(before: str, change: tuple[str, str]) -> None:
    assert _digests(_function(BASE.replace(*change), before)) == _digests(_function())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("RATE = 2", "RATE = 3"), {"__main__:RATE"}),
        (("RATE = 2", "RATE = 2.0"), {"__main__:RATE"}),
        (("x + 1", "x + 2"), {"__main__:helper"}),
        (("shift=1", "shift=2"), {"__main__:function"}),
        (("s > 0", "s > 1"), {"__main__:function"}),
        (("s > 0", "s < 0"), {"__main__:function"}),
        (("weight = 3", "weight = 4"), {"__main__:Model"}),
        (("x * self", "x + self"), {"__main__:Model.apply"}),
        (('"a", "b"', '"a", "d"'), {"__main__:NAMES"}),
        (('col("x") * RATE', 'col("z") * RATE'), {"__main__:function"}),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_changed_cell_is_changed_code_and_says_where(
    change: tuple[str, str], names: set[str]
) -> None:
    before, after = _digests(_function()), _digests(_function(BASE.replace(*change)))
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == names


def _closure(value: Any) -> Callable[..., Any]:
    def inner(lf: pl.LazyFrame) -> Any:
        return lf.select(value)

    return inner


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 2),
        (1, True),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (pl.col("a") > 1, pl.col("a") > 2),
        (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})),
        (Point(1), Point(2)),
        (functools.partial(int, base=8), functools.partial(int, base=10)),
        (b"1", b"2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_changed_closure_value_is_changed_code(first: Any, second: Any) -> None:
    assert _digests(_closure(first)) == _digests(_closure(first))
    assert _digests(_closure(first)) != _digests(_closure(second))


def test_values_that_contain_themselves_have_a_digest() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert _digests(_closure(loop)) == _digests(_closure(loop))


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import polars as pl\n" + BASE + "from pipeline.runs.transforms.by_value import *\n"
        "print(sorted(send_by_value(function).digests.items()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_what_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(JobError, match=r"uses a _thread.lock \(value\)"):
        send_by_value(_closure(lock))


def test_a_function_with_large_values_is_refused() -> None:
    with pytest.raises(JobError, match="at most"):
        send_by_value(_closure(bytes(17_000_000)))


def test_names_of_functions_in_a_job() -> None:
    first = send_by_value(lambda lf: lf)
    assert first.name == f"{__name__}:lambda"
    assert send_by_value(lambda lf: lf, [first.name]).name == f"{__name__}:lambda_2"
    assert send_by_value(functools.partial(_closure, 1)).name == f"{__name__}:_closure"


def _settings(function: ValueFunction, *, allowed: bool | None) -> TransformSettings:
    settings = TransformSettings(allow_by_value=allowed)
    return settings.with_functions({function.name: function})


def test_a_function_by_value_is_loaded_and_called() -> None:
    sent = send_by_value(lambda lf, factor: lf.select(pl.col("x") * factor * FACTOR))
    transform = load_transform(sent.name, {"factor": 3}, _settings(sent, allowed=True))
    assert transform.call(pl.LazyFrame({"x": [1]})).collect()["x"].to_list() == [6]
    assert transform.definitions >= 2


@pytest.mark.parametrize("allowed", [None, False])
def test_by_value_is_refused_unless_it_is_allowed(allowed: bool | None) -> None:
    sent = send_by_value(lambda lf: lf)
    for use in (fingerprint_of, load_transform):
        with pytest.raises(TransformNotAllowedError, match="allow_by_value"):
            use(sent.name, {}, _settings(sent, allowed=allowed))


class Bomb:
    """Does something when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_worker_that_allows_none_unpickles_nothing(tmp_path: Path) -> None:
    import cloudpickle

    exploded = tmp_path / "exploded"
    sent = ValueFunction("__main__:bomb", cloudpickle.dumps(Bomb(str(exploded))), {})
    driver = Settings(transforms=TransformSettings(allow_by_value=True))
    driver = driver.model_copy(
        update={"transforms": driver.transforms.with_functions({sent.name: sent})}
    )
    with pytest.raises(TransformNotAllowedError, match="allow_by_value"):
        received_settings(Settings(), sent_settings(driver))
    assert not exploded.exists()
    own, kept = Settings(transforms=TransformSettings(allow_by_value=True)), Parcels()
    with pytest.raises(FunctionMissingError):
        received_settings(own, sent_settings(driver), kept)
    kept.add(sent_functions(driver).values())
    received = received_settings(own, sent_settings(driver), kept)
    assert received.transforms.functions[sent.name] == sent
    assert not exploded.exists()  # Before the function is called for.


def test_settings_name_a_function_and_do_not_hold_it() -> None:
    large = send_by_value(_closure(os.urandom(2_000_000)))
    driver = Settings()
    transforms = driver.transforms.with_functions({large.name: large})
    driver = driver.model_copy(update={"transforms": transforms})
    assert len(sent_settings(driver)) < 10_000
    [(digest, parcel)] = sent_functions(driver).items()
    assert digest in sent_settings(driver) and parcel == large.parcel


def test_functions_that_were_used_longest_ago_are_forgotten() -> None:
    kept = Parcels(limit=10)
    first, second, third = b"1" * 4, b"2" * 4, b"3" * 4
    kept.add([first, second])
    assert kept.get(parcel_digest(first)) == first
    kept.add([third])
    digests = [parcel_digest(parcel) for parcel in (first, second, third)]
    assert kept.lacking(digests) == [digests[1]]
    assert not kept.wait_for(digests, 0.0)
    kept.add([b"4" * 40])
    assert kept.get(parcel_digest(b"4" * 40)) and kept.lacking(digests) == digests


def test_a_function_of_another_program_says_where_it_is() -> None:
    with pytest.raises(TransformNotAllowedError, match="exists only there"):
        load_transform("__main__:euros", {}, TransformSettings())


def test_the_users_own_modules_are_sent_whole(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "own_rates.py").write_text("RATE = 5\ndef rate(x):\n    return x * RATE\n")
    monkeypatch.syspath_prepend(tmp_path)
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(dedent("import own_rates\ndef function(lf):\n    return own_rates.rate(lf)"), cell)
    sent = send_by_value(cell["function"])
    assert "own_rates" in sent.modules
    del sys.modules["own_rates"]
    monkeypatch.undo()
    assert sent.load()(2) == 10
    assert "own_rates" not in sys.modules
