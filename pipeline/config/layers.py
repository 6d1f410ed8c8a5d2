"""Where settings come from: files, the embedded stack, the environment and flags.

A layer holds nested values and can say where each came from. Later layers win.
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
    parse_yaml,
    read_yaml,
)
from pipeline.errors import SettingsError
from pipeline.processes import is_alive

PREFIX = "CHUNKMAP_"
STACK = "the embedded stack"
"""The source of what the stack's processes say."""
# CHUNKMAP_CONF says where the files are; it is no setting itself.
_NOT_SETTINGS = frozenset({"CHUNKMAP_CONF"})

# Variables of other programs that say the same as a setting of ours; earlier ones win.
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
)
# Any of these shows that the user has an S3 of their own in mind.
_OWN_S3 = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_OWN_S3_KEYS = ("endpoint_url", "profile", "access_key_id")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one source.

    Attributes:
        values: Nested mappings, as the settings are nested.
        where: Says where the value at a location came from.
    """

    values: Mapping[str, Any]
    where: Callable[[Location], str]


def file_layer(path: Path, shown: str) -> Layer:
    """The settings in one YAML file; `shown` names it in messages."""
    file = read_yaml(path, SettingsError)
    file = YamlFile(shown, file.data, file.lines)
    return Layer(file.data, file.where)


def flag_layer(overrides: Mapping[str, Any] | None) -> Layer:
    """Flags: nested mappings or dotted keys; a flag that is None was not given."""
    values: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if value is not None:
            put(values, tuple(key.split(".")), value)
    return Layer(values, lambda location: f"flag ({dotted(location)})")


def standard_layer(environ: Mapping[str, str]) -> Layer:
    """What the variables of AWS, Prefect and Dask say."""
    values: dict[str, Any] = {}
    names: dict[Location, str] = {}
    for name, location in _STANDARD:
        if environ.get(name) and location not in names:
            put(values, location, environ[name])
            names[location] = name
    return Layer(values, lambda location: _variable(names, location))


def environment_layer(environ: Mapping[str, str], model: type[BaseModel]) -> Layer:
    """The CHUNKMAP_… variables; an empty one counts as not set.

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
    below: Iterable[Layer],
    above: Iterable[Layer],
) -> tuple[Layer, Layer]:
    """The addresses of the embedded stack's processes that run, and what these ask for.

    A stack that was started for another environment says nothing, so that a run against
    production never lands on it. Each service comes whole or not at all: never its credentials with
    the user's address, or the other way round. So what they ask for wins over everything.

    Args:
        state_dir: The stack's folder.
        environment: The environment of these settings.
        environ: The variables of this process.
        below: The layers that the stack wins over.
        above: The layers that win over the stack's addresses.

    Returns:
        The addresses, and what wins over the layers above because it belongs to one of them.
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
        above = list(above)
        others = [*below, *above]
        own_s3 = any(environ.get(name) for name in _OWN_S3) or any(
            _get(one, "s3", key) for one in above for key in _OWN_S3_KEYS
        )
        if "prefect" in services and not any(_get(one, "prefect", "api_url") for one in above):
            put(values, ("prefect", "api_url"), services["prefect"]["address"])
            # Both are None for a stack of an older version, which asks for nothing.
            put(secrets, ("prefect", "auth_string"), state.get("prefect", {}).get("auth_string"))
        if (
            "dask" in services
            and not any(_get(one, "dask", "cluster_class") for one in others)
            and not any(_get(one, "dask", "scheduler") for one in above)
        ):
            address = services["dask"]["address"]
            tls = state.get("tls", {}) if address.startswith("tls://") else {}
            put(values, ("dask", "scheduler"), address)
            put(secrets, ("dask", "tls"), {name: tls.get(name) for name in ("ca", "cert", "key")})
        if "s3" in services and not own_s3:
            values["s3"] = {"profile": None, "session_token": None, **state["s3"]}
    return Layer(values, lambda location: STACK), Layer(secrets, lambda location: STACK)


def put(values: dict[str, Any], location: tuple[str, ...], value: Any) -> None:
    """Set a value at a location, merging mappings."""
    *parents, last = location
    for parent in parents:
        values = values.setdefault(parent, {})
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            put(values[last], (key,), inner)
    else:
        values[last] = dict(value) if isinstance(value, Mapping) else value


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """All layers as one nested mapping; later ones win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.values.items():
            put(merged, (key,), value)
    return merged


def source_of(layers: list[Layer], location: Location) -> str | None:
    """Where the value at a location came from; None if no layer has it."""
    for layer in reversed(layers):
        found: Any = layer.values
        for part in location:
            if isinstance(found, Mapping):
                if part not in found:
                    break
                found = found[part]
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
    """What a setting's values are; None if there is no such setting."""
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
        return parse_yaml(f"value: {text}", name, SettingsError).data["value"]
    return text


def _unknown_variable(name: str, model: type[BaseModel]) -> str:
    known = ["CHUNKMAP_CONF"]
    for section in known_keys(model, ()):
        inner = known_keys(model, (section,))
        known += [f"{PREFIX}{section.upper()}__{key.upper()}" for key in inner]
        if not inner:
            known.append(f"{PREFIX}{section.upper()}")
    match = nearest(name, [one.lower() for one in known])
    return f"unknown variable {name}" + (f"; did you mean {match.upper()}?" if match else "")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A stack file that is being written or was damaged means no stack; `up` repairs it.
        return {}
    return state if isinstance(state, dict) else {}
