"""Buckets that are reached in a way of their own: services, identities, and what they ask for."""

from __future__ import annotations

import io
import json
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.job import parse_job
from pipeline.config.settings import Settings, explain, load_settings
from pipeline.errors import (
    AccessDeniedError,
    InvalidUriError,
    ObjectMissingError,
    SettingsError,
)
from pipeline.runs.driver.run import run_serially
from pipeline.storage import Storage, StorageReader, open_storage, own_storage, scan_options
from pipeline.table.scan import scan_output
from tests.servers import launching
from tests.servers.http import Proxy, serve
from tests.servers.launching import BUCKET, Server

pytestmark = pytest.mark.usefixtures("own_folder")

ARCHIVE = "archive-2026"
OWNER = "111122223333"
KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd"


def settings_of(server: Server, **bucket: Any) -> Settings:
    """Settings in which this server is the default, with what is said of one bucket."""
    keys = {"access_key_id": server.key_id, "secret_access_key": server.secret}
    s3 = {"endpoint_url": server.endpoint, **keys, "buckets": {BUCKET: bucket}}
    return Settings.model_validate({"s3": s3})


def parquet(rows: int = 3) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"id": range(rows)}).write_parquet(buffer)
    return buffer.getvalue()


# -- settings ------------------------------------------------------------------------------------


def test_a_bucket_is_found_by_its_name_then_by_the_longest_glob() -> None:
    buckets = {
        "*": {"region": "any"},
        "logs-*": {"region": "logs", "addressing": "virtual"},
        "logs-eu-*": {"region": "eu"},
        "logs-eu-1": {"endpoint_url": "https://s3.eu-west-1.amazonaws.com"},
    }
    s3 = {"endpoint_url": "http://here:1", "region": "home", "buckets": buckets}
    found = Settings.model_validate({"s3": s3}).s3
    assert found.of_bucket("sales").region == "any"
    assert found.of_bucket("logs-us").region == "logs"
    assert found.of_bucket("logs-us").addressing == "virtual"
    assert found.of_bucket("logs-eu-2").region == "eu"
    assert found.of_bucket("logs-eu-2").endpoint_url == "http://here:1"
    # One entry is about a bucket, and what it leaves open is as `s3` says.
    assert found.of_bucket("logs-eu-1").region == "home"
    assert found.of_bucket("logs-eu-1").endpoint_url == "https://s3.eu-west-1.amazonaws.com"


def test_a_file_and_a_variable_set_it_and_other_processes_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text(
        "s3:\n  buckets:\n    my.archive: {region: eu-west-1, env_prefix: ARCHIVE_}\n"
    )
    found = load_settings(cwd=tmp_path)
    lines = {key: (value, source) for key, value, source in explain(found)}
    assert lines["s3.buckets.my.archive.region"] == ("eu-west-1", "conf/base.yaml:3")
    assert lines["s3.buckets.my.archive.env_prefix"][0] == "ARCHIVE_"

    variables = found.s3.environment()
    assert json.loads(variables["CHUNKMAP_S3__BUCKETS"])["my.archive"]["region"] == "eu-west-1"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "elsewhere").mkdir()
    assert load_settings(cwd=tmp_path / "elsewhere").s3.buckets == found.s3.buckets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {regoin: x}", "regoin"),
        ("a: {profile: me, anonymous: true}", "`profile` or `anonymous`, not both"),
        ("a: {env_prefix: A_, profile: me}", "not both"),
        ("a: {expected_owner: 1234}", "expected_owner"),
        ("a: {secret_access_key: hush-hush}", "secret_access_key"),
        ("a/b: {region: x}", "a/b"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text(f"s3:\n  buckets:\n    {text}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(cwd=tmp_path)
    assert said in str(caught.value)
    assert "conf/base.yaml:3" in str(caught.value)
    assert "hush-hush" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named_when_its_bucket_is_used(moto: Server) -> None:
    settings = settings_of(moto, env_prefix="NOWHERE_")
    storage = open_storage(settings)
    with pytest.raises(SettingsError, match="NOWHERE_AWS_ACCESS_KEY_ID and NOWHERE_AWS_SECRET"):
        storage.objects(f"s3://{BUCKET}/")


# -- what requests say ---------------------------------------------------------------------------


@dataclass
class Request:
    action: str
    headers: dict[str, str]

    @property
    def signed(self) -> set[str]:
        """Names of the headers that the signature covers."""
        return set(self.headers.get("authorization", "").partition("SignedHeaders=")[2]
                   .partition(",")[0].split(";"))  # fmt: skip


@dataclass
class Recorder:
    """A server before another one that notes what it is asked."""

    server: Server
    requests: list[Request]


class _Recording(Proxy):
    requests: list[Request]

    def forwarded(self, body: bytes) -> tuple[str, Mapping[str, str]]:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append(Request(f"{self.command} {self.path}", headers))
        return super().forwarded(body)


@pytest.fixture
def recorder(moto: Server) -> Iterator[Recorder]:
    requests: list[Request] = []
    with serve(_Recording, behind=moto.endpoint, requests=requests) as endpoint:
        yield Recorder(replace(moto, endpoint=endpoint), requests)


def use_all(settings: Settings, prefix: str) -> None:
    """Read, write, list, stage, publish and delete, by each client."""
    for copied in (4 << 20, 0):
        s3 = settings.s3.model_copy(update={"copied_bytes": copied})
        storage = open_storage(settings.model_copy(update={"s3": s3}))
        folder = f"{prefix}{copied}/"
        for key in ("a", "odd//key"):
            storage.put_new(folder + key, b"0123456789")
            info = storage.head(folder + key)
            storage.put_if(folder + key, b"9876543210", info.etag)
            info = storage.head(folder + key)
            assert storage.get(folder + key).data == b"9876543210"
            assert [bytes(x) for x in storage.get_ranges(info, [(0, 2)])] == [b"98"]
            assert len(storage.get_ranges(info, [(0, 2), (4, 6)])) == 2
        storage.copy(folder + "a", folder + "copy")
        assert len(storage.objects(folder)) == 3
        assert len(storage.after(folder, "b")) == 1
        area = prefix + "area/"
        for name in ("shown", "dropped"):
            uri = f"{folder}{name}.parquet"
            staged = storage.stage(uri, memoryview(parquet()), uuid.uuid4().hex, area)
            assert [item.uri for item in storage.staged_under(folder, area)] == [uri]
            assert storage.missing([staged]) == []
            storage.abort([staged]) if name == "dropped" else storage.complete([staged])
        frame = pl.scan_parquet(
            folder + "shown.parquet", storage_options=scan_options(settings, folder), glob=False
        )
        assert frame.collect().height == 3
        storage.delete(folder + "a")


def _writes(request: Request) -> bool:
    """Whether a request makes an object: its encryption is then said, and at no other time."""
    is_part = "partNumber=" in request.action
    begins = request.action.startswith("POST") and request.action.endswith("?uploads")
    return begins or (request.action.startswith("PUT") and not is_part)


def test_who_pays_is_said_in_each_request(recorder: Recorder) -> None:
    settings = settings_of(recorder.server, requester_pays=True)
    use_all(settings, f"s3://{BUCKET}/{uuid.uuid4().hex}/")
    assert len(recorder.requests) > 50
    for request in recorder.requests:
        assert request.headers.get("x-amz-request-payer") == "requester", request.action
        assert "x-amz-request-payer" in request.signed, request.action


def test_the_owner_is_said_in_each_request_of_ours(recorder: Recorder) -> None:
    """Polars cannot send it; a process that scans an output has read its manifest before."""
    name = "x-amz-expected-bucket-owner"
    settings = settings_of(recorder.server, expected_owner=OWNER)
    use_all(settings, f"s3://{BUCKET}/{uuid.uuid4().hex}/")
    ours = [
        request
        for request in recorder.requests
        if "polars" not in request.headers.get("user-agent", "")
    ]
    with_it = [request for request in ours if request.headers.get(name) == OWNER]
    assert len(with_it) > 50
    without = {request.action for request in ours if name not in request.headers}
    assert all("shown.parquet" in action for action in without), without
    # S3 refuses such a header when the signature does not cover it.
    assert not [request.action for request in with_it if name not in request.signed]


def test_what_is_written_is_encrypted_by_the_key(recorder: Recorder, moto: Server) -> None:
    settings = settings_of(recorder.server, sse_kms_key=KEY)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    use_all(settings, prefix)
    assert sum(map(_writes, recorder.requests)) > 10
    for request in recorder.requests:
        said = request.headers.get("x-amz-server-side-encryption")
        assert said == ("aws:kms" if _writes(request) else None), request.action
    client = moto.client()
    folder = prefix.removeprefix(f"s3://{BUCKET}/")
    stored = client.list_objects_v2(Bucket=BUCKET, Prefix=folder)["Contents"]
    for entry in stored:
        head = client.head_object(Bucket=BUCKET, Key=entry["Key"])
        assert head["SSEKMSKeyId"] == KEY, entry["Key"]
    client.close()
    assert len(stored) >= 6


def test_nothing_is_signed_for_who_is_anonymous(recorder: Recorder) -> None:
    """By each client; this server then refuses most of it."""
    storage = open_storage(settings_of(recorder.server, anonymous=True))
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    for key in ("a", "odd//key"):
        for call in (storage.get, storage.head, storage.objects):
            with suppress(AccessDeniedError, ObjectMissingError):
                call(prefix + key)
    assert len(recorder.requests) == 6
    assert not [
        request.action for request in recorder.requests if "authorization" in request.headers
    ]


def test_other_buckets_are_asked_as_ever(recorder: Recorder) -> None:
    said = {"requester_pays": True, "sse_kms_key": KEY, "expected_owner": OWNER}
    found = settings_of(recorder.server, **said).s3
    s3 = found.model_copy(update={"buckets": {"another": found.buckets[BUCKET]}})
    use_all(Settings(s3=s3), f"s3://{BUCKET}/{uuid.uuid4().hex}/")
    names = {name for request in recorder.requests for name in request.headers}
    assert not [name for name in names if "payer" in name or "owner" in name or "kms" in name]


# -- real services -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second service: with credentials of its own, and readers that show none."""
    identities = [
        {
            "name": "owner",
            "credentials": [{"accessKey": "ELSEWHERE", "secretKey": "another-secret-key"}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {"name": "anonymous", "actions": [f"Read:{ARCHIVE}", f"List:{ARCHIVE}"]},
    ]
    folder = tmp_path_factory.mktemp("elsewhere")
    with launching.seaweedfs(folder, json.dumps({"identities": identities})) as server:
        client = server.client()
        client.create_bucket(Bucket=ARCHIVE)
        client.put_object(Bucket=ARCHIVE, Key="in/k=1/a.parquet", Body=parquet(5))
        client.close()
        yield server


@pytest.fixture
def both(
    seaweedfs: Server, elsewhere: Server, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    """Settings of this process, in which the archive is on the other service."""

    def settings(**bucket: Any) -> Settings:
        for name, value in seaweedfs.settings().environment().items():
            monkeypatch.setenv(name, value)
        archive = {"endpoint_url": elsewhere.endpoint, **bucket}
        monkeypatch.setenv("CHUNKMAP_S3__BUCKETS", json.dumps({"archive-*": archive}))
        monkeypatch.setenv("ARCHIVE_AWS_ACCESS_KEY_ID", elsewhere.key_id)
        monkeypatch.setenv("ARCHIVE_AWS_SECRET_ACCESS_KEY", elsewhere.secret)
        monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "benchmarks")
        return load_settings()

    return settings


def run(settings: Settings, source: str, target: str) -> Storage:
    """Run a job; returns a storage of both services."""
    job = {
        "name": "moved",
        "input": {"uri": source},
        "transform": "benchmarks.transforms:same",
        "output": {"uri": target},
    }
    storage = own_storage()
    run_serially(parse_job(json.dumps(job)), settings, storage)
    return storage


@pytest.mark.integration
@pytest.mark.parametrize("way", ["in", "out"])
def test_a_run_reads_from_one_service_and_writes_to_another(
    way: str, both: Callable[..., Settings], elsewhere: Server
) -> None:
    settings = both(env_prefix="ARCHIVE_")
    source, target = f"s3://{BUCKET}/{uuid.uuid4().hex}/", f"s3://{ARCHIVE}/{uuid.uuid4().hex}/"
    if way == "in":
        source, target = target, source
    for number in range(3):
        own_storage().put(f"{source}k={number}/a.parquet", parquet(4))
    storage = run(settings, source, target)
    assert scan_output(target).collect().height == 12
    # Both services at once: listings, pages of a plan, and what is staged.
    mixed = StorageReader(storage)
    assert mixed.head(f"{source}k=1/a.parquet").size
    with pytest.raises(InvalidUriError, match="different services"):
        storage.copy(f"{source}k=1/a.parquet", f"{target}copy")
    state = target.rstrip("/") + ".chunkmap/"
    stored = b"".join(storage.get(info.uri).data for info in storage.objects(state))
    texts = [stored.decode("latin-1"), repr(settings), str(explain(settings))]
    texts += [pickle.dumps(StorageReader(storage)).decode("latin-1")]
    assert len(stored) > 1000
    assert not [text for text in texts if elsewhere.secret in text]


@pytest.mark.integration
def test_one_run_reads_buckets_of_two_services(both: Callable[..., Settings]) -> None:
    settings = both(env_prefix="ARCHIVE_")
    here, there = f"s3://{BUCKET}/{uuid.uuid4().hex}/", f"s3://{ARCHIVE}/{uuid.uuid4().hex}/"
    target = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    for source in (here, there):
        for number in range(2):
            own_storage().put(f"{source}{number}.parquet", parquet(4))
    job = {
        "name": "two",
        "input": {"uri": [here, there]},
        "transform": "benchmarks.transforms:same",
        "output": {"uri": target},
    }
    run_serially(parse_job(json.dumps(job)), settings, own_storage())
    assert scan_output(target).collect().height == 16


@pytest.mark.integration
def test_a_public_bucket_is_read_without_credentials(both: Callable[..., Settings]) -> None:
    settings = both(anonymous=True)
    target = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    run(settings, f"s3://{ARCHIVE}/in/", target)
    assert scan_output(target).collect().height == 5
    with pytest.raises(AccessDeniedError):
        own_storage().put(f"s3://{ARCHIVE}/mine", b"x")
    options = scan_options(settings, f"s3://{ARCHIVE}/in/")
    frame = pl.scan_parquet(f"s3://{ARCHIVE}/in/k=1/a.parquet", storage_options=options, glob=False)
    assert frame.collect().height == 5


@pytest.mark.integration
def test_the_others_credentials_are_not_the_archives(both: Callable[..., Settings]) -> None:
    both()
    with pytest.raises(AccessDeniedError):
        own_storage().objects(f"s3://{ARCHIVE}/in/")
