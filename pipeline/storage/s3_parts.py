"""Handle objects in parts: complete an upload, and copy objects too large for one request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import PreconditionFailedError, StorageError

if TYPE_CHECKING:
    from pipeline.storage.s3_objects import S3Objects


def completion_body(parts: Sequence[str]) -> dict[str, Any]:
    """Return the body of CompleteMultipartUpload for the ETags of parts numbered from one."""
    return {"Parts": [{"ETag": f'"{etag}"', "PartNumber": n} for n, etag in enumerate(parts, 1)]}


async def copy_in_parts(s3: S3Objects, origin: dict[str, Any], target: str, size: int) -> None:
    """Copy one version of an object on the server's side; a failed copy is aborted.

    Args:
        s3: The service.
        origin: `CopySource` and `CopySourceIfMatch`.
        target: URI of the copy.
        size: Size of the source in bytes.

    Raises:
        PreconditionFailedError: The source is now another version.
    """
    upload = (await s3.request("create_multipart_upload", target))["UploadId"]
    step = max(s3.copy_bytes // 5, 1)
    try:
        parts = []
        for number, start in enumerate(range(0, size, step), 1):
            response = await s3.request(
                "upload_part_copy",
                target,
                UploadId=upload,
                PartNumber=number,
                CopySourceRange=f"bytes={start}-{min(start + step, size) - 1}",
                **origin,
            )
            parts.append(str(response["CopyPartResult"]["ETag"]).strip('"'))
        # Some servers ignore the condition.
        if await _etag(s3, origin["CopySource"]) != origin["CopySourceIfMatch"]:
            raise PreconditionFailedError(target)
        body = completion_body(parts)
        await s3.request("complete_multipart_upload", target, UploadId=upload, MultipartUpload=body)
    except BaseException:
        # No other process knows its id.
        with suppress(StorageError):
            await s3.request("abort_multipart_upload", target, UploadId=upload)
        raise


async def _etag(s3: S3Objects, source: dict[str, str]) -> str:
    response = await s3.request("head_object", f"s3://{source['Bucket']}/{source['Key']}")
    return str(response["ETag"])
