"""How chunkmap is operated: addresses, sizes of batches, concurrency. What is computed is the job.

Each setting is taken from the last of these that has it:

1. the default below;
2. `conf/base.yaml` (`CHUNKMAP_CONF` names another folder);
3. `conf/<environment>.yaml` (`CHUNKMAP_ENVIRONMENT`, default `local`);
4. the embedded stack, when it is up;
5. the variables of AWS, Prefect and Dask (`AWS_REGION`, `PREFECT_API_URL` …);
6. `CHUNKMAP_…` variables, nested with two underscores: `CHUNKMAP_DASK__WORKERS=8`;
7. flags.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline import layers
from pipeline.errors import SettingsError
from pipeline.units import Seconds, Size
from pipeline.yamlfile import Location, dotted, explain_error

MASK = "********"
_SECRET_WORDS = re.compile(r"password|passwd|secret|token|credential|api_?key", re.IGNORECASE)


def _http_address(value: str) -> str:
    parts = urlsplit(value)
    if "@" in parts.netloc:
        # The value would end up in logs and process lists.
        raise ValueError("an address must not hold a user name or password")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address such as http://127.0.0.1:4200")
    return value.rstrip("/")


def _prefect_address(value: str) -> str:
    value = _http_address(value)
    return value if urlsplit(value).path else value + "/api"


def _scheduler_address(value: str) -> str:
    value = value if "://" in value else f"tcp://{value}"
    if not urlsplit(value).hostname:
        raise ValueError("not an address such as tcp://127.0.0.1:8786")
    return value


HttpAddress = Annotated[str, AfterValidator(_http_address)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class PrefectSettings(_Section):
    """The Prefect server."""

    api_url: Annotated[str, AfterValidator(_prefect_address)] | None = None
    """Its API, such as http://127.0.0.1:4200/api. Also from PREFECT_API_URL."""
    connect_timeout: Seconds = 10.0
    """How long to wait for its first answer; with what comes before, within 15 s."""


class DaskSettings(_Section):
    """The Dask cluster: a running scheduler, a cluster class, or else a local cluster."""

    scheduler: Annotated[str, AfterValidator(_scheduler_address)] | None = None
    """The address of a running scheduler, such as tcp://10.0.0.5:8786."""
    workers: PositiveInt | None = None
    """Worker processes of a local cluster. Default: one for each core."""
    threads_per_worker: PositiveInt = 1
    """Chunks that one worker maps at a time; Polars uses further threads inside."""
    memory_per_worker: Size | None = None
    """Limit of a worker's memory, in bytes. Default: an equal share of the machine."""
    connect_timeout: Seconds = 10.0
    """How long to wait for the scheduler's first answer."""
    cluster_class: str | None = None
    """A class that makes a cluster, such as dask_kubernetes.operator:KubeCluster."""
    cluster_kwargs: dict[str, Any] = Field(default={}, repr=False)
    """Its keyword arguments."""

    @model_validator(mode="after")
    def _one_cluster(self) -> DaskSettings:
        if self.scheduler and self.cluster_class:
            raise ValueError("give `scheduler` or `cluster_class`, not both")
        return self


class TransformSettings(_Section):
    """Which code may be loaded as a transform."""

    allow: tuple[str, ...] = ("examples",)
    """Packages and modules that transforms may live in, checked before anything is imported."""
    path: tuple[str, ...] = (".",)
    """Folders that are searched for them before the installed packages."""


class BatchSettings(_Section):
    """How chunks are grouped into Prefect task runs."""

    seconds: Annotated[Seconds, Field(gt=0)] = 5.0
    """How long a batch should run."""
    max_chunks: PositiveInt = 1000
    """Most chunks in a batch."""
    in_flight_per_thread: PositiveInt = 2
    """Batches submitted ahead for each worker thread."""
    flush_seconds: Annotated[Seconds, Field(gt=0)] = 2.0
    """A worker stores its completions at least this often, while chunks finish."""
    flush_chunks: PositiveInt = 200
    """A worker stores its completions at least after this many chunks."""
    straggler_factor: Annotated[float, Field(ge=1)] = 6.0
    """A batch that takes this many times `seconds` is mapped again elsewhere."""
    straggler_seconds: Annotated[Seconds, Field(gt=0)] = 60.0
    """But not before this long."""


class PlannerSettings(_Section):
    """How the input is listed and its footers are read."""

    footer_concurrency: PositiveInt = 128
    """Footers read at a time."""
    footer_limit: Size = 64 * 2**20
    """Largest footer that is read, in bytes."""
    map_threshold: PositiveInt = 20_000
    """From this many objects on, footers are read by the cluster."""


class ReadingSettings(_Section):
    """How workers read chunks."""

    prefetch: bool = True
    """Read the next chunk's bytes while the present one is transformed."""


class S3Settings(_Section):
    """Where S3 is; unset values are found as every AWS tool finds them."""

    endpoint_url: HttpAddress | None = None
    """Another S3 than Amazon's. Also from AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL."""
    region: str | None = None
    """Also from AWS_REGION and AWS_DEFAULT_REGION."""
    profile: str | None = None
    """A profile of ~/.aws/config and ~/.aws/credentials. Also from AWS_PROFILE."""
    access_key_id: SecretStr | None = None
    """From AWS_ACCESS_KEY_ID, or the embedded stack."""
    secret_access_key: SecretStr | None = None
    """From AWS_SECRET_ACCESS_KEY, or the embedded stack."""
    session_token: SecretStr | None = None
    """From AWS_SESSION_TOKEN."""

    def environment(self) -> dict[str, str]:
        """The AWS variables that make another process see the same S3. Holds secrets."""
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in (
                ("AWS_ENDPOINT_URL_S3", self.endpoint_url),
                ("AWS_REGION", self.region),
                ("AWS_PROFILE", self.profile),
                ("AWS_ACCESS_KEY_ID", self.access_key_id),
                ("AWS_SECRET_ACCESS_KEY", self.secret_access_key),
                ("AWS_SESSION_TOKEN", self.session_token),
            )
            if value
        }


class Settings(BaseSettings):
    """All settings, frozen. `Settings()` is the defaults alone; `load_settings` reads the rest."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=layers.PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    environment: str = Field(default="local", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the file conf/<environment>.yaml."""
    prefect: PrefectSettings = PrefectSettings()
    dask: DaskSettings = DaskSettings()
    transforms: TransformSettings = TransformSettings()
    batches: BatchSettings = BatchSettings()
    planner: PlannerSettings = PlannerSettings()
    reading: ReadingSettings = ReadingSettings()
    s3: S3Settings = S3Settings()
    state_dir: Path = Path(".chunkmap")
    """A local folder for the embedded stack's data and logs, and fetched reports."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def source(self, key: str) -> str:
        """Where a setting, by its dotted key, came from: a file and line, a variable, a flag."""
        return self._sources.get(key, "default")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing is read behind the caller's back: `load_settings` merges the sources."""
        return (init_settings,)


def load_settings(
    environment: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """Read the settings from all their sources.

    Args:
        environment: As the flag gives it; default CHUNKMAP_ENVIRONMENT, then `local`.
        overrides: Flags, as nested mappings or dotted keys; None values were not given.
        cwd: The folder that relative paths are meant from.

    Raises:
        SettingsError: A source cannot be read, or a setting is unknown or mistyped. The message
            names the file and line, or the variable.
    """
    cwd = Path.cwd() if cwd is None else cwd
    variables = layers.environment_layer(os.environ, Settings)
    flags = layers.flag_layer({**(overrides or {}), "environment": environment})
    above = [layers.standard_layer(os.environ), variables, flags]
    files, name = _file_layers(cwd, above)
    named = layers.Layer({"environment": name}, lambda location: "default")
    first = _validate([named, *files, *above], cwd)
    stack = layers.stack_layer(first.state_dir, first.environment, os.environ, files, above)
    return _validate([named, *files, stack, *above], cwd) if stack.values else first


def explain(settings: Settings) -> list[tuple[str, str, str]]:
    """Every setting as (key, value with secrets masked, where it came from)."""
    return [
        (key, _masked(key, value), settings.source(key)) for key, value in _leaves(settings, "")
    ]


def _file_layers(cwd: Path, above: list[layers.Layer]) -> tuple[list[layers.Layer], str]:
    """The layers of the conf folder's files, and the environment's name."""
    named_folder = os.environ.get("CHUNKMAP_CONF")
    folder = cwd / (named_folder or "conf")
    if named_folder and not folder.is_dir():
        raise SettingsError(f"CHUNKMAP_CONF: there is no folder {folder}")
    shown = Path(named_folder or "conf")
    files = []
    if (folder / "base.yaml").exists():
        files.append(layers.file_layer(folder / "base.yaml", str(shown / "base.yaml")))
    asked = layers.merge([*files, *above]).get("environment")
    name = str(asked or "local")
    file = folder / f"{name}.yaml"
    if file.exists():
        files.append(layers.file_layer(file, str(shown / file.name)))
    elif asked:
        others = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")
        known = ", ".join(others) or "none"
        raise SettingsError(
            f"no environment {name!r}: {file} does not exist", f"there are: {known}"
        )
    return files, name


def _validate(sources: list[layers.Layer], cwd: Path) -> Settings:
    try:
        settings = Settings(**layers.merge(sources))
    except ValidationError as problems:
        raise _settings_error(problems, sources) from None
    settings = settings.model_copy(update={"state_dir": cwd / settings.state_dir})
    for key, _ in _leaves(settings, ""):
        source = layers.source_of(sources, tuple(key.split(".")))
        if source is not None:
            settings._sources[key] = source
    return settings


def _settings_error(problems: ValidationError, sources: list[layers.Layer]) -> SettingsError:
    lines, hints = [], []
    for detail in problems.errors():
        location = tuple(detail["loc"])
        if _SECRET_WORDS.search(dotted(location)):
            detail["input"] = MASK
        words, hint = explain_error(detail, Settings)
        where = layers.source_of(sources, location) or _nearest_source(sources, location)
        lines.append(f"{where}: {words}" if where else words)
        hints += [hint] if hint else []
    return SettingsError("\n".join(lines), "\n".join(hints) or None)


def _nearest_source(sources: list[layers.Layer], location: Location) -> str | None:
    for depth in range(len(location) - 1, 0, -1):
        source = layers.source_of(sources, location[:depth])
        if source:
            return source
    return None


def _leaves(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _masked(key: str, value: Any) -> str:
    if isinstance(value, dict):
        shown = {name: _masked_item(name, inner) for name, inner in value.items()}
        return str(shown)
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _masked_item(name: str, value: Any) -> Any:
    if _SECRET_WORDS.search(name):
        return MASK
    if isinstance(value, dict):
        return {inner: _masked_item(inner, item) for inner, item in value.items()}
    return value
