"""URIs: what is one, and its normal form."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ChunkmapError, InvalidUriError, UsageError
from pipeline.storage import Storage, parse


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "gs://bucket/key", "http://host/key"])
def test_what_is_no_uri_of_ours(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        Storage({}).head(uri)
    assert isinstance(caught.value, ChunkmapError)
    assert caught.value.hint is not None


@pytest.mark.parametrize("key", ["a", "a/b", "a//b/", "/a", "per%2Fcent #?*[x]", ""])
def test_uris_keep_raw_keys(key: str) -> None:
    assert parse(f"s3://bucket/{key}").key == key
    assert parse(f"s3://bucket/{key}").uri == f"s3://bucket/{key}"


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("s3a://bucket/key", "s3://bucket/key"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket//key/../x", "s3://bucket//key/../x"),
        ("file:///a/./b//c/../d/", "file:///a/b/d/"),
        ("file:////a", "file:///a"),
        ("/a/.hidden/x", "file:///a/.hidden/x"),
        ("/a/b/..", "file:///a/"),
        ("/per%2Fcent #?*[x]", "file:///per%2Fcent #?*[x]"),
    ],
)
def test_a_uri_has_one_normal_form(uri: str, normal: str) -> None:
    assert parse(uri).uri == normal
    assert parse(normal).uri == normal


def test_a_relative_path_is_meant_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("data/", "./data/", "data//", f"file://{tmp_path}/x/../data/"):
        assert parse(uri).uri == f"file://{tmp_path}/data/"
    assert parse(".").uri == f"file://{tmp_path}/"


@pytest.mark.parametrize("char", ["\n", "\x00", "\x1b", "\x7f", "\ud800"])
def test_a_key_with_a_control_character_is_named(char: str, tmp_path: Path) -> None:
    uris = [f"s3://bucket/a{char}b", f"s3://bucket{char}/ab"]
    for uri in [*uris, f"{tmp_path}/a{char}b"] if char == "\x00" else uris:
        with pytest.raises(InvalidUriError) as caught:
            parse(uri)
        assert f"U+{ord(char):04X}" in str(caught.value)
        assert char not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:SECRET@bucket/prefix/",
        "s3://KEY:SEC/RET@bucket/",
        "s3a://KEY:SEC+RET==@bucket/",
        "gs://KEY:SECRET@bucket/key",
        "https://KEY:SECRET@host/bucket",
        "https://host/bucket/key?X-Amz-Signature=SECRET",
    ],
)
def test_a_uri_with_credentials_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InvalidUriError) as caught:
        parse(uri)
    said = f"{caught.value} {caught.value.hint} {caught.value.args}"
    said = said.replace("AWS_SECRET_ACCESS_KEY", "")
    assert "SEC" not in said
    assert "RET" not in said
