"""Stage outputs in S3: written but invisible, and made visible at publish.

Small outputs are objects in an area next to the output: one request stages them, and a copy on the
server's side publishes them. Large outputs are open multipart uploads at their final keys: at least
two requests stage them, one completes them, and their bytes never move again. Measured with 4 KiB
outputs on SeaweedFS, CPU of client and server together: an upload takes 6.9 ms to stage and 4.8 ms
to check and complete, an object 1.3 ms and 2.9 ms.

Neither way can publish a file a second time: if others have published, replaced and moved the file
while a publisher was suspended, it finds the source missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from typing_extensions import override

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    InvalidUriError,
    ObjectMissingError,
    ObjectRefusedError,
    PreconditionFailedError,
    StorageError,
    TransientStorageError,
)
from pipeline.metrics import counted_here
from pipeline.storage.backend import ObjectStart, StagedObject
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_client import CONCURRENCY
from pipeline.storage.s3_connection import Access
from pipeline.storage.s3_copies import Copies, is_copy, source_of
from pipeline.storage.s3_objects import S3Objects
from pipeline.storage.s3_requests import DEFAULT_MAX_REQUESTS, Requests
from pipeline.storage.s3_uploads import MAX_COPY_BYTES, MIN_COPY_BYTES, PART_BYTES, Uploads
from pipeline.storage.tokens import UPLOAD_ID_PATTERN, TokenRule
from pipeline.uris import parse

__all__ = ["COPIED_BYTES", "PART_BYTES", "S3Backend"]

log = logging.getLogger(__name__)

COPIED_BYTES = 4 << 20
"""Default of `s3.copied_bytes`: outputs above this size are multipart uploads."""


class S3Backend(S3Objects):
    """An S3 service, with staging."""

    def __init__(
        self,
        access: Access,
        retry: RetryPolicy | None = None,
        requests: Requests | int = DEFAULT_MAX_REQUESTS,
        copied_bytes: int = COPIED_BYTES,
        *,
        conditional: bool = True,
    ) -> None:
        super().__init__(access, retry, requests, conditional=conditional)
        self._copied_bytes = copied_bytes
        self._copies, self._uploads = Copies(self), Uploads(self)

    @override
    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        if len(data) <= self._copied_bytes and self._copies.can(uri, attempt, area):
            return self._copies.stage(uri, data, attempt, area)
        return self._uploads.stage(uri, data, attempt, sha256)

    @override
    def can_extend(self, source: str, uri: str, size: int) -> bool:
        return MIN_COPY_BYTES <= size <= MAX_COPY_BYTES

    @override
    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        return self._uploads.extend(start, tail, uri, attempt)

    @override
    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        copies, uploads = self._copies.find(staged), self._uploads.find(staged)
        unknown = [
            item
            for item in staged
            if item.upload not in copies and (item.uri, item.upload) not in uploads
        ]
        return self._find_vanished(self._check, unknown)

    @override
    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        vanished = self._find_vanished(self._complete, staged)
        # Sources are dropped after all copies, and before the caller moves the pointer.
        self._copies.drop([item for item in staged if item not in vanished])
        return vanished

    @override
    def abort(self, staged: Sequence[StagedObject]) -> None:
        self._copies.drop(staged)
        self._uploads.abort([item for item in staged if not is_copy(item)])

    def _check(self, item: StagedObject) -> None:
        (self._copies if is_copy(item) else self._uploads).check(item)

    def _complete(self, item: StagedObject) -> None:
        (self._copies if is_copy(item) else self._uploads).complete(item)

    def _find_vanished(
        self,
        act: Callable[[StagedObject], None],
        staged: Sequence[StagedObject],
    ) -> list[StagedObject]:
        """Call a function for all items; return those that are neither staged nor visible.

        Items that the store refuses permanently are included: they can never be completed, and
        their chunks can be mapped again. An error that concerns all items (a missing permission, an
        outage) is raised after the requests in flight have ended.
        """

        def has_vanished(item: StagedObject) -> bool:
            try:
                act(item)
            except (AlreadyExistsError, PreconditionFailedError) as error:
                # No condition was sent, so a 409 means another operation on the key.
                raise TransientStorageError(f"{item.uri}: {error}") from error
            except (ObjectMissingError, ObjectRefusedError, InvalidUriError) as error:
                # Either completed before (by this or another driver), or lost.
                if self._is_ours(item):
                    return False
                if not isinstance(error, ObjectMissingError):
                    log.warning("a staged output can never be published: %s", error)
                return True
            return False

        errors: list[Exception] = []

        def outcome(item: StagedObject) -> bool:
            if errors:
                return False  # No new requests; those in flight end.
            try:
                return self.retry(lambda: has_vanished(item))
            except Exception as error:
                errors.append(error)
                return False

        flags = map_concurrently(counted_here(outcome), staged, CONCURRENCY)
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, AccessDeniedError))
        return [item for item, flag in zip(staged, flags, strict=True) if flag]

    def _is_ours(self, item: StagedObject) -> bool:
        """Whether the visible object comes from the same attempt."""
        try:
            response = self.send("head_object", item.uri)
        except (ObjectMissingError, ObjectRefusedError, InvalidUriError):
            return False
        return bool(response.get("Metadata", {}).get("chunkmap-attempt") == item.attempt)

    @override
    def abort_days(self, uri: str) -> float | None:
        """Return the days of the bucket's lifecycle rules."""
        at = parse(uri)

        async def get_lifecycle() -> Any:
            client = await self.client(at.bucket)
            async with self.requests.sending("get lifecycle", uri):
                return await client.get_bucket_lifecycle_configuration(Bucket=at.bucket)

        rules: Sequence[dict[str, Any]] = ()
        with suppress(StorageError):  # There are no rules, or no permission to read them.
            rules = self.wait(get_lifecycle()).get("Rules", ())
        days = [
            float(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"])
            for rule in rules
            if rule.get("Status") == "Enabled"
            and "AbortIncompleteMultipartUpload" in rule
            and at.key.startswith(_prefix_of(rule))
        ]
        return min(days, default=None)

    @override
    def token_rule(self, output: str, area: str) -> TokenRule:
        """Allow sources of copies, and ids of uploads."""
        return TokenRule(output, source_of(output, "", area).removesuffix("."), UPLOAD_ID_PATTERN)

    @override
    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        yield from self._uploads.under(prefix)
        yield from self._copies.under(prefix, area)


def _prefix_of(rule: dict[str, Any]) -> str:
    """Return the prefix of a lifecycle rule, which older rules have outside the filter."""
    scope = rule.get("Filter", {})
    return str(scope.get("Prefix") or scope.get("And", {}).get("Prefix") or rule.get("Prefix", ""))
