"""Read the layers of the settings: files, the embedded stack, the environment and flags.

A layer has nested values and the source of each. Later layers win.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from pipeline.config.yaml_file import (
    Location,
    YamlFile,
    dotted,
    known_keys,
    nearest,
    parse_value,
    read_yaml,
)
from pipeline.errors import SettingsError
from pipeline.processes import is_alive

PREFIX = "CHUNKMAP_"
EMBEDDED_STACK = "the embedded stack"
"""Source of values that come from the stack's processes."""
# CHUNKMAP_CONF names the folder of the files; it is not a setting.
_NOT_SETTINGS = frozenset({"CHUNKMAP_CONF"})

# Variables of other programs, and the settings that they set; earlier variables win.
_STANDARD = (
    ("PREFECT_API_URL", ("prefect", "api_url")),
    ("PREFECT_API_AUTH_STRING", ("prefect", "auth_string")),
    ("DASK_SCHEDULER_ADDRESS", ("dask", "scheduler")),
    ("AWS_ENDPOINT_URL_S3", ("s3", "endpoint_url")),
    ("AWS_ENDPOINT_URL", ("s3", "endpoint_url")),
    ("AWS_REGION", ("s3", "region")),
    ("AWS_DEFAULT_REGION", ("s3", "region")),
    ("AWS_PROFILE", ("s3", "profile")),
    ("AWS_ACCESS_KEY_ID", ("s3", "access_key_id")),
    ("AWS_SECRET_ACCESS_KEY", ("s3", "secret_access_key")),
    ("AWS_SESSION_TOKEN", ("s3", "session_token")),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", ("traces", "endpoint")),
)
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables that name another S3 than the embedded stack's."""
CREDENTIAL_VARIABLES = (
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables with credentials, which every shell of a data engineer has: alone, they do not mean
that the embedded stack's S3 is not wanted."""
_OWN_S3_KEYS = ("endpoint_url", "profile", "access_key_id")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one source.

    Attributes:
        values: Nested mappings, as the settings are nested.
        where: Returns the source of the value at a location.
    """

    values: Mapping[str, Any]
    where: Callable[[Location], str]


def file_layer(path: Path, shown: str) -> Layer:
    """Read the settings in one YAML file; `shown` names it in messages."""
    file = read_yaml(path, SettingsError)
    file = YamlFile(shown, file.data, file.lines)
    return Layer(file.data, file.where)


def flag_layer(overrides: Mapping[str, Any] | None) -> Layer:
    """Return the layer of flags: nested mappings or dotted keys; None stands for an unset flag."""
    values: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if value is not None:
            put(values, tuple(key.split(".")), value)
    return Layer(values, lambda location: f"flag ({dotted(location)})")


def standard_layer(environ: Mapping[str, str]) -> Layer:
    """Read the variables of AWS, Prefect, Dask and OpenTelemetry."""
    values: dict[str, Any] = {}
    names: dict[Location, str] = {}
    for name, location in _STANDARD:
        if environ.get(name) and location not in names:
            put(values, location, environ[name])
            names[location] = name
    return Layer(values, lambda location: _variable(names, location))


def environment_layer(environ: Mapping[str, str], model: type[BaseModel]) -> Layer:
    """Read the CHUNKMAP_… variables; an empty variable counts as unset.

    Raises:
        SettingsError: A variable names no setting.
    """
    values: dict[str, Any] = {}
    names: dict[Location, str] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or not text:
            continue
        location = tuple(name.removeprefix(PREFIX).lower().split("__"))
        annotation = _annotation(model, location)
        if annotation is None:
            raise SettingsError(_unknown_variable(name, model))
        put(values, location, _parse(text, annotation, name))
        names[location] = name
    return Layer(values, lambda location: _variable(names, location))


def stack_layers(
    state_dir: Path,
    environment: str,
    environ: Mapping[str, str],
    *,
    below: Iterable[Layer],
    standard: Layer,
    above: Iterable[Layer],
) -> tuple[Layer, Layer]:
    """Return the addresses of the running processes of the embedded stack, and their secrets.

    A stack that was started for another environment is ignored, so that a run against production
    never uses it. Address and credentials of a service always come from the same source, so the
    secrets win over all other layers; unless another S3 is named, so does all of the stack's.

    Args:
        state_dir: The stack's folder.
        environment: The environment of these settings.
        environ: The variables of this process.
        below: The layers that the stack overrides.
        standard: The layer of the variables of AWS, Prefect and Dask, which override its addresses;
            credentials of AWS do not.
        above: The layers that override the stack's addresses.

    Returns:
        The layer of addresses, and the layer of secrets, which overrides the layers above.
    """
    state = _read_state(state_dir / "stack.json")
    values: dict[str, Any] = {}
    secrets: dict[str, Any] = {}
    if state.get("environment") == environment:
        services = {
            name: service
            for name, service in state.get("services", {}).items()
            if is_alive(service["pid"], service["started"])
        }
        own = list(above)
        above = [standard, *own]
        others = [*below, *above]
        own_s3 = any(environ.get(name) for name in ENDPOINT_VARIABLES) or any(
            _get(layer, "s3", key) for layer in own for key in _OWN_S3_KEYS
        )
        if "prefect" in services and not any(_get(layer, "prefect", "api_url") for layer in above):
            put(values, ("prefect", "api_url"), services["prefect"]["address"])
            put(secrets, ("prefect", "auth_string"), state.get("prefect", {}).get("auth_string"))
        if (
            "dask" in services
            and not any(_get(layer, "dask", "cluster_class") for layer in others)
            and not any(_get(layer, "dask", "scheduler") for layer in above)
        ):
            address = services["dask"]["address"]
            tls = state.get("tls", {}) if address.startswith("tls://") else {}
            put(values, ("dask", "scheduler"), address)
            put(secrets, ("dask", "tls"), {name: tls.get(name) for name in ("ca", "cert", "key")})
        if "s3" in services and not own_s3:
            secrets["s3"] = {"profile": None, "session_token": None, **state["s3"]}
    addresses = Layer(values, lambda location: EMBEDDED_STACK)
    return addresses, Layer(secrets, lambda location: EMBEDDED_STACK)


def put(values: dict[str, Any], location: tuple[str, ...], value: Any) -> None:
    """Set a value at a location; mappings are merged."""
    *parents, last = location
    for parent in parents:
        values = values.setdefault(parent, {})
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            put(values[last], (key,), inner)
    else:
        values[last] = dict(value) if isinstance(value, Mapping) else value


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Merge layers into one nested mapping; later layers win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.values.items():
            put(merged, (key,), value)
    return merged


def source_of(layers: list[Layer], location: Location) -> str | None:
    """Return the source of the value at a location; None if no layer has it."""
    for layer in reversed(layers):
        value: Any = layer.values
        for part in location:
            if isinstance(value, Mapping):
                if part not in value:
                    break
                value = value[part]
        else:
            return layer.where(location)
    return None


def _get(layer: Layer, section: str, key: str) -> Any:
    inner = layer.values.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _variable(names: Mapping[Location, str], location: Location) -> str:
    for depth in range(len(location), 0, -1):
        if location[:depth] in names:
            return names[location[:depth]]
    return "environment"


def _annotation(model: type[BaseModel], location: Location) -> Any:
    """Return the type annotation of a setting; None if there is no such setting."""
    for depth, part in enumerate(location):
        field = model.model_fields.get(str(part))
        if field is None:
            return None
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return inner if depth == len(location) - 1 else None
        model = inner
    return None


def _parse(text: str, annotation: Any, name: str) -> Any:
    if text.lower() in ("null", "none"):
        return None
    kind = get_origin(annotation) or annotation
    if kind is tuple and not text.startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind in (tuple, dict):
        return parse_value(text, name, SettingsError)
    return text


def _unknown_variable(name: str, model: type[BaseModel]) -> str:
    known = ["CHUNKMAP_CONF"]
    for section in known_keys(model, ()):
        inner = known_keys(model, (section,))
        known += [f"{PREFIX}{section.upper()}__{key.upper()}" for key in inner]
        if not inner:
            known.append(f"{PREFIX}{section.upper()}")
    match = nearest(name, [variable.lower() for variable in known])
    return f"unknown variable {name}" + (f"; did you mean {match.upper()}?" if match else "")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A damaged stack file, or one that is being written, means no stack; `up` repairs it.
        return {}
    return state if isinstance(state, dict) else {}
