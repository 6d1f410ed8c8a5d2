"""Handle objects in parts: complete an upload, and copy objects too large for one request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import PreconditionFailedError, StorageError

if TYPE_CHECKING:
    from pipeline.storage.s3_objects import S3Objects

COPIES_AT_ONCE = 4
"""Number of parts of an upload that are copied at a time."""


def completion_body(parts: Sequence[str]) -> dict[str, Any]:
    """Return the body of CompleteMultipartUpload for the ETags of parts numbered from one."""
    return {"Parts": [{"ETag": f'"{etag}"', "PartNumber": n} for n, etag in enumerate(parts, 1)]}


def copy_in_parts(s3: S3Objects, origin: dict[str, Any], target: str, size: int) -> None:
    """Copy one version of an object on the server's side; a failed copy is aborted.

    Args:
        s3: The service.
        origin: `CopySource` and `CopySourceIfMatch`.
        target: URI of the copy.
        size: Size of the source in bytes.

    Raises:
        PreconditionFailedError: The source is now another version.
    """
    upload = s3.send("create_multipart_upload", target)["UploadId"]
    step = max(s3.copy_bytes // 5, 1)
    try:
        spans = [(start, min(start + step, size)) for start in range(0, size, step)]
        parts = copy_parts(s3, origin, target, upload, spans)
        body = completion_body(parts)
        s3.send("complete_multipart_upload", target, UploadId=upload, MultipartUpload=body)
    except BaseException:
        # No other process knows its id.
        with suppress(StorageError):
            s3.send("abort_multipart_upload", target, UploadId=upload)
        raise


def copy_parts(
    s3: S3Objects,
    origin: dict[str, Any],
    target: str,
    upload: str,
    spans: Sequence[tuple[int, int]],
) -> list[str]:
    """Copy half-open ranges of one version of an object as the first parts of an upload.

    Args:
        s3: The service.
        origin: `CopySource` and `CopySourceIfMatch`.
        target: URI of the upload.
        upload: Its id.
        spans: The ranges; each but the last of the upload has at least 5 MiB.

    Returns:
        ETags of the parts.

    Raises:
        PreconditionFailedError: The source is now another version.
    """

    def copy(part: tuple[int, tuple[int, int]]) -> str:
        number, (start, stop) = part
        response = s3.send(
            "upload_part_copy",
            target,
            UploadId=upload,
            PartNumber=number,
            CopySourceRange=f"bytes={start}-{stop - 1}",
            **origin,
        )
        return str(response["CopyPartResult"]["ETag"]).strip('"')

    parts = s3.each(copy, enumerate(spans, 1), COPIES_AT_ONCE)
    # Some servers ignore the condition.
    if _etag(s3, origin["CopySource"]) != origin["CopySourceIfMatch"]:
        raise PreconditionFailedError(target)
    return parts


def _etag(s3: S3Objects, source: dict[str, str]) -> str:
    response = s3.send("head_object", f"s3://{source['Bucket']}/{source['Key']}")
    return str(response["ETag"])
