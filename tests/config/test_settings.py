"""Where each setting is taken from, and what is said about those that are wrong."""

import json
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config.layers import CREDENTIAL_VARIABLES
from pipeline.config.settings import Settings, explain, ignored_credentials, load_settings
from pipeline.errors import SettingsError
from pipeline.masking import MASK
from pipeline.processes import start_time

SECRET = "wJalrXUtnFEMI"
Write = Callable[[str, str], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, with no variable of anyone's set."""
    for name in list(os.environ):
        if name.startswith(("CHUNKMAP_", "AWS_", "PREFECT_API", "DASK_")):
            monkeypatch.delenv(name)
    (tmp_path / "conf").mkdir()
    return tmp_path


@pytest.fixture
def write(project: Path) -> Write:
    def to(name: str, text: str) -> None:
        (project / "conf" / name).write_text(text, encoding="utf-8")

    return to


def source(settings: Settings, key: str) -> str:
    return {name: where for name, _, where in explain(settings)}[key]


def refusal(project: Path, **arguments: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load_settings(cwd=project, **arguments)
    assert caught.value.exit_code == 2
    return caught.value


def stack_up(project: Path, environment: str = "local", alive: tuple[str, ...] = ()) -> None:
    """A stack whose living processes are this very one."""
    addresses = {"s3": "http://127.0.0.1:1", "prefect": "http://127.0.0.1:2/api"}
    addresses["dask"] = "tcp://127.0.0.1:3"
    pid, started = os.getpid(), start_time(os.getpid())
    services = {
        name: {"pid": pid, "started": started if name in alive else 1.0, "address": address}
        for name, address in addresses.items()
    }
    s3 = {
        "endpoint_url": addresses["s3"],
        "region": "us-east-1",
        "access_key_id": "stack",
        "secret_access_key": SECRET,
    }
    folder = project / ".chunkmap"
    folder.mkdir()
    state = {"environment": environment, "services": services, "s3": s3}
    (folder / "stack.json").write_text(json.dumps(state), encoding="utf-8")


ALIVE = ("s3", "prefect", "dask")


def test_without_any_source_the_defaults_hold(project: Path) -> None:
    settings = load_settings(cwd=project)
    assert settings.environment == "local"
    assert settings.batches.seconds == 5
    assert settings.planner.footer_limit == 64 * 2**20
    assert settings.transforms.allow == ("examples",)
    assert settings.state_dir == project / ".chunkmap"
    assert {where for _, _, where in explain(settings)} == {"default"}


def test_later_sources_win_key_by_key(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("base.yaml", "batches: {seconds: 1, max_chunks: 1, flush_seconds: 1, flush_chunks: 1}\n")
    write("local.yaml", "batches: {max_chunks: 2, flush_seconds: 2, flush_chunks: 2}\n")
    monkeypatch.setenv("CHUNKMAP_BATCHES__FLUSH_SECONDS", "3")
    monkeypatch.setenv("CHUNKMAP_BATCHES__FLUSH_CHUNKS", "3")
    settings = load_settings(cwd=project, overrides={"batches.flush_chunks": 4, "dask": None})
    batches = settings.batches
    assert (batches.seconds, batches.max_chunks) == (1, 2)
    assert (batches.flush_seconds, batches.flush_chunks) == (3, 4)
    assert source(settings, "batches.seconds") == "conf/base.yaml:1"
    assert source(settings, "batches.max_chunks") == "conf/local.yaml:1"
    assert source(settings, "batches.flush_seconds") == "CHUNKMAP_BATCHES__FLUSH_SECONDS"
    assert source(settings, "batches.flush_chunks") == "flag (batches.flush_chunks)"
    assert source(settings, "dask.workers") == "default"


def test_nested_overrides_are_flags_too(project: Path) -> None:
    settings = load_settings(cwd=project, overrides={"dask": {"workers": 3}})
    assert settings.dask.workers == 3
    assert source(settings, "dask.workers") == "flag (dask.workers)"


def test_the_environment_chooses_the_file(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("prod.yaml", "dask: {scheduler: 'scheduler:8786'}\n")
    write("test.yaml", "dask: {workers: 7}\n")
    monkeypatch.setenv("CHUNKMAP_ENVIRONMENT", "test")
    assert load_settings(cwd=project).dask.workers == 7
    settings = load_settings("prod", cwd=project)
    assert settings.environment == "prod"
    assert settings.dask.scheduler == "tcp://scheduler:8786"


def test_an_unknown_environment_is_refused_with_the_known_ones(project: Path, write: Write) -> None:
    write("prod.yaml", "")
    error = refusal(project, environment="prdo")
    assert "prdo.yaml does not exist" in str(error)
    assert error.hint == "environments in conf: prod"


@pytest.mark.parametrize("name", ["../up", "a b", "no/such"])
def test_an_environment_is_a_word(project: Path, name: str) -> None:
    (project / "up.yaml").write_text("", encoding="utf-8")
    refusal(project, environment=name)


def test_another_conf_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "else").mkdir()
    (project / "else" / "base.yaml").write_text("dask: {workers: 9}\n", encoding="utf-8")
    monkeypatch.setenv("CHUNKMAP_CONF", "else")
    settings = load_settings(cwd=project)
    assert settings.dask.workers == 9
    assert source(settings, "dask.workers") == "else/base.yaml:1"
    monkeypatch.setenv("CHUNKMAP_CONF", "nowhere")
    assert "does not exist" in str(refusal(project))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "batchs:\n  seconds: 1\n",
            "conf/base.yaml:1: unknown key `batchs`; did you mean `batches`?",
        ),
        ("batches:\n  secnods: 1\n", "conf/base.yaml:2: unknown key `batches.secnods`; did you"),
        ("workers: 3\n", "conf/base.yaml:1: unknown key `workers`; did you mean `dask.workers`?"),
        ("\ndask:\n  workers: many\n", "conf/base.yaml:3: `dask.workers`: expected a whole number"),
        ("dask: {workers: 0}\n", "conf/base.yaml:1: `dask.workers`"),
        ("dask: 3\n", "conf/base.yaml:1: `dask`: expected a mapping"),
        ("planner: {footer_limit: big}\n", "'big' is not a size"),
        ("prefect: {api_url: localhost}\n", "not an address such as http://"),
        ("prefect: {connect_timeout: -1}\n", "conf/base.yaml:1: `prefect.connect_timeout`"),
        ("dask: {scheduler: 'a:1', cluster_class: 'm:C'}\n", "not both"),
        ("dask: {workers: 1}\ndask: {workers: 2}\n", "conf/base.yaml:2: `dask` is given twice"),
        ("dask: [\n", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(
    project: Path, write: Write, text: str, complaint: str
) -> None:
    write("base.yaml", text)
    assert complaint in str(refusal(project)).replace(f"{project}/", "")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("CHUNKMAP_DASK__WROKERS", "3", "did you mean CHUNKMAP_DASK__WORKERS?"),
        ("CHUNKMAP_ENVIROMENT", "prod", "did you mean CHUNKMAP_ENVIRONMENT?"),
        ("CHUNKMAP_DASK", "{}", "unknown variable CHUNKMAP_DASK"),
        ("CHUNKMAP_DASK__WORKERS", "x", "CHUNKMAP_DASK__WORKERS: `dask.workers`: expected a whole"),
        ("PREFECT_API_URL", "nonsense", "PREFECT_API_URL: `prefect.api_url`: not an address"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    assert complaint in str(refusal(project))


def test_a_wrong_flag_is_refused_by_name(project: Path) -> None:
    error = refusal(project, overrides={"batches.seconds": "soon"})
    assert str(error).startswith("flag (batches.seconds): `batches.seconds`: 'soon' is not a dur")


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("CHUNKMAP_TRANSFORMS__ALLOW", "examples, mine.jobs", "allow", ("examples", "mine.jobs")),
        ("CHUNKMAP_TRANSFORMS__ALLOW", '["examples", "b"]', "allow", ("examples", "b")),
        ("CHUNKMAP_TRANSFORMS__ALLOW", "", "allow", ("examples",)),
    ],
)
def test_variables_hold_lists(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    key: str,
    value: tuple[str, ...],
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(load_settings(cwd=project).transforms, key) == value


def test_variables_hold_mappings_sizes_and_nulls(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("base.yaml", "dask: {workers: 3}\n")
    monkeypatch.setenv("CHUNKMAP_DASK__CLUSTER_KWARGS", '{"n": 1, "namespace": "data"}')
    monkeypatch.setenv("CHUNKMAP_DASK__MEMORY_PER_WORKER", "2GiB")
    monkeypatch.setenv("CHUNKMAP_DASK__WORKERS", "null")
    monkeypatch.setenv("CHUNKMAP_READING__PREFETCH", "false")
    settings = load_settings(cwd=project)
    assert settings.dask.cluster_kwargs == {"n": 1, "namespace": "data"}
    assert settings.dask.memory_per_worker == 2 * 2**30
    assert settings.dask.workers is None
    assert settings.reading.prefetch is False


def test_the_variables_of_aws_prefect_and_dask_are_honoured(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("base.yaml", "prefect: {api_url: 'http://conf:4200/api'}\ns3: {region: eu-west-1}\n")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://dask:8786")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:9000/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_PROFILE", "work")
    settings = load_settings(cwd=project)
    assert settings.prefect.api_url == "http://prefect:4200/api"
    assert settings.dask.scheduler == "tcp://dask:8786"
    assert settings.s3.endpoint_url == "http://s3:9000"
    assert settings.s3.region == "eu-central-1"
    assert settings.s3.profile == "work"
    assert source(settings, "s3.endpoint_url") == "AWS_ENDPOINT_URL_S3"
    monkeypatch.setenv("CHUNKMAP_PREFECT__API_URL", "http://ours:4200/api")
    assert load_settings(cwd=project).prefect.api_url == "http://ours:4200/api"


def test_the_stack_stands_between_files_and_variables(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("local.yaml", "prefect: {api_url: 'http://conf:4200/api'}\n")
    stack_up(project, alive=ALIVE)
    settings = load_settings(cwd=project)
    assert settings.prefect.api_url == "http://127.0.0.1:2/api"
    assert settings.dask.scheduler == "tcp://127.0.0.1:3"
    assert settings.s3.environment() == {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "stack",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    assert source(settings, "s3.secret_access_key") == "the embedded stack"
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert load_settings(cwd=project).prefect.api_url == "http://prefect:4200/api"
    flags = {"dask.scheduler": "tcp://flag:1"}
    assert load_settings(cwd=project, overrides=flags).dask.scheduler == "tcp://flag:1"


def test_dead_processes_of_the_stack_say_nothing(project: Path) -> None:
    stack_up(project, alive=("prefect",))
    settings = load_settings(cwd=project)
    assert settings.prefect.api_url == "http://127.0.0.1:2/api"
    assert settings.dask.scheduler is None
    assert settings.s3.endpoint_url is None


def test_the_stack_says_nothing_to_another_environment(project: Path, write: Write) -> None:
    write("prod.yaml", "")
    stack_up(project, alive=ALIVE)
    settings = load_settings("prod", cwd=project)
    assert (settings.prefect.api_url, settings.s3.endpoint_url) == (None, None)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_users_own_s3_never_mixes_with_the_stacks(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stack_up(project, alive=ALIVE)
    monkeypatch.setenv(name, "http://mine")
    settings = load_settings(cwd=project)
    assert settings.s3.environment() == {"AWS_ENDPOINT_URL_S3": "http://mine"}
    assert ignored_credentials(settings) == []


def test_credentials_of_another_s3_are_not_used_while_the_stack_is_up(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack_up(project, alive=ALIVE)
    stacks = load_settings(cwd=project).s3
    for name in (*CREDENTIAL_VARIABLES, "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "mine")
    settings = load_settings(cwd=project)
    assert settings.s3 == stacks
    assert ignored_credentials(settings) == list(CREDENTIAL_VARIABLES)
    assert source(settings, "s3.profile") == "the embedded stack"
    # The stack's own, as `chunkmap env` prints them, are no other's.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stack")
    assert ignored_credentials(load_settings(cwd=project)) == []
    monkeypatch.setenv("CHUNKMAP_S3__PROFILE", "work")
    named = load_settings(cwd=project)
    assert (named.s3.endpoint_url, named.s3.profile) == (None, "work")
    assert ignored_credentials(named) == []


def test_an_s3_in_flags_never_mixes_with_the_stacks(project: Path) -> None:
    stack_up(project, alive=ALIVE)
    s3 = load_settings(cwd=project, overrides={"s3.profile": "work"}).s3
    assert s3.environment() == {"AWS_PROFILE": "work"}


def test_an_s3_in_files_never_mixes_with_the_stacks(project: Path, write: Write) -> None:
    write("local.yaml", "s3: {profile: work, region: eu-west-1, session_token: mine}\n")
    stack_up(project, alive=ALIVE)
    s3 = load_settings(cwd=project).s3
    assert (s3.profile, s3.session_token, s3.region) == (None, None, "us-east-1")
    assert s3.endpoint_url == "http://127.0.0.1:1"


def test_a_cluster_class_keeps_the_stacks_cluster_out(project: Path, write: Write) -> None:
    write("local.yaml", "dask: {cluster_class: 'dask_kubernetes.operator:KubeCluster'}\n")
    stack_up(project, alive=ALIVE)
    assert load_settings(cwd=project).dask.scheduler is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"environment": "local"}'])
def test_a_damaged_stack_file_means_no_stack(project: Path, text: str) -> None:
    (project / ".chunkmap").mkdir()
    (project / ".chunkmap" / "stack.json").write_text(text, encoding="utf-8")
    assert load_settings(cwd=project).dask.scheduler is None


def test_secrets_are_never_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    overrides = {"dask.cluster_kwargs": {"auth": {"api_token": SECRET}, "n": 1}}
    settings = load_settings(cwd=project, overrides=overrides)
    shown = explain(settings)
    assert ("s3.secret_access_key", MASK, "AWS_SECRET_ACCESS_KEY") in shown
    assert any(MASK in value and "'n': 1" in value for _, value, _ in shown)
    for text in (repr(settings), str(settings), str(shown), settings.s3.model_dump_json()):
        assert SECRET not in text
    assert settings.s3.secret_access_key is not None
    assert settings.s3.secret_access_key.get_secret_value() == SECRET


def test_a_secret_in_an_address_is_refused_and_not_repeated(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:{SECRET}@prefect:4200/api")
    error = refusal(project)
    assert "must not hold a user name or password" in str(error)
    assert SECRET not in "".join(traceback.format_exception(error))


def test_a_mistyped_secret_is_not_repeated(project: Path, write: Write) -> None:
    write("base.yaml", f"s3:\n  secret_access_key: [{SECRET}]\n")
    error = refusal(project)
    assert "conf/base.yaml:2: `s3.secret_access_key`" in str(error)
    assert SECRET not in "".join(traceback.format_exception(error))


def test_settings_are_frozen_and_survive_pickling(project: Path) -> None:
    settings = load_settings(cwd=project, overrides={"dask.workers": 3})
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert explain(again) == explain(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.environment = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.dask.workers = 4  # type: ignore[misc]


def test_defaults_need_no_source_and_no_disk() -> None:
    assert Settings().dask.connect_timeout == 10


def test_every_setting_is_described() -> None:
    undescribed = [
        f"{section.__name__}.{name}"
        for field in Settings.model_fields.values()
        if isinstance(section := field.annotation, type) and issubclass(section, BaseModel)
        for name, inner in section.model_fields.items()
        if not inner.description
    ]
    assert not undescribed


def test_the_shipped_files_are_valid(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Path(__file__).parents[2] / "conf"
    monkeypatch.setenv("CHUNKMAP_CONF", str(conf))
    environments = [path.stem for path in conf.glob("*.yaml") if path.stem != "base"]
    assert "local" in environments
    for environment in environments:
        assert load_settings(environment, cwd=project).environment == environment
