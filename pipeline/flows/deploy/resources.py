"""What an environment has on the server, as plain data, and how that differs from another state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.masking import mask

KINDS = (
    "work pool",
    "work queue",
    "variable",
    "limit",
    "block",
    "deployment",
    "schedule",
    "automation",
)
"""Kinds of resources, in the order in which they are made; they are removed in the other."""
MASKED_KINDS = ("block",)
"""Kinds whose values may be secret."""

Key = tuple[str, str]
"""Kind and name."""
Action = Literal["create", "update", "remove"]


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource that an environment wants.

    Attributes:
        kind: One of `KINDS`.
        name: Its name; of a queue `pool/queue`, of a deployment `flow/name`, of a schedule that of
            its deployment.
        fields: Its fields as JSON values. Others that the server has for it are left alone.
    """

    kind: str
    name: str
    fields: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what is wanted and what there is.

    Attributes:
        kind: As `Resource.kind`.
        name: As `Resource.name`.
        action: What has to be done.
        fields: (field, value on the server, wanted value) of an update, secrets masked.
    """

    kind: str
    name: str
    action: Action
    fields: tuple[tuple[str, Any, Any], ...] = ()


def compare(
    wanted: Iterable[Resource], actual: Mapping[Key, Mapping[str, Any]], made: Iterable[Key]
) -> list[Change]:
    """List the changes that lead from the server's state to the wanted one, in order.

    Args:
        wanted: What the environment wants.
        actual: Fields of what exists, of the wanted and of the made resources.
        made: What earlier deploys of the environment have made. Only that is ever removed.
    """
    ordered = sorted(wanted, key=lambda resource: KINDS.index(resource.kind))
    keys = {resource.key for resource in ordered}
    changes = [
        Change(resource.kind, resource.name, "create")
        if resource.key not in actual
        else Change(resource.kind, resource.name, "update", _differences(resource, actual))
        for resource in ordered
    ]
    left_over = [key for key in made if key not in keys and key in actual]
    left_over.sort(key=lambda key: (-KINDS.index(key[0]), key[1]))
    return [
        *(change for change in changes if change.action == "create" or change.fields),
        *(Change(kind, name, "remove") for kind, name in left_over),
    ]


def _differences(
    resource: Resource, actual: Mapping[Key, Mapping[str, Any]]
) -> tuple[tuple[str, Any, Any], ...]:
    there = actual[resource.key]
    return tuple(
        ("value", "…", "another value")
        if resource.kind in MASKED_KINDS
        else (field, mask(there.get(field), field), mask(value, field))
        for field, value in resource.fields.items()
        if there.get(field) != value
    )
