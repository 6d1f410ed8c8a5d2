"""An input that matches its own output is refused, however either is written."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import Job, load_job
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.runs.backfill.plan import WindowSelection, draft
from pipeline.runs.backfill.records import Options
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.overlap import normalize_uris, refuse_overlap
from pipeline.runs.driver.plan import ResumeOptions, plan_input, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.storage import Storage, open_storage
from pipeline.storage.local_backend import LocalBackend
from tests.servers.launching import BUCKET, Server

SETTINGS = Settings.model_validate({"transforms": {"allow": ["tests.runs.driver.test_overlap"]}})


def same(frame: pl.LazyFrame) -> pl.LazyFrame:
    """A transform."""
    return frame


def job_of(source: str, output: str, *exclude: str, **more: object) -> Job:
    # What the model itself refuses is refused sooner; the rest is looked at here.
    part = Job.model_validate(
        {
            "name": "overlap",
            "input": {"uri": source, "exclude": exclude},
            "transform": "tests.runs.driver.test_overlap:same",
            "output": {"uri": "s3://elsewhere/out/", "mode": "append"},
            **more,
        }
    )
    return part.model_copy(update={"output": part.output.model_copy(update={"uri": output})})


MATCHING = [
    ("s3://demo/sm*/", "s3://demo/smglob/"),
    ("s3://demo/sm*", "s3://demo/smglob"),
    ("s3://demo/sm*/*.parquet", "s3://demo/smglob/"),
    ("s3://demo/s?glob/**", "s3://demo/smglob/"),
    ("s3://demo/**", "s3://demo/a/b/"),
    ("s3://demo/**/*.parquet", "s3://demo/a/b/"),
    ("s3://demo/**/b/part-*.parquet", "s3://demo/a/b/"),
    ("s3://demo/a**", "s3://demo/ab/c/"),
    ("s3://demo/[a-c]x/", "s3://demo/bx/"),
    ("s3://demo/*/ds=2024*/*.parquet", "s3://demo/out/"),
    ("s3://demo/out/*/", "s3://demo/out/"),
    ("s3://demo/*/", "s3://demo/a/deep/er/"),
    ("s3a://demo/out/", "s3://demo/out/"),
    ("s3://demo/out", "s3a://demo/out/"),
    ("s3://demo//out/", "s3://demo/out/"),
    ("s3://demo/./out/", "s3://demo/out/"),
    ("s3://demo/a/../out/", "s3://demo/out/"),
    ("s3://demo//o*/", "s3://demo/out/"),
    ("s3://demo/", "s3://demo/out/"),
    ("s3://demo/out/in/", "s3://demo/out/"),
]


@pytest.mark.parametrize(("source", "output"), MATCHING)
def test_an_input_that_matches_its_output_is_refused(source: str, output: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_overlap(job_of(source, output))
    assert source in str(caught.value)
    assert output in str(caught.value)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s3://demo/sm*/", "s3://demo/other/"),
        ("s3://demo/sm*/", "s3://other/smglob/"),
        ("s3://demo/in*/*.parquet", "s3://demo/out/"),
        ("s3://demo/*/raw/*.parquet", "s3://demo/out/"),
        ("s3://demo/*/raw-*.parquet", "s3://demo/out/"),
        ("s3://demo/*/data.parquet", "s3://demo/out/"),
        ("s3://demo/*/", "s3://demo/_out/"),
        ("s3://demo/a**", "s3://demo/ba/"),
        ("s3://demo/a/b*/", "s3://demo/a/c/"),
        ("s3://demo/a[1]/", "s3://demo/a2/"),
        ("s3://demo/in", "s3://demo/in2/"),
        ("s3://demo/in//x/", "s3://demo/in/y/"),
    ],
)
def test_an_input_beside_its_output_is_accepted(source: str, output: str) -> None:
    refuse_overlap(job_of(source, output))


def test_a_glob_may_leave_the_output_out() -> None:
    refuse_overlap(job_of("s3://demo/*/", "s3://demo/out/", "out/**"))
    for exclude in ("out/*", "*.csv", "o/**", "out/*/*.parquet"):
        with pytest.raises(UsageError):
            refuse_overlap(job_of("s3://demo/*/", "s3://demo/out/", exclude))


def test_the_state_of_an_output_is_neither_input_nor_output() -> None:
    for source in (
        "s3://demo/x.chunkmap/replaced/1/",
        "s3://demo/x.chunkmap",
        "s3://d/a.chunkmap/*",
    ):
        with pytest.raises(UsageError, match="lies in the state folder of an output"):
            refuse_overlap(job_of(source, "s3://demo/out/"))
    for output in ("s3://demo/x.chunkmap/out/", "s3://demo/x.chunkmap/"):
        with pytest.raises(UsageError, match="the state folder of another output"):
            refuse_overlap(job_of("s3://demo/in/", output))
    refuse_overlap(job_of("file:///home/.chunkmap/in/", "file:///home/.chunkmap/out/"))


@pytest.mark.parametrize("output", ["s3://demo//out/", "s3://demo/a/../out/", "s3://demo/./out"])
def test_an_output_is_written_as_every_service_reads_it(output: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_overlap(job_of("s3://demo/in/", output))
    assert caught.value.hint == "write s3://demo/out/"


def test_jobs_are_the_same_however_their_uris_are_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spelt = [
        normalize_uris(job_of(source, output))
        for source, output in (
            ("./in/", "out"),
            ("in//", f"{tmp_path}/x/../out/"),
            (f"file://{tmp_path}/in/", "./out//"),
        )
    ]
    assert spelt[0] == spelt[1] == spelt[2]


def folder(root: Path) -> Storage:
    for day in (1, 2):
        path = root / "data" / f"ds=2024-01-0{day}" / "a.parquet"
        path.parent.mkdir(parents=True)
        pl.DataFrame({"id": [day]}).write_parquet(path)
    return Storage({"file": LocalBackend()})


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("./data", "{root}/data/"),
        ("data/", "file://{root}/data"),
        ("data", "file://{root}//data/"),
        ("file://{root}/x/../data/", "data/out/"),
        ("link/", "data/out/"),
        ("data/", "link/out/"),
        ("dat*/", "link/out/"),
        ("link/ds=*/", "{root}/data/"),
        ("*/", "data/"),
    ],
)
def test_paths_that_are_the_same_folder(
    source: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by everything that looks at a job, before anything is written."""
    monkeypatch.chdir(tmp_path)
    storage = folder(tmp_path)
    (tmp_path / "link").symlink_to("data")
    before = sorted(tmp_path.rglob("*"))
    source, output = source.format(root=tmp_path), output.format(root=tmp_path)
    job = job_of(source, output, window={"column": "ds"})
    for look in (
        lambda: plan_input(job, SETTINGS, storage),
        lambda: try_transform(job, SETTINGS, storage, 5),
        lambda: plan_run(job, SETTINGS, storage, ResumeOptions()),
        lambda: run_serially(job, SETTINGS, storage, ResumeOptions()),
        lambda: draft(job, SETTINGS, storage, WindowSelection(), Options()),
    ):
        with pytest.raises(UsageError) as caught:
            look()
        assert source in str(caught.value)
        assert output in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_an_output_has_replaced_is_no_input(tmp_path: Path) -> None:
    """A job over a whole folder does not read the state of outputs in it."""
    storage = folder(tmp_path)
    kept = tmp_path / "data" / "old.chunkmap" / "replaced" / "1" / "part-0.parquet"
    kept.parent.mkdir(parents=True)
    pl.DataFrame({"id": [7]}).write_parquet(kept)
    found = plan_input(job_of(f"{tmp_path}/data/", f"{tmp_path}/out/"), SETTINGS, storage).result
    assert (found.plan.rows, found.explain.objects_hidden) == (2, 1)


@pytest.mark.integration
def test_an_appending_job_does_not_read_what_it_wrote(seaweedfs: Server) -> None:
    settings = SETTINGS.model_copy(update={"s3": seaweedfs.settings()})
    storage = open_storage(settings)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    buffer = io.BytesIO()
    pl.DataFrame({"id": [1]}).write_parquet(buffer)
    storage.put(f"{prefix}/sm1/a.parquet", buffer.getvalue())
    for output in ("smglob/", "/smglob/", "sm1/../smglob/"):
        job = job_of(f"{prefix}/sm*/", f"{prefix}/{output}")
        with pytest.raises(UsageError):
            plan_run(job, settings, storage, ResumeOptions())
    assert len(storage.objects(prefix)) == 1


@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@bucket/in/", "s3://bucket/in\\nside/"])
@pytest.mark.parametrize("key", ["input", "output"])
def test_a_job_with_a_uri_that_is_none_is_refused_with_its_line(
    key: str, uri: str, tmp_path: Path
) -> None:
    uris = {"input": "s3://b/in/", "output": "s3://b/out/", key: uri}
    path = tmp_path / "job.yaml"
    path.write_text(
        f'name: a\ninput: {{uri: "{uris["input"]}"}}\ntransform: m:f\n'
        f'output: {{uri: "{uris["output"]}"}}\n'
    )
    with pytest.raises(UsageError) as caught:
        load_job(path)
    assert f"job.yaml:{2 if key == 'input' else 4}" in str(caught.value)
    assert "SECRET" not in f"{caught.value}".replace("AWS_SECRET_ACCESS_KEY", "")
