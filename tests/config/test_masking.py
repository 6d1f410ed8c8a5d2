"""Secrets are masked by structure wherever a setting, or what users wrote, is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config.job import Job, parse_job
from pipeline.config.settings import explain, load_settings
from pipeline.errors import JobError, SettingsError
from pipeline.masking import MASK, is_secret_name, mask, mask_text
from tests.support import forks

SECRET = "hunter2"

SHOWN: list[Any] = [
    {"env": [{"name": "DB_PASSWORD", "value": SECRET}]},
    {"env": [{"value": SECRET, "name": "AWS_SECRET_ACCESS_KEY"}]},
    {"env": [{"key": "AUTH", "value": [SECRET]}]},
    {"env": {"API_KEY": SECRET}},
    {"env": {"DB_PASS": SECRET, "deep": [[{"my-token": {"a": [SECRET]}}]]}},
    {"env": [f"TOKEN={SECRET}"]},
    {"env": [f"TOKEN={SECRET} {SECRET}\n{SECRET}"]},
    {"args": ["--password", SECRET, "--host", "h"]},
    {"args": [f"--password={SECRET}"]},
    {"args": ["-c", f"connect --api-key={SECRET}"]},
    {"url": f"postgresql://me:{SECRET}@h/db"},
    {"url": f"postgresql://me:{SECRET}@{SECRET}@h/db"},
    {"url": f"https://{SECRET}@github.com/a/b"},
    {"url": f"s3://KEY:{SECRET}/x@bucket/"},
    {"url": f"https://h/p?a=1&token={SECRET}&b=2#x"},
    {"url": f"https://h/p?X-Amz-Signature={SECRET}"},
    {"dsn": f"Server=h;Password={SECRET};Database=d"},
    {"json": f'{{"client_secret": "{SECRET}"}}'},
    {"header": f"Authorization: Bearer {SECRET * 3}"},
    {"private_key": SECRET},
    {"credentials": [SECRET]},
    {"auth": {"user": "me", "word": SECRET}},
    {"token": {"from_env": f"{SECRET}-2"}},
]


@pytest.mark.parametrize("value", SHOWN, ids=[str(number) for number in range(len(SHOWN))])
def test_a_secret_in_a_structure_is_masked_and_the_rest_is_not(value: Any) -> None:
    before = str(value)
    shown = str(mask(value))
    assert SECRET not in shown
    assert MASK in shown
    assert str(value) == before
    for word in ("bucket", "'h'", "/db", "github.com", "Database=d", "b=2", "deep"):
        assert (word in before) == (word in shown)


@pytest.mark.parametrize(
    "value",
    [
        {"env": [{"name": "EXTRA_PIP", "value": "polars"}], "n_workers": 3, "x": 1.5, "y": None},
        {"args": ["--host", "h", "-v"], "image": "r:5000/a@sha256:123"},
        {"url": "http://127.0.0.1:8786/a@b?x=1", "tcp": "tcp://[::1]:8786"},
        {"path": "s3://b/token=3/a@b.parquet", "tokens": True},
        {"token": {"from_env": "SHOP_TOKEN"}},
    ],
)
def test_what_is_no_secret_is_shown(value: Any) -> None:
    assert mask(value) == value


FORMS = [
    f"cannot connect: host=h password={SECRET} user=me",
    f"password = {SECRET}",
    f"token={SECRET},next",
    f"AWS_SECRET_ACCESS_KEY={SECRET}/x+y",
    f"export PGPASSWORD='{SECRET}'; psql",
    f"401 for Authorization: Basic {SECRET}",
    f"> authorization: AWS4-HMAC-SHA256 Credential=K, Signature={SECRET}",
    f"Cookie: session={SECRET}; a={SECRET}",
    f"config:\n  password: {SECRET}\n  host: h",
    f"{{password: {SECRET}, host: h}}",
    f"connect(host='h', password='{SECRET}')",
    f'{{"api_key": "{SECRET}"}}',
    f"curl --api-key={SECRET} h",
    f"postgresql://me:{SECRET}@h/db?a=1",
    f"https://h/p?X-Amz-Signature={SECRET}&a=1",
    f"Bearer {SECRET * 2} is refused",
]
"""Secrets as errors of libraries and of users' code show them."""


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_masked_in_a_text_and_once_is_enough(text: str) -> None:
    shown = mask_text(f"before: {text}") if "\n" not in text else mask_text(text)
    assert SECRET not in shown
    assert MASK in shown
    assert mask_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://b/token=3/part.parquet, rows 0 to 9",
        "invalid token: expected text",
        "filter: token == 3",
        "2 + 2 = 4 and x: 1",
    ],
)
def test_a_text_without_secrets_is_kept(text: str) -> None:
    assert mask_text(text) == text


def test_a_long_text_is_masked_in_a_moment() -> None:
    word = "a" * 1_000_000
    assert mask_text(f"x={word}") == f"x={word}"
    assert mask_text(f"x={word}://me:{SECRET}@h") == f"x={word}://{MASK}@h"


def test_text_keeps_what_only_looks_like_an_assignment() -> None:
    text = "s3://bucket/t/token=3/part.parquet is missing; `dask.token`: expected text"
    assert mask_text(text) == text
    assert (
        mask_text("'s3://K:S@b/' and tcp://u:p@h:1/") == f"'s3://{MASK}@b/' and tcp://{MASK}@h:1/"
    )


@pytest.mark.parametrize("name", ["s3.access_key_id", "PGPASSWORD", "oauth-token", "X-Sig", "pwd"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["author", "compass", "design", "keys", "tls.key", "passive"])
def test_names_of_others(name: str) -> None:
    assert not is_secret_name(name)


# -- settings ---------------------------------------------------------------------------------


def write(folder: Path, text: str) -> None:
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "base.yaml").write_text(text)


def give(folder: Path, *arguments: str) -> str:
    """All that a command prints."""
    done = forks.give(*arguments, cwd=folder)
    return done.stdout + done.stderr


@pytest.mark.parametrize("value", SHOWN, ids=[str(number) for number in range(len(SHOWN))])
def test_every_setting_is_masked(tmp_path: Path, value: Any) -> None:
    kwargs = {"cluster_class": "a.b:C", "cluster_kwargs": value}
    write(tmp_path, yaml.safe_dump({"dask": kwargs}))
    shown = {key: text for key, text, _ in explain(load_settings(cwd=tmp_path))}
    assert SECRET not in str(shown)
    assert MASK in shown["dask.cluster_kwargs"]


def test_config_shows_none_of_them(tmp_path: Path) -> None:
    write(tmp_path, yaml.safe_dump({"dask": {"cluster_kwargs": {"all": SHOWN}}}))
    for arguments in (("config",), ("config", "--json")):
        shown = give(tmp_path, *arguments)
        assert SECRET not in shown
        assert MASK in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DASK_SCHEDULER_ADDRESS", f"tcp://user:{SECRET}@host:8786"),
        ("DASK_SCHEDULER_ADDRESS", f"user:{SECRET}@host:8786"),
        ("DASK_SCHEDULER_ADDRESS", f"tls://host:8786?token={SECRET}"),
        ("PREFECT_API_URL", f"http://user:{SECRET}@host/api"),
        ("PREFECT_API_URL", f"http://host/api?token={SECRET}"),
        ("AWS_ENDPOINT_URL", f"https://host/#{SECRET}"),
        ("CHUNKMAP_DASK__CLUSTER_KWARGS", f"{{password: *{SECRET}}}"),
        ("CHUNKMAP_DASK__WORKERS", f"postgres://me:{SECRET}@h"),
        ("CHUNKMAP_S3__MAX_REQUESTS", f"https://h/?secret={SECRET}"),
    ],
)
def test_an_error_about_a_setting_does_not_repeat_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        load_settings(cwd=tmp_path)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.hint}"


def test_a_secret_of_the_wrong_kind_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "s3:\n  secret_access_key: 12345\n  access_key_id: [67890]\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(cwd=tmp_path)
    assert "12345" not in str(caught.value)
    assert "67890" not in str(caught.value)


# -- jobs -------------------------------------------------------------------------------------

JOB = """name: a
input: {{uri: {uri}}}
transform: pipeline.examples.revenue:revenue
params: {params}
output: {{uri: {output}}}
"""


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://KEY:{SECRET}@bucket/in/",
        f"s3://KEY:{SECRET}/x@bucket/in/",
        f"s3://{SECRET}@bucket/in/",
        f"gs://KEY:{SECRET}@bucket/in/",
        f"file://me:{SECRET}@host/in/",
        f"https://h/in?token={SECRET}",
    ],
)
@pytest.mark.parametrize("where", ["input", "output"])
def test_a_uri_with_credentials_is_refused_and_not_repeated(uri: str, where: str) -> None:
    uris = {"uri": "s3://b/in/", "output": "s3://b/out/"}
    uris["uri" if where == "input" else where] = f"'{uri}'"
    text = JOB.format(params="{}", **uris)
    with pytest.raises(JobError, match=rf"job\.yaml:\d: `{where}\.uri") as caught:
        parse_job(text)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.hint}"
    with pytest.raises(ValidationError) as raised:
        Job.model_validate(yaml.safe_load(text))
    assert SECRET not in str(raised.value)


def test_a_hive_column_may_have_any_name() -> None:
    job = parse_job(JOB.format(uri="s3://b/token=3/", output="s3://b/o/a@b:c/", params="{}"))
    assert job.input.uri == ("s3://b/token=3/",)


@pytest.mark.parametrize("params", [f"'api://me:{SECRET}@h'", f"{{password: !!set {{{SECRET}}}}}"])
def test_params_of_the_wrong_kind_do_not_show_secrets(params: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(JOB.format(uri="s3://b/in/", output="s3://b/out/", params=params))
    assert SECRET not in str(caught.value)


def test_a_command_that_fails_shows_no_credentials(tmp_path: Path) -> None:
    for command in ("verify", "rollback"):
        assert SECRET not in give(tmp_path, command, f"s3://KEY:{SECRET}@bucket/x/")
    text = JOB.format(uri=f"s3://KEY:{SECRET}@b/in/", output="s3://b/out/", params="{}")
    (tmp_path / "job.yaml").write_text(text)
    for flags in ((), ("--json",)):
        shown = give(tmp_path, "plan", "job.yaml", *flags)
        assert "job.yaml:2" in shown
        assert SECRET not in shown
