"""Staged outputs in S3: multipart uploads that are completed only at publish."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import ObjectMissingError, StorageError
from pipeline.storage.records import Staged
from pipeline.storage.s3 import S3Objects, listed
from pipeline.storage.translate import translating
from pipeline.storage.uris import parse

PART_BYTES = 16 << 20
"""Size of an upload's parts: 10,000 of them reach 156 GiB, and four in flight stay small."""


class S3Backend(S3Objects):
    """One S3 service, with staging."""

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> Staged:
        """See `Backend.stage`: a multipart upload that is not completed."""
        return self.wait(self._stage(uri, data, attempt))

    async def _stage(self, uri: str, data: memoryview, attempt: str) -> Staged:
        said = await self.request(
            "create_multipart_upload", uri, Metadata={"chunkmap-attempt": attempt}
        )
        upload = said["UploadId"]
        gate = asyncio.Semaphore(4)

        async def send(number: int, start: int) -> str:
            async with gate:
                done = await self.patiently(
                    lambda: self.request(
                        "upload_part",
                        uri,
                        UploadId=upload,
                        PartNumber=number,
                        Body=bytes(data[start : start + PART_BYTES]),
                    )
                )
            return str(done["ETag"]).strip('"')

        starts = range(0, max(len(data), 1), PART_BYTES)
        parts = await asyncio.gather(*(send(n, start) for n, start in enumerate(starts, 1)))
        return Staged(uri, upload, tuple(parts), len(data), attempt)

    def missing(self, staged: Sequence[Staged]) -> list[Staged]:
        """See `Backend.missing`."""

        async def gone(item: Staged) -> bool:
            try:
                await self.request("list_parts", item.uri, UploadId=item.upload, MaxParts=1)
            except ObjectMissingError:
                return not await self._is_ours(item)
            return False

        flags = self.wait(self.gather(gone, staged))
        return [item for item, flag in zip(staged, flags, strict=True) if flag]

    async def _is_ours(self, item: Staged) -> bool:
        """Whether the visible object was completed from this very upload."""
        try:
            said = await self.request("head_object", item.uri)
        except ObjectMissingError:
            return False
        return bool(said.get("Metadata", {}).get("chunkmap-attempt") == item.attempt)

    def complete(self, staged: Sequence[Staged]) -> list[Staged]:
        """See `Backend.complete`."""

        async def finish(item: Staged) -> bool:
            try:
                await self.request(
                    "complete_multipart_upload",
                    item.uri,
                    UploadId=item.upload,
                    MultipartUpload=listed(item.parts),
                )
            except ObjectMissingError:
                # Either completed before (by us, or by a driver that died) or gone for ever.
                return await self._is_ours(item)
            return True

        flags = self.wait(self.gather(finish, staged))
        return [item for item, flag in zip(staged, flags, strict=True) if not flag]

    def abort_days(self, uri: str) -> float | None:
        """See `Backend.abort_days`: the bucket's lifecycle rules."""
        at = parse(uri)

        async def rules() -> Any:
            client = await self.client(at.bucket)
            with translating("get lifecycle", uri):
                return await client.get_bucket_lifecycle_configuration(Bucket=at.bucket)

        try:
            found = self.wait(rules()).get("Rules", ())
        except StorageError:
            return None  # There is none, or we may not read it.
        days = [
            float(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"])
            for rule in found
            if rule.get("Status") == "Enabled"
            and "AbortIncompleteMultipartUpload" in rule
            and at.key.startswith(_prefix_of(rule))
        ]
        return min(days, default=None)

    def abort(self, staged: Sequence[Staged]) -> None:
        """See `Backend.abort`."""

        async def drop(item: Staged) -> None:
            with suppress(ObjectMissingError):
                await self.request("abort_multipart_upload", item.uri, UploadId=item.upload)

        self.wait(self.gather(drop, staged))

    def staged_under(self, prefix: str, area: str) -> Iterator[Staged]:
        """See `Backend.staged_under`. Prefixes must be narrow: servers page uploads wrongly."""
        at = parse(prefix)

        async def page() -> Any:
            client = await self.client(at.bucket)
            with translating("list uploads", prefix):
                return await client.list_multipart_uploads(Bucket=at.bucket, Prefix=at.key)

        for entry in self.wait(page()).get("Uploads", ()):
            yield Staged(
                uri=f"s3://{at.bucket}/{entry['Key']}",
                upload=entry["UploadId"],
                parts=(),
                size=0,
                attempt="",
                created=entry["Initiated"].timestamp(),
            )


def _prefix_of(rule: dict[str, Any]) -> str:
    """The keys that a lifecycle rule is about; older rules name them outside the filter."""
    chosen = rule.get("Filter", {})
    return str(
        chosen.get("Prefix") or chosen.get("And", {}).get("Prefix") or rule.get("Prefix", "")
    )
