"""All unfinished uploads are found, however a server pages."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.runs.admin.vacuum import vacuum
from pipeline.storage import RetryPolicy
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access
from pipeline.table.log import TableLog
from tests.servers.http import Handler, serve
from tests.storage.conftest import FOR_MANY_REQUESTS, PLACES, Place

MANY = 1100
"""More than S3 lists at once."""
SERVERS = [place for place in PLACES if place not in ("memory", "local")]


def begin(place: Place, names: list[str]) -> set[tuple[str, str]]:
    """Begin uploads; their URIs and ids."""
    assert place.server is not None
    client = place.server.client()
    bucket = place.server.bucket
    folder = place.prefix.removeprefix(f"s3://{bucket}/")

    def one(name: str) -> tuple[str, str]:
        said = client.create_multipart_upload(Bucket=bucket, Key=folder + name)
        return place.uri(name), said["UploadId"]

    with ThreadPoolExecutor(8) as pool:
        begun = set(pool.map(one, names))
    client.close()
    return begun


@pytest.mark.parametrize(
    "place", [p for p in FOR_MANY_REQUESTS if p not in ("memory", "local")], indirect=True
)
def test_all_of_many_uploads_are_found(place: Place) -> None:
    own = begin(place, [f"out/k={n % 7}/{n:04d}" for n in range(MANY - 20)] + ["out/same"] * 20)
    begin(place, [f"other/{n}" for n in range(30)])
    found = place.storage.staged_under(place.uri("out/"), place.area)
    assert len(found) == MANY
    assert {(upload.uri, upload.upload) for upload in found} == own
    assert all(upload.created > 0 for upload in found)


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize("place", ["seaweedfs"], indirect=True)
def test_cleaning_aborts_all_of_many_uploads(place: Place) -> None:
    begin(place, [f"out/part-{n:07d}-{'0' * 16}.parquet" for n in range(MANY)])
    TableLog(place.storage, place.uri("out/"))
    assert vacuum(place.storage, place.uri("out/"), older_than=0.0).uploads == MANY
    assert place.storage.staged_under(place.uri("out/"), place.area) == []


class Pages(Handler):
    """Lists uploads in pages of 40, each server in its own way."""

    uploads: ClassVar = [(f"out/{n // 2:03d}", f"id-{n * 7919 % 1000:04d}") for n in range(250)]
    way = ""
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        key, upload = query.get("key-marker", ""), query.get("upload-id-marker", "")
        self.asked.append(json.dumps([key, upload]))
        rows = sorted(self.uploads)
        if self.way == "amazon":  # Without a key marker, the id's is ignored.
            rows = [r for r in rows if not key or (r[0], r[1]) > (key, upload)]
        elif self.way == "seaweedfs":  # By ids alone; a key marker is the one key wanted.
            rows = sorted(rows, key=lambda r: r[1])
            rows = [r for r in rows if r[1] > upload and key in ("", r[0])]
        elif self.way == "key alone":
            rows = [r for r in rows if r[0] >= key]
        page = rows[:40]
        cut = len(page) < len(rows) or self.way == "never ends"
        after = ""
        if cut and page and self.way != "no markers":
            if self.way != "seaweedfs":
                after += f"<NextKeyMarker>{page[-1][0]}</NextKeyMarker>"
            if self.way != "key alone":
                after += f"<NextUploadIdMarker>{page[-1][1]}</NextUploadIdMarker>"
        listed = "".join(
            f"<Upload><Key>{k}</Key><UploadId>{u}</UploadId>"
            "<Initiated>2024-01-01T00:00:00.000Z</Initiated></Upload>"
            for k, u in page
        )
        body = (
            "<ListMultipartUploadsResult><Bucket>b</Bucket>"
            f"<IsTruncated>{str(cut).lower()}</IsTruncated>{after}{listed}"
            "</ListMultipartUploadsResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def pages(request: pytest.FixtureRequest) -> Iterator[tuple[S3Backend, list[str]]]:
    asked: list[str] = []
    with serve(Pages, way=request.param, asked=asked) as endpoint:
        access = Access(endpoint, key_id="a", secret="b")
        yield S3Backend(access, RetryPolicy(attempts=1)), asked


@pytest.mark.parametrize("pages", ["amazon", "seaweedfs", "key alone"], indirect=True)
def test_every_page_of_every_way_is_read(pages: tuple[S3Backend, list[str]]) -> None:
    backend, asked = pages
    found = [(upload.uri, upload.upload) for upload in backend._uploads.under("s3://b/out/")]
    assert sorted(found) == sorted((f"s3://b/{k}", u) for k, u in Pages.uploads)
    assert len(asked) <= 8


@pytest.mark.parametrize("pages", ["no markers", "ignores markers", "never ends"], indirect=True)
def test_a_server_that_pages_wrongly_is_reported(
    pages: tuple[S3Backend, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    backend, asked = pages
    with caplog.at_level(logging.WARNING):
        found = list(backend._uploads.under("s3://b/out/"))
    assert len(found) == 40
    assert len(asked) <= 3
    assert "40 of its unfinished uploads" in caplog.text
