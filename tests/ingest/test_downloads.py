"""Files at URLs: downloaded once, in one version; and what servers may do."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.config.ingest import parse_ingest
from pipeline.errors import ChunkmapError, InputError, JobError
from pipeline.ingest.download import RETRIES
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.vacuum import EXPIRED
from tests.ingest.conftest import World
from tests.servers.api import Api, Reply
from tests.servers.http import Handler, serve
from tests.support.instants import instants

CSV = b"id,name\n1,a\n2,b\n"


@dataclass
class Site:
    """A server of files."""

    replies: dict[str, Reply | list[Reply]] = field(default_factory=dict)
    """What is sent for a path; a list is sent in turns, its last for ever."""
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def reply(self, path: str) -> Reply:
        self.asked.append(path)
        found = self.replies.get(path, Reply(404, b"", kind=""))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found


class _Files(Handler):
    site: Site

    def do_GET(self) -> None:
        self.site.headers.append(dict(self.headers.items()))
        reply = self.site.reply(self.path)
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if reply.missing:
            self.close_connection = True
        try:
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) - reply.missing])
        except (BrokenPipeError, ConnectionResetError):
            pass  # Only the version was asked for.


@pytest.fixture
def site() -> Iterator[Site]:
    one = Site()
    with serve(_Files, site=one) as one.url:
        yield one


@pytest.fixture
def it() -> World:
    return World(Api([]))


def file(body: bytes = CSV, etag: str = '"1"', **more: Any) -> Reply:
    headers = {"ETag": etag} if etag else {}
    return Reply(body=body, kind="text/csv", headers={**headers, **more.pop("headers", {})}, **more)


def ingest(it: World, site: Site, *paths: str, **more: Any) -> Any:
    files = {"uri": [site.url + path for path in paths], **more.pop("files", {})}
    return it.ingest(files=files, **more)


def test_files_at_urls_are_downloaded_once_and_read_as_others(it: World, site: Site) -> None:
    site.replies = {
        "/a.csv?part=1": file(),
        "/b.csv.gz": file(gzip.compress(b"id,name\n3,c\n")),
        "/c.csv": file(b"id,name\n4,d\n", headers={"Content-Encoding": "gzip"}),
    }
    it.backend.put("s3://in/d.csv", b"id,name\n5,e\n")
    uris = [site.url + path for path in ("/a.csv?part=1", "/b.csv.gz", "/c.csv")]
    summary = it.ingest(files={"uri": [*uris, "s3://in/d.csv"], "range_bytes": 10})
    assert (summary.rows, summary.pages) == (5, 4)
    assert it.frame()["name"].to_list() == list("abcde")
    # Once for its version, once for its content.
    assert sorted(site.asked) == sorted(["/a.csv?part=1", "/b.csv.gz", "/c.csv"] * 2)
    assert not any("Authorization" in headers for headers in site.headers)
    again = it.ingest(files={"uri": [*uris, "s3://in/d.csv"], "range_bytes": 10})
    assert again.already
    assert len(site.asked) == 6
    assert "downloads/" in EXPIRED


def test_an_ingest_of_a_url_that_dies_anywhere_is_finished_by_the_next(
    it: World, site: Site
) -> None:
    site.replies = {"/a.csv": file()}
    definition: dict[str, Any] = {"files": {"uri": site.url + "/a.csv"}}
    count = len(it.calls(**definition))
    for number in instants(count, "url"):
        it.forget()
        called = it.dies(number, "after", **definition)
        stored = bool(it.state("downloads/"))
        site.asked.clear()
        it.ingest(**definition)
        assert it.frame()["id"].to_list() == [1, 2], called
        assert not (stored and site.asked), "what is stored is not asked for again"


def test_passing_failures_are_asked_again(it: World, site: Site) -> None:
    site.replies = {
        "/a.csv": [
            Reply(503, b""),
            Reply(202, b""),
            file(),
            # A server that says when to come back is asked more often.
            *[Reply(429, b"", headers={"Retry-After": "0"})] * (RETRIES + 1),
            file(missing=5),
            file(),
        ]
    }
    assert ingest(it, site, "/a.csv").rows == 2
    assert len(site.asked) == RETRIES + 6


def test_new_urls_are_appended(it: World, site: Site) -> None:
    site.replies = {"/a.csv": file(), "/b.csv": file(b"id,name\n3,c\n", etag="")}
    append = {"output": {"mode": "append"}}
    ingest(it, site, "/a.csv", **append)
    assert ingest(it, site, "/a.csv", **append).already
    site.replies["/a.csv"] = file(CSV * 2, '"2"')
    again = ingest(it, site, "/a.csv", **append)
    assert "1 file changed after being ingested" in again.notes[0]
    more = ingest(it, site, "/a.csv", "/b.csv", **append)
    assert (more.already, more.rows) == (False, 1)
    assert it.frame()["id"].to_list() == [1, 2, 3]
    site.asked.clear()
    assert ingest(it, site, "/a.csv", "/b.csv", **append).already
    assert sorted(site.asked) == ["/a.csv", "/b.csv"], "files are found once"


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (Reply(404, b""), InputError, "no file at .*/a.csv"),
        (Reply(403, b""), SourceDeniedError, "403"),
        (Reply(418, b""), SourceError, "answers 418"),
        (Reply(204, b""), SourceError, "answers 204"),
        (Reply(500, b""), SourceUnavailableError, "answers 500"),
        (Reply(503, b"", headers={"Retry-After": "9999"}), SourceError, "asks to wait 9,999 s"),
        (Reply(body=b"<html>", kind="text/html; charset=utf-8"), SourceError, "answers a web page"),
        (Reply(302, b"", headers={"Location": "/a.csv"}), SourceError, "redirects more than 5"),
        (Reply(302, b"", headers={"Location": "ftp://x/"}), SourceError, "ftp"),
        ([file(), file(etag='"2"')], SourceError, "changed after it was found"),
        (file(CSV * 1000), SourceError, "more than 9,000 bytes"),
    ],
    ids=range(11),
)
def test_what_cannot_be_read_is_named(
    it: World, site: Site, reply: Reply, error: type[ChunkmapError], message: str
) -> None:
    site.replies = {"/a.csv": reply}
    with pytest.raises(error, match=message) as caught:
        ingest(it, site, "/a.csv", files={"max_bytes": 9000})
    assert "/a.csv" in str(caught.value)
    assert not it.table_log.manifest().commits


def test_redirects_are_followed(it: World, site: Site) -> None:
    site.replies = {"/a.csv": Reply(302, b"", headers={"Location": "/b"}), "/b": file()}
    assert ingest(it, site, "/a.csv").rows == 2


def test_a_host_that_does_not_answer_is_named(it: World) -> None:
    with pytest.raises(SourceUnavailableError, match=r"http://127\.0\.0\.1:1/a\.csv"):
        it.ingest(files={"uri": "http://127.0.0.1:1/a.csv"})


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://me:pw@a.example/x.csv", "must not hold credentials"),
        ("https://a.example/x.csv?X-Amz-Signature=abcdef", "looks like a secret"),
        ("https://a.example/x.csv?token=abcdef", "looks like a secret"),
        ("https://a.example/*.csv", "names one file, without wildcards"),
        ("https:///x.csv", "is not a URL"),
        ("ftp://a.example/x.csv", "has the scheme 'ftp'"),
    ],
)
def test_wrong_urls_are_refused(url: str, complaint: str) -> None:
    with pytest.raises(JobError, match=complaint) as caught:
        parse_ingest(f"name: a\nfiles: {{uri: '{url}'}}\noutput: {{uri: s3://b/o/}}\n")
    assert "abcdef" not in str(caught.value)
