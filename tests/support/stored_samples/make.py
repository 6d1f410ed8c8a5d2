"""`python -m tests.support.stored_samples.make`: store what this release leaves in a bucket.

Run it in a checkout of the release, and commit the archive that it writes, named by the version.
tests/runs/test_stored_samples.py then holds all later releases to reading it. Nothing in an archive
may be written again; a new kind of state gets a place in the next one.

The input is `in/`: eight days with two objects each. The outputs:

- `out/`: a run of which six of sixteen chunks failed;
- `daily/`: a backfill by days of which three failed;
- `total/`: a map and reduce of which six chunks failed;
- `claimed/`: a publish whose driver died when it had claimed the output;
- `versions/`: two versions, of two days and of all;
- `appended/`: all days, in mode append.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import zstandard

from pipeline.config.job import Job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import WindowSelection, create, draft
from pipeline.runs.backfill.records import BackfillResumeOptions, Options
from pipeline.runs.driver.run import run_serially
from pipeline.storage import Storage, open_storage
from tests.servers.launching import Server, seaweedfs
from tests.support.faulty_storage import Fault, Faulty, KilledError

FOLDER = Path(__file__).parent
TRANSFORMS = FOLDER / "transforms"
BUCKET = "sample"


def variables(server: Server, state: Path) -> dict[str, str]:
    """Environment variables of a process that works on a sample."""
    return {
        "CHUNKMAP_S3__ENDPOINT_URL": server.endpoint,
        "CHUNKMAP_S3__ACCESS_KEY_ID": server.key_id,
        "CHUNKMAP_S3__SECRET_ACCESS_KEY": server.secret,
        "CHUNKMAP_S3__REGION": "us-east-1",
        "CHUNKMAP_TRANSFORMS__ALLOW": '["stored_transforms", "stored_more"]',
        "CHUNKMAP_STATE_DIR": str(state),
    }


def day_object(day: int, part: int) -> tuple[str, bytes]:
    """Key and content of one of a day's two objects: five rows."""
    data = io.BytesIO()
    ids = [day * 10 + part * 5 + number for number in range(5)]
    pl.DataFrame({"id": ids, "value": [day * 10.0] * 5}).write_parquet(data)
    return f"in/ds=2024-03-{day:02}/{part}.parquet", data.getvalue()


def job(name: str, transform: str, **more: Any) -> Job:
    """A job over the sample's input, whose output is named like it."""
    output = {"uri": f"s3://{BUCKET}/{name}/", "mode": "overwrite", **more.pop("output", {})}
    fields = {
        "name": name,
        "input": {"uri": f"s3://{BUCKET}/in/", **more.pop("input", {})},
        "chunks": {"per_file": True},
        "transform": transform,
        "output": output,
        "retries": 0,
        "rounds": 1,
    }
    return Job.model_validate(fields | more)


def fill(settings: Settings, storage: Storage) -> None:
    """Leave every output in its state."""

    def fails(call: Callable[[], object], kind: type[BaseException]) -> None:
        try:
            call()
        except kind as error:
            print(f"  as it should: {type(error).__name__}: {str(error)[:80]}")
        else:
            raise AssertionError("this was to fail")

    halves = job("out", "stored_transforms:halves")
    fails(lambda: run_serially(halves, settings, storage), ChunkmapError)
    reduced = job("total", "stored_more:sums", reduce={"combine": "stored_more:add"})
    fails(lambda: run_serially(reduced, settings, storage), ChunkmapError)

    daily = job(
        "daily",
        "stored_transforms:halves",
        output={"mode": "overwrite-partitions"},
        window={"column": "ds"},
    )
    created = create(storage, draft(daily, settings, storage, WindowSelection(), Options()))
    assert created is not None
    store, _ = created
    driver = BackfillDriver(store, settings, NoBackfillOrchestrator(), BackfillResumeOptions())
    fails(driver.run, ChunkmapError)

    two_days = {"filter": [["ds", "<", "2024-03-03"]]}
    run_serially(job("versions", "stored_more:scaled", input=two_days), settings, storage)
    run_serially(job("versions", "stored_more:scaled", params={"factor": 2.0}), settings, storage)
    appended = job("appended", "stored_more:scaled", output={"mode": "append"})
    run_serially(appended, settings, storage)

    claimed = job("claimed", "stored_more:scaled")
    dying = Storage(
        {"s3": Faulty(storage.backend(f"s3://{BUCKET}/"), _dies_publishing(), KilledError)}
    )
    fails(lambda: run_serially(claimed, settings, dying), KilledError)


def _dies_publishing() -> Callable[[int, str], Fault]:
    """End where files are to become visible: no request is sent from there on."""
    dead = False

    def script(number: int, name: str) -> Fault:
        nonlocal dead
        dead = dead or name == "complete"
        return "before" if dead else None

    return script


def pack(client: Any, archive: Path) -> int:
    """Store all objects of the bucket but pages, with their metadata; return their number."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    count = 0
    with tarfile.open(archive, "w:gz") as tar:
        for key in keys:
            if not key.endswith(".html"):
                found = client.get_object(Bucket=BUCKET, Key=key)
                data = found["Body"].read()
                _refuse_paths(key, data)
                member = tarfile.TarInfo(key)
                member.size = len(data)
                member.pax_headers = {f"chunkmap.{k}": v for k, v in found["Metadata"].items()}
                tar.addfile(member, io.BytesIO(data))
                count += 1
    return count


def _refuse_paths(key: str, data: bytes) -> None:
    """Refuse to store where this machine has its files."""
    if key.endswith(".zst"):
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    for folder in (sys.prefix, str(FOLDER), os.environ["CHUNKMAP_STATE_DIR"]):
        assert folder.encode() not in data, f"{key} names {folder}"


def unpack(archive: Path, client: Any) -> None:
    """Put all objects of an archive into a new bucket."""
    client.create_bucket(Bucket=BUCKET)
    with tarfile.open(archive) as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            named = {
                name.removeprefix("chunkmap."): value
                for name, value in member.pax_headers.items()
                if name.startswith("chunkmap.")
            }
            client.put_object(Bucket=BUCKET, Key=member.name, Body=data.read(), Metadata=named)


def outputs_of(archive: Path) -> set[str]:
    """Names of the outputs in an archive."""
    with tarfile.open(archive) as tar:
        roots = {name.partition("/")[0] for name in tar.getnames()}
    return {root.removesuffix(".chunkmap") for root in roots if root.endswith(".chunkmap")}


def main() -> int:
    """Make the archive of this release."""
    archive = FOLDER / f"{version('chunkmap')}.tar.gz"
    if archive.exists():
        print(f"{archive.name} exists; a stored sample is never written again", file=sys.stderr)
        return 2
    sys.path.insert(0, str(TRANSFORMS))
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as server:
        os.environ.update(variables(server, Path(folder, "state")))
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        for day in range(1, 9):
            for part in range(2):
                key, data = day_object(day, part)
                client.put_object(Bucket=BUCKET, Key=key, Body=data)
        settings = load_settings()
        with (
            mock.patch("socket.gethostname", return_value="sample"),
            mock.patch("traceback.format_exception", return_value=["ValueError: too large"]),
        ):
            fill(settings, open_storage(settings))
        print(f"{archive.name}: {pack(client, archive)} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main())
