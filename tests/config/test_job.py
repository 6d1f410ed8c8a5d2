"""Job files: what they mean, and what is said about those that mean nothing."""

import io
import json
from datetime import UTC, date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import Windowing
from pipeline.config.job import Job, date_to_json, load_job, parse_job
from pipeline.errors import JobError

JOB = """\
name: lineitem-revenue
input:
  uri: s3://demo/tpch/lineitem/
  columns: null
  filter: [[l_shipdate, ">=", 1994-01-01]]
chunks: {target: 128MiB}
transform: pipeline.examples.revenue:revenue
params: {currency: EUR}
output: {uri: s3://demo/revenue/, mode: error}
"""
LEAST = "name: a\ninput: {uri: s3://b/in/}\ntransform: m:f\noutput: {uri: s3://b/out/}\n"


def refusal(text: str) -> JobError:
    with pytest.raises(JobError) as caught:
        parse_job(text)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_job_is_read_as_written() -> None:
    job = parse_job(JOB)
    assert job.name == "lineitem-revenue"
    assert job.input.uri == ("s3://demo/tpch/lineitem/",)
    assert job.input.columns is None
    assert job.input.filter == ((("l_shipdate", ">=", date(1994, 1, 1)),),)
    assert job.chunks.target == 128 * 2**20
    assert job.params == {"currency": "EUR"}
    assert job.output.mode == "error"


def test_a_job_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_job(LEAST).retries = 9  # type: ignore[misc]


def test_a_job_without_extras_has_the_documented_defaults() -> None:
    job = parse_job(LEAST)
    assert (job.retries, job.rounds, job.max_failures, job.chunk_timeout) == (3, 3, None, None)
    assert (job.input.schema_, job.input.on_bad_object) == ("identical", "fail")
    assert (job.output.compression, job.output.keep_versions) == ("zstd", 1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("null", None),
        ("[]", None),
        ("[[a, '==', 1]]", ((("a", "==", 1),),)),
        ("[[a, '>=', 1], [b, IN, [x, y]]]", ((("a", ">=", 1), ("b", "in", ("x", "y"))),)),
        ("[[[a, '<', 1.5]], [[b, is  null]]]", ((("a", "<", 1.5),), (("b", "is null", None),))),
        ("[[a, is not null, null]]", ((("a", "is not null", None),),)),
        ("[[country, '==', no]]", ((("country", "==", "no"),),)),
        ("[[code, '==', 007]]", ((("code", "==", "007"),),)),
        ("[[time, '==', 12:30]]", ((("time", "==", "12:30"),),)),
        ("[[a, '>', 1e6]]", ((("a", ">", 1e6),),)),
    ],
)
def test_filters_mean_any_of_all_of(written: str, meant: object) -> None:
    text = LEAST.replace("s3://b/in/}", f"s3://b/in/, filter: {written}}}")
    assert parse_job(text).input.filter == meant


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("5", "a filter is a list"),
        ("[a, '==', 1]", "'a' is not [column, operator, value]"),
        ("[[a, '=', 1]]", "'=' is not an operator"),
        ("[[a, '==']]", "needs a value"),
        ("[[a, '==', null]]", "test nulls with `is null`"),
        ("[[a, in, 3]]", "needs a list of values, found 3"),
        ("[[a, is null, 3]]", "takes no value, found 3"),
        ("[[a, '==', {b: 1}]]", "cannot be compared"),
        ("[[1, '==', 1]]", "1 is not a column name"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(written: str, complaint: str) -> None:
    error = refusal(LEAST.replace("s3://b/in/}", f"s3://b/in/, filter: {written}}}"))
    assert complaint in str(error)
    assert str(error).startswith("job.yaml:2: `input.filter`")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            JOB.replace("uri: s3://demo/t", "url: s3://demo/t"),
            "job.yaml:3: unknown key `input.url`",
        ),
        (JOB.replace("target", "tagret"), "job.yaml:6: unknown key `chunks.tagret`"),
        (JOB + "target: 5\n", "job.yaml:10: unknown key `target`; did you mean `chunks.target`?"),
        (JOB + "retires: 5\n", "job.yaml:10: unknown key `retires`; did you mean `retries`?"),
        (JOB.replace("128MiB", "lots"), "job.yaml:6: `chunks.target`: 'lots' is not a size"),
        (JOB.replace("128MiB", "0"), "job.yaml:6: `chunks.target`: 0 is below 1"),
        (JOB.replace("mode: error", "mode: erorr"), "found 'erorr'"),
        (
            JOB.replace("pipeline.examples.revenue:revenue", "pipeline.examples.revenue"),
            "is not module:function",
        ),
        (
            JOB.replace("params: {currency: EUR}", "params: 3"),
            "job.yaml:8: `params`: expected a map",
        ),
        (
            JOB.replace("EUR", "!!binary aGk="),
            "job.yaml:8: `params`: currency: expected text, a number",
        ),
        (JOB.replace("currency: EUR", "a: {1: b}"), "keys of a mapping must be text"),
        (JOB + "retries: many\n", "job.yaml:10: `retries`: expected a whole number, found 'many'"),
        (JOB + "max_failures: 120%\n", "'120%' is above 100%"),
        (JOB + "max_failures: -1\n", "-1 is neither a number of chunks nor a share"),
        (JOB + f"max_failures: {2**63}\n", "is neither a number of chunks nor a share"),
        (JOB + "chunk_timeout: soon\n", "'soon' is not a duration"),
        (JOB + "name: again\n", "job.yaml:10: `name` is given twice (line 1)"),
        (JOB + "output: [\n", "not YAML"),
        ("- a\n", "expected `key: value` lines at the top, found a list"),
        ("just text\n", "expected `key: value` lines at the top, found 'just text'"),
        ("", "`transform` is missing"),
        (LEAST.replace("s3://b/in/", "gs://b/in/"), "has the scheme 'gs' (use s3:// or file://)"),
        (LEAST.replace("s3://b/out/", "s3://b"), "a whole bucket"),
        (LEAST.replace("s3://b/out/", "s3://b/in/out/"), "overlap"),
        (LEAST.replace("name: a", "name: a/b"), "job.yaml:1: `name`"),
        (LEAST + "chunks: {per_file: true, per_partition: true}\n", "not both"),
    ],
)
def test_bad_jobs_are_refused_with_the_line(text: str, complaint: str) -> None:
    assert complaint in str(refusal(text))


def test_all_that_is_wrong_is_said_at_once_from_top_to_bottom() -> None:
    text = "nmae: a\ninput: {uri: s3://b/in/}\ntransform: 3\nrounds: 0\n"
    lines = str(refusal(text)).splitlines()
    assert [line.split(":")[1] for line in lines[:3]] == ["1", "3", "4"]
    assert lines[0] == "job.yaml:1: unknown key `nmae`; did you mean `name`?"
    assert set(lines[3:]) == {"job.yaml: `name` is missing", "job.yaml: `output` is missing"}


def test_a_key_like_no_other_gets_the_known_ones() -> None:
    error = refusal(LEAST.replace("s3://b/out/}", "s3://b/out/, zzz: 1}"))
    assert error.hint is not None
    assert "uri, mode, schema, compression" in error.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.yaml does not exist"):
        load_job(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match=r"binary\.yaml cannot be read"):
        load_job(path)


def test_a_file_is_read_like_its_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    assert load_job(path) == load_job(str(path)) == parse_job(JOB)


def test_values_are_set_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    changes = ["params.rate=1.1", "params.since=2024-02-29", "chunks.max_rows=5", "retries = 7"]
    job = load_job(path, [*changes, 'input.filter=[[a, "<", 2]]', "output.mode=append"])
    assert job.params == {"currency": "EUR", "rate": 1.1, "since": date(2024, 2, 29)}
    assert (job.chunks.max_rows, job.retries, job.output.mode) == (5, 7, "append")
    assert job.input.filter == ((("a", "<", 2),),)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("params", "--set params is not KEY=VALUE"),
        ("params..x=1", "is not KEY=VALUE"),
        ("name.x=1", "--set name.x: `name` is 'lineitem-revenue', not a mapping"),
        ("retires=1", "--set retires: unknown key `retires`; did you mean `retries`?"),
        ("output.mode=erorr", "--set output.mode: `output.mode`: expected 'error', 'append'"),
        ("params.x=[1", "--set params.x:1: not YAML"),
        ("params.colour=#fff", "--set params.colour: YAML leaves out '#fff': `#` begins a comment"),
        ("params.text=one #2", "--set params.text: YAML leaves out '#2': `#` begins a comment"),
        ("params.password=one #2", "--set params.password: YAML leaves out ********: `#`"),
        ("params.text=one\nname: other", "YAML leaves out 'name: other': the value ends before"),
    ],
)
def test_wrong_values_from_outside_are_named(tmp_path: Path, change: str, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    with pytest.raises(JobError) as raised:
        load_job(path, [change])
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"#fff"', "#fff"),
        ("a#b", "a#b"),
        ("s3://b/a#b ", "s3://b/a#b"),
        ("", None),
        ('["#1", {a: "x #2"}]', ["#1", {"a": "x #2"}]),
        ("|\n  select 1 # one\n  from t", "select 1 # one\nfrom t"),
        ("\n  - a\n  - b", ["a", "b"]),
    ],
)
def test_a_whole_value_is_set(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    assert load_job(path, [f"params.x={text}"]).params["x"] == value


def test_a_date_and_its_text_are_other_parameters() -> None:
    dated, text = (parse_job(JOB.replace("EUR", value)) for value in ("2024-01-01", '"2024-01-01"'))
    assert dated.params == {"currency": date(2024, 1, 1)}
    assert len({json.dumps(job.params, default=date_to_json) for job in (dated, text)}) == 2


def test_a_job_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(JOB.encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert load_job("-") == parse_job(JOB)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a: 1")))
    with pytest.raises(JobError, match="standard input:1: unknown key"):
        load_job("-")


def test_a_folder_is_not_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is a folder"):
        load_job(tmp_path)


def test_a_written_job_is_short() -> None:
    assert parse_job(LEAST).to_yaml() == (
        "name: a\ninput:\n  uri: s3://b/in/\ntransform: m:f\noutput:\n  uri: s3://b/out/\n"
    )


WORDS = st.sampled_from(
    ["a", "no", "on", "1e6", "007", "1_000", "12:30", "~", "null", "1994-01-01"]
)
TEXTS = WORDS | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)
SCALARS = TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.dates()
TERMS = (
    st.tuples(TEXTS, st.sampled_from(["==", "<", ">="]), SCALARS)
    | st.tuples(TEXTS, st.sampled_from(["in", "not in"]), st.lists(SCALARS, min_size=1, max_size=3))
    | st.tuples(TEXTS, st.just("is null"))
)
JSON = st.recursive(
    st.none()
    | SCALARS
    | st.datetimes(timezones=st.none() | st.just(UTC)).map(lambda at: at.replace(fold=0)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)  # The machine may be busy.
@given(
    terms=st.lists(st.lists(TERMS, min_size=1, max_size=2), max_size=2),
    params=st.dictionaries(TEXTS, JSON, max_size=3),
    target=st.integers(1, 2**50),
    retries=st.integers(0, 9),
    schema=st.sampled_from(["identical", "union", "first"]),
)
def test_a_written_job_reads_back_equal(
    terms: list[object], params: dict[str, object], target: int, retries: int, schema: str
) -> None:
    job = Job.model_validate(
        {
            "name": "a",
            "input": {"uri": "s3://b/in/", "filter": terms, "schema": schema},
            "chunks": {"target": target},
            "transform": "m:f",
            "params": params,
            "output": {"uri": "s3://b/out/"},
            "retries": retries,
        }
    )
    again = parse_job(job.to_yaml())
    assert again == job
    assert repr(again) == repr(job)  # equality takes 1 for 1.0 and True


WINDOW = """
name: daily
input: {uri: s3://b/in/}
transform: pipeline.examples.revenue:revenue
output: {uri: s3://b/out/, mode: overwrite-partitions}
window: {column: ds, grain: day, timezone: Europe/Berlin}
"""


def test_a_window_comes_back_as_it_was() -> None:
    job = parse_job(WINDOW)
    assert job.window is not None
    assert job.window.windowing() == Windowing("ds", "day", "Europe/Berlin")
    assert parse_job(job.to_yaml()) == job


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("grain: day", "grain: week", "grain"),
        ("Europe/Berlin", "Europe/Berlim", "no time zone 'Europe/Berlim'"),
        ("column: ds, ", "", "column"),
        ("name: daily", "name: daily\nchunks: {cross_partitions: true}", "cross_partitions"),
        ("name: daily", "name: daily\nreduce: {combine: 'a:b'}", "`window` and `reduce`"),
    ],
)
def test_windows_that_cannot_be(old: str, new: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        parse_job(WINDOW.replace(old, new))
