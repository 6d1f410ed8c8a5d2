"""The joining example against a dictionary."""

from pathlib import Path

import polars as pl
import pytest

from pipeline import read_table
from pipeline.examples.supplier_nation import supplier_nation

SUPPLIERS = {1: ("Supplier#1", 7), 2: ("Supplier#2", 3), 3: ("Supplier#3", 99)}
NATIONS = {3: "CANADA", 7: "GERMANY"}


def lines(suppliers: list[int]) -> pl.LazyFrame:
    """One line item a supplier key, in this order."""
    return pl.LazyFrame(
        {
            "l_orderkey": range(len(suppliers)),
            "l_linenumber": [1] * len(suppliers),
            "l_suppkey": suppliers,
            "l_quantity": [5] * len(suppliers),
        }
    )


@pytest.fixture
def suppliers(tmp_path: Path) -> str:
    path = tmp_path / "supplier.parquet"
    pl.DataFrame(
        {
            "s_suppkey": SUPPLIERS.keys(),
            "s_name": [name for name, _ in SUPPLIERS.values()],
            "s_nationkey": [nation for _, nation in SUPPLIERS.values()],
            "s_comment": ["unused"] * len(SUPPLIERS),
        }
    ).write_parquet(path)
    return path.as_uri()


@pytest.fixture
def nations(tmp_path: Path) -> str:
    path = tmp_path / "nation.parquet"
    pl.DataFrame({"n_nationkey": NATIONS.keys(), "n_name": NATIONS.values()}).write_parquet(path)
    return path.as_uri()


def test_it_looks_every_supplier_up(suppliers: str, nations: str) -> None:
    keys = [2, 1, 1, 404, 3]
    result = supplier_nation(lines(keys), suppliers=suppliers, nations=nations).collect()
    found = [SUPPLIERS.get(key, (None, None)) for key in keys]
    assert result["l_orderkey"].to_list() == list(range(len(keys)))
    assert result["s_name"].to_list() == [name for name, _ in found]
    assert result["s_nationkey"].to_list() == [nation for _, nation in found]
    assert result["n_name"].to_list() == [
        None if nation is None else NATIONS.get(nation) for _, nation in found
    ]


def test_nations_are_optional(suppliers: str) -> None:
    result = supplier_nation(lines([1]), suppliers=suppliers).collect()
    assert result.columns[-2:] == ["s_name", "s_nationkey"]


def test_the_table_is_read_once_a_process(suppliers: str) -> None:
    supplier_nation(lines([1]), suppliers=suppliers).collect()
    assert read_table(suppliers) is read_table(suppliers)


def test_a_key_that_stands_twice_fails_instead_of_multiplying_rows(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    pl.DataFrame({"s_suppkey": [1, 1], "s_name": ["a", "b"], "s_nationkey": [7, 7]}).write_parquet(
        path
    )
    with pytest.raises(pl.exceptions.ComputeError, match="m:1"):
        supplier_nation(lines([1]), suppliers=path.as_uri()).collect()
