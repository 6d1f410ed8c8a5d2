"""Requests go where the settings say, independent of variables."""

from __future__ import annotations

import pytest

from pipeline.config.settings import Settings
from pipeline.errors import ObjectMissingError
from pipeline.storage import open_storage, parse
from tests.servers.http import Handler, serve


class NothingHere(Handler):
    """A server that has no object, and notes what it is asked for."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(parse(f"s3:/{self.path}").key)
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
