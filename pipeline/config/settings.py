"""Load the settings: addresses, sizes of batches, concurrency. The job file says what is computed.

Each setting comes from the last of these sources that has it:

1. the default below;
2. `conf/base.yaml` (`CHUNKMAP_CONF` names another folder);
3. `conf/<environment>.yaml` (`CHUNKMAP_ENVIRONMENT`, default `local`);
4. the embedded stack, when it is up;
5. the variables of AWS, Prefect and Dask (`AWS_REGION`, `PREFECT_API_URL` …). While the stack is
   up, only an endpoint (`AWS_ENDPOINT_URL_S3`) leads to another S3: AWS credentials alone do not;
6. `CHUNKMAP_…` variables, nested with two underscores: `CHUNKMAP_DASK__WORKERS=8`;
7. flags.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.config import layers
from pipeline.config.sections import (
    AdaptSettings,
    BatchSettings,
    DaskSettings,
    LineageSettings,
    LogSettings,
    PlannerSettings,
    PrefectSettings,
    PriceSettings,
    ReadingSettings,
    S3Settings,
    TlsSettings,
    TraceSettings,
    TransformSettings,
)
from pipeline.config.yaml_file import Location, dotted, explain_error
from pipeline.errors import SettingsError
from pipeline.masking import MASK, mask

__all__ = [
    "MASK",
    "AdaptSettings",
    "BatchSettings",
    "DaskSettings",
    "LineageSettings",
    "LogSettings",
    "PlannerSettings",
    "PrefectSettings",
    "PriceSettings",
    "ReadingSettings",
    "S3Settings",
    "Settings",
    "TlsSettings",
    "TraceSettings",
    "TransformSettings",
    "adopt_settings",
    "explain",
    "ignored_credentials",
    "load_settings",
    "own_settings",
]


class Settings(BaseSettings):
    """All settings, frozen. `Settings()` has defaults only; `load_settings` reads all sources."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=layers.PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    environment: str = Field(default="local", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the file conf/<environment>.yaml."""
    prefect: PrefectSettings = PrefectSettings()
    dask: DaskSettings = DaskSettings()
    transforms: TransformSettings = TransformSettings()
    batches: BatchSettings = BatchSettings()
    planner: PlannerSettings = PlannerSettings()
    reading: ReadingSettings = ReadingSettings()
    s3: S3Settings = S3Settings()
    logs: LogSettings = LogSettings()
    lineage: LineageSettings = LineageSettings()
    traces: TraceSettings = TraceSettings()
    prices: PriceSettings = PriceSettings()
    state_dir: Path = Path(".chunkmap")
    """Local folder of the embedded stack's data and logs, and of fetched reports."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def source(self, key: str) -> str:
        """Return where a setting (dotted key) came from: a file and line, a variable, a flag."""
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
        """Read nothing but the arguments: `load_settings` merges the sources."""
        return (init_settings,)


def load_settings(
    environment: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """Read the settings from all their sources.

    Args:
        environment: Value of the flag; default CHUNKMAP_ENVIRONMENT, then `local`.
        overrides: Flags, as nested mappings or dotted keys; None stands for an unset flag.
        cwd: The folder that relative paths start from.

    Raises:
        SettingsError: A source cannot be read, or a setting is unknown or mistyped. The message
            names the file and line, or the variable.
    """
    cwd = Path.cwd() if cwd is None else cwd
    variables = layers.environment_layer(os.environ, Settings)
    flags = layers.flag_layer({**(overrides or {}), "environment": environment})
    standard, above = layers.standard_layer(os.environ), [variables, flags]
    files, name = _file_layers(cwd, [standard, *above])
    named = layers.Layer({"environment": name}, lambda location: "default")
    first = _validate([named, *files, standard, *above], cwd)
    stack, secrets = layers.stack_layers(
        first.state_dir,
        first.environment,
        os.environ,
        below=files,
        standard=standard,
        above=above,
    )
    if not (stack.values or secrets.values):
        return first
    return _validate([named, *files, stack, standard, *above, secrets], cwd)


def own_settings() -> Settings:
    """Return the settings of this process: those that its driver gave it, else `load_settings`."""
    return _adopted[-1] if _adopted else load_settings()


def adopt_settings(settings: Settings) -> None:
    """Use these settings in this process, a worker that a driver on this machine has started."""
    _adopted[:] = [settings]


_adopted: list[Settings] = []


def ignored_credentials(settings: Settings) -> list[str]:
    """List the variables with credentials that are not used, since the embedded stack's S3 is."""
    key = settings.s3.access_key_id
    if settings.source("s3.endpoint_url") != layers.EMBEDDED_STACK or (
        key is not None and os.environ.get("AWS_ACCESS_KEY_ID") == key.get_secret_value()
    ):
        return []
    return [name for name in layers.CREDENTIAL_VARIABLES if os.environ.get(name)]


def explain(settings: Settings) -> list[tuple[str, str, str]]:
    """Return every setting as (key, value with secrets masked, source)."""
    return [
        (dotted(at), _format_masked(at[-1], value), settings.source(dotted(at)))
        for at, value in _leaves(settings)
    ]


def _file_layers(cwd: Path, above: list[layers.Layer]) -> tuple[list[layers.Layer], str]:
    """Return the layers of the conf folder's files, and the environment's name."""
    named_folder = os.environ.get("CHUNKMAP_CONF")
    folder = cwd / (named_folder or "conf")
    if named_folder and not folder.is_dir():
        raise SettingsError(f"CHUNKMAP_CONF: folder {folder} does not exist")
    shown = Path(named_folder or "conf")
    files = []
    if (folder / "base.yaml").exists():
        files.append(layers.file_layer(folder / "base.yaml", str(shown / "base.yaml")))
    environment = layers.merge([*files, *above]).get("environment")
    name = str(environment or "local")
    file = folder / f"{name}.yaml"
    if file.exists():
        files.append(layers.file_layer(file, str(shown / file.name)))
    elif environment:
        others = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")
        raise SettingsError(
            f"no environment {name!r}: {file} does not exist",
            f"environments in {shown}: {', '.join(others) or 'none'}",
        )
    return files, name


def _validate(sources: list[layers.Layer], cwd: Path) -> Settings:
    try:
        settings = Settings(**layers.merge(sources))
    except ValidationError as problems:
        raise _settings_error(problems, sources) from None
    settings = settings.model_copy(update={"state_dir": cwd / settings.state_dir})
    for at, _ in _leaves(settings):
        source = layers.source_of(sources, at)
        if source is not None:
            settings._sources[dotted(at)] = source
    return settings


def _settings_error(problems: ValidationError, sources: list[layers.Layer]) -> SettingsError:
    lines, hints = [], []
    for detail in problems.errors():
        location = tuple(detail["loc"])
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


def _leaves(section: BaseModel, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting with its location."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*at, name))
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for key, inner in value.items():
                yield from _leaves(inner, (*at, name, key))
        else:
            yield (*at, name), value


def _format_masked(name: str, value: Any) -> str:
    if value is None:
        return ""
    masked = mask(value, "" if isinstance(value, bool | int | float) else name)
    return ", ".join(map(str, masked)) if isinstance(masked, list) else str(masked)
