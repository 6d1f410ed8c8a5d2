"""Requests go where the settings say, independent of variables."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from pipeline.config.settings import Settings
from pipeline.errors import ObjectMissingError
from pipeline.storage import open_storage, parse
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access
from tests.servers.http import Handler, serve


class NothingHere(Handler):
    """A server that has no object, and notes what it is asked for."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(parse(f"s3:/{self.path}").key)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


class SignedBy(Handler):
    """A server that has no object, and notes the key ids that sign requests."""

    signed: list[str]

    def do_HEAD(self) -> None:
        self.signed.append(self.headers["Authorization"].partition("Credential=")[2].split("/")[0])
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("key", ["plain", "odd//key"], ids=["obstore", "s3fs"])
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_the_settings_endpoint_wins_over_variables(
    variable: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nanny leaves the variables of its workers in its own process, for one."""
    asked: list[str] = []
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with serve(NothingHere, asked=asked) as endpoint:
        s3 = {"endpoint_url": endpoint, "access_key_id": "a", "secret_access_key": "b"}
        with pytest.raises(ObjectMissingError):
            open_storage(Settings.model_validate({"s3": s3})).head(f"s3://bucket/{key}")
    assert asked == [key]


RENEWED_KEYS = """
    import json
    from datetime import UTC, datetime, timedelta
    from uuid import uuid4

    end = datetime.now(UTC) + timedelta(minutes=1)
    keys = {"AccessKeyId": f"KEY{uuid4().hex}", "SecretAccessKey": "b", "SessionToken": "c"}
    print(json.dumps({"Version": 1, "Expiration": end.isoformat(), **keys}))
"""
"""Source of a program that makes other keys each time, which expire so soon that they are renewed
before each request."""


def test_raw_requests_renew_the_keys_of_a_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of a role last for hours, and a backfill for days."""
    program, config = tmp_path / "keys.py", tmp_path / "config"
    program.write_text(dedent(RENEWED_KEYS))
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    signed: list[str] = []
    with serve(SignedBy, signed=signed) as endpoint:
        s3 = S3Backend(Access(endpoint=endpoint))
        for _ in range(2):
            with pytest.raises(ObjectMissingError):
                s3.head("s3://bucket/odd//key")
    assert len(set(signed)) == 2
