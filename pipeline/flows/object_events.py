"""Read notifications about new objects, in the shapes in which S3 services send them.

S3 itself (also wrapped by SNS and SQS), EventBridge, MinIO and SeaweedFS. Pure; see `receiver`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

MAX_DEPTH = 3
"""Envelopes in each other: SQS holds SNS holds S3."""
SEAWEEDFS_ROOT = "/buckets/"
"""Folder of the buckets in SeaweedFS' file system, which its notifications name."""


class NotificationError(ValueError):
    """A message is no notification about objects, or a damaged one."""


def created_objects(message: object, depth: int = 0) -> list[str]:
    """Return the URIs of the objects that a message says were created, in its order.

    Messages about other things, such as deletions and S3's test message, name none.

    Args:
        message: The decoded JSON.
        depth: How many envelopes were opened.

    Raises:
        NotificationError: It has none of the known shapes.
    """
    if not isinstance(message, dict) or depth > MAX_DEPTH:
        raise NotificationError("not a notification of S3, EventBridge, MinIO or SeaweedFS")
    if isinstance(message.get("Records"), list):
        return [uri for record in message["Records"] for uri in _of_record(record, depth)]
    for envelope in ("Message", "body"):
        if isinstance(message.get(envelope), str):
            return created_objects(_decode(message[envelope]), depth + 1)
    if isinstance(message.get("detail"), dict) and "detail-type" in message:
        is_new = message["detail-type"] == "Object Created"
        return [_of_detail(message["detail"])] if is_new else []
    if message.get("Event") == "s3:TestEvent":
        return []
    if isinstance(message.get("key"), str) and "event_type" in message:
        return _of_seaweedfs(message)
    raise NotificationError("not a notification of S3, EventBridge, MinIO or SeaweedFS")


def _decode(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotificationError(f"an envelope holds no JSON: {error}") from None


def _of_record(record: object, depth: int) -> Iterator[str]:
    """Yield the object of one record: of S3 or MinIO, or of SQS with a message in it."""
    if not isinstance(record, dict):
        raise NotificationError("a record is no object")
    if isinstance(record.get("body"), str):
        yield from created_objects(_decode(record["body"]), depth + 1)
        return
    if isinstance(record.get("Sns"), dict):
        yield from created_objects(record["Sns"], depth + 1)
        return
    name = record.get("eventName")
    if not isinstance(name, str):
        raise NotificationError("a record has no eventName")
    if not name.removeprefix("s3:").startswith("ObjectCreated:"):
        return
    part = _mapping(record, "s3")
    # S3 encodes keys as HTML forms do.
    key = unquote_plus(_text(_mapping(part, "object"), "key"))
    yield _uri(_text(_mapping(part, "bucket"), "name"), key)


def _of_detail(detail: Mapping[str, Any]) -> str:
    key = _text(_mapping(detail, "object"), "key")
    return _uri(_text(_mapping(detail, "bucket"), "name"), key)


def _of_seaweedfs(message: Mapping[str, Any]) -> list[str]:
    if message["event_type"] not in ("create", "update", "rename"):
        return []
    path = message["key"]
    entry = _mapping(_mapping(message, "message"), "new_entry")
    if not path.startswith(SEAWEEDFS_ROOT) or entry.get("is_directory"):
        return []
    bucket, _, key = path.removeprefix(SEAWEEDFS_ROOT).partition("/")
    return [_uri(bucket, key)] if key else []


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise NotificationError(f"a record has no `{key}`")
    return value


def _text(parent: Mapping[str, Any], key: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str) or not value:
        raise NotificationError(f"a record has no `{key}`")
    return value


def _uri(bucket: str, key: str) -> str:
    if "/" in bucket:
        raise NotificationError(f"{bucket!r} is no bucket")
    return f"s3://{bucket}/{key}"


@dataclass(slots=True)
class Debouncer:
    """Gathers the objects of a burst, by watched prefix.

    A prefix is due when nothing has come for `quiet` seconds, or `longest` seconds after the first
    object, so that an endless stream does not put it off for ever.

    Attributes:
        watched: Prefixes; objects elsewhere are not counted.
        quiet: Seconds without new objects.
        longest: Seconds from the first object.
    """

    watched: Sequence[str]
    quiet: float
    longest: float
    _pending: dict[str, Burst] = field(default_factory=dict)

    def add(self, uri: str, now: float) -> bool:
        """Note an object; return whether a watched prefix has it."""
        prefixes = [prefix for prefix in self.watched if uri.startswith(prefix)]
        for prefix in prefixes:
            burst = self._pending.setdefault(prefix, Burst(prefix, now, now))
            burst.latest, burst.count, burst.example = now, burst.count + 1, uri
        return bool(prefixes)

    def take(self, now: float, *, all_of_them: bool = False) -> list[Burst]:
        """Take the bursts that are due."""
        due = [
            burst
            for burst in self._pending.values()
            if all_of_them or now - burst.latest >= self.quiet or now - burst.first >= self.longest
        ]
        for burst in due:
            del self._pending[burst.prefix]
        return due

    def put_back(self, burst: Burst) -> None:
        """Put back a burst that could not be sent; objects that came meanwhile are added."""
        later = self._pending.get(burst.prefix)
        if later is not None:
            burst.latest, burst.count = later.latest, burst.count + later.count
        self._pending[burst.prefix] = burst

    @property
    def pending(self) -> int:
        """Number of notifications in the bursts that are not due yet."""
        return sum(burst.count for burst in self._pending.values())

    @property
    def next_due(self) -> float | None:
        """When the next burst is due; None if none is pending."""
        times = [
            min(burst.latest + self.quiet, burst.first + self.longest)
            for burst in self._pending.values()
        ]
        return min(times, default=None)


@dataclass(slots=True)
class Burst:
    """New objects below one prefix.

    Attributes:
        prefix: The prefix.
        first: Seconds, by the caller's clock, when the first one was received.
        latest: The same of the latest.
        count: Number of notifications.
        example: URI of the latest object.
    """

    prefix: str
    first: float
    latest: float
    count: int = 0
    example: str = ""
