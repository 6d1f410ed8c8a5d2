"""The final keys of a run's outputs, and the tokens that staging can give for them."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import PlanRequest, plan_dataset
from pipeline.runs.ledger.checks import _allowed
from pipeline.runs.ledger.keys import folders_of, output_uri
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access
from pipeline.storage.tokens import TokenRule
from tests.support.examples import fewer
from tests.support.runs_by_hand import OUTPUT, plan_of
from tests.support.stores import DictReader, parquet

VALUES = st.sampled_from(["1", "02", "x", "a b", "ü", "2024-01-05", "..", "a%2Fb"])


@settings(max_examples=fewer(40), deadline=None)
@given(
    folders=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8),
    crosses=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_folders_of_all_chunks_are_those_of_each(
    folders: list[tuple[str, str]], crosses: bool, order: Any
) -> None:
    data = parquet(pa.table({"id": [1, 2, 3]}), 1)
    objects = {f"s3://b/t/p={p}/q={q}/{n}.parquet": data for n, (p, q) in enumerate(folders)}
    request = PlanRequest("s3://b/t/", target=100, cross_partitions=crosses)
    plan = plan_dataset(request, DictReader(objects)).plan
    some = [i for i in range(len(plan)) if order.random() < 0.7]
    order.shuffle(some)
    for part in (plan, plan.take(some)):
        expected = [
            output_uri("", "r", chunk, "a" * 32).rpartition("part-")[0] for chunk in part.chunks()
        ]
        assert folders_of(part).to_list() == expected


def test_folders_of_a_plan_without_partitions() -> None:
    assert folders_of(plan_of(3)).to_list() == ["", "", ""]
    assert folders_of(plan_of(1).take([])).to_list() == []
    assert folders_of(plan_of(3, folders=(4,))).to_list() == ["k=4/"] * 3


ATTEMPT = "0123456789abcdef" * 2


def rules() -> dict[str, tuple[TokenRule, str]]:
    """The rule of each backend, and the token that it gives for `part.parquet`."""
    s3 = S3Backend(Access("http://127.0.0.1:1", key_id="k", secret="s"))
    area = "s3://out/t.chunkmap/staged/"
    folder = "file:///data//t/"
    return {
        "s3": (s3.token_rule(OUTPUT, area), f"{area}t/part.parquet.{ATTEMPT}"),
        "upload": (s3.token_rule(OUTPUT, area), "2~abc.DEF_-123"),
        "file": (
            LocalBackend().token_rule(folder, "file:///data//t.chunkmap/staged/"),
            f"/data/t.chunkmap/staged/data/t/part.parquet.{ATTEMPT}",
        ),
    }


@pytest.mark.parametrize("kind", ["s3", "upload", "file"])
def test_tokens_of_our_own_are_allowed_and_no_others(kind: str) -> None:
    rule, token = rules()[kind]
    uri = rule.output + "part.parquet"
    assert rule.allows(uri, token, ATTEMPT)
    others = [
        "",
        ".",
        "..",
        token + "/../y",
        token + "\n",
        "../" + token,
        "s3://out/t/part.parquet",
        "s3://in/t/part.parquet",
        "file:///etc/passwd",
        "/etc/passwd",
        "s3://out/t.chunkmap/staged/../../x",
        "x" * 2000,
    ]
    assert [other for other in others if rule.allows(uri, other, ATTEMPT)] == []
    assert not rule.allows("s3://in/part.parquet", token, ATTEMPT)
    assert not rule.allows(uri, token, ATTEMPT + "\n")


@pytest.mark.parametrize("rest", ["../../x", "k=1/../../../x", "./x", "k=1//x"])
def test_no_token_is_allowed_outside_of_the_output(rest: str) -> None:
    rule, _ = rules()["file"]
    uri = rule.output + rest
    assert not rule.allows(uri, rule.token_of(uri, ATTEMPT), ATTEMPT)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["s3", "upload", "file"]),
    rows=st.lists(
        st.tuples(
            st.sampled_from(["{output}part.parquet", "{output}k=1/a.parquet", "s3://in/x"]),
            st.one_of(
                st.just("{token}"),
                st.text(max_size=9),
                st.sampled_from(["..", ".", "x/y", "abc", "s3://in/x", "{token}x", " ", "a\n"]),
            ),
        ),
        min_size=1,
        max_size=9,
    ),
)
def test_a_column_of_tokens_is_judged_as_each(kind: str, rows: list[tuple[str, str]]) -> None:
    rule = rules()[kind][0]
    said: list[tuple[str, str]] = []
    for uri, upload in rows:
        key = uri.replace("{output}", rule.output)
        said.append((key, upload.replace("{token}", rule.token_of(key, ATTEMPT))))
    frame = pl.DataFrame(
        {"uri": [u for u, _ in said], "upload": [t for _, t in said], "attempt": ATTEMPT}
    )
    ours = [uri.startswith(rule.output) for uri, _ in said]
    columns = [ok and own for ok, own in zip(_allowed(frame, rule), ours, strict=True)]
    assert columns == [rule.allows(uri, token, ATTEMPT) for uri, token in said]
