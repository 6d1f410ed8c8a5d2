"""Translate errors of S3 clients and of the file system into chunkmap's errors.

The clients' classes are imported with their first error, since a process that works on local files
loads no client.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BucketMissingError,
    ObjectMissingError,
    ObjectRefusedError,
    PreconditionFailedError,
    StorageError,
    ThrottledError,
    TransientStorageError,
)
from pipeline.uris import parse, redacted

if TYPE_CHECKING:
    import obstore.exceptions as foreign

_MISSING = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
_DENIED = {
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "401",
    "403",
}
"""Amazon returns 400 for credentials that have expired or are for another region."""
_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_THROTTLED = {
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_THROTTLED_STATUSES = (429, 503)
"""HTTP statuses of an overloaded service; responses to HEAD have no code."""
_TRANSIENT = {"InternalError", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted"}
_REFUSED = {"400", "405", "411", "413", "414", "EntityTooLarge", "KeyTooLongError"}
"""Errors of a request that is permanently wrong for its object."""
_REFUSED_FILES = {
    errno.EEXIST,
    errno.EINVAL,
    errno.EILSEQ,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EXDEV,
}
"""Errors of a path, in contrast to those of a full or failing disk."""
_RIGHTS = {
    "list": "s3:ListBucket",
    "list uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "get": "s3:GetObject",
    "get_object": "s3:GetObject",
    "head": "s3:GetObject",
    "head_object": "s3:GetObject",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "put": "s3:PutObject",
    "put_object": "s3:PutObject",
    "copy": "s3:PutObject",
    "copy_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "upload_part_copy": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
}
"""Permissions that actions need, as policies spell them."""
_VERBS = {"Get": "read", "List": "list", "Delete": "delete", "Abort": "delete"}
"""What a permission allows, in a word; all others allow to write."""
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")


def from_code(code: str, status: int, action: str, uri: str, detail: str) -> StorageError:
    """Return the error for an S3 error code and HTTP status."""
    message = f"{action} {uri}: {code or status} {detail}".strip()
    names = {code, str(status)}
    if code in _THROTTLED or (status in _THROTTLED_STATUSES and code not in _TRANSIENT):
        return _with_status(ThrottledError(message), status)
    if code in _TRANSIENT:
        return _with_status(TransientStorageError(message), status)
    if names & _LOST_RACE:
        return PreconditionFailedError(uri)
    if status == 501 or code == "NotImplemented":
        return StorageError(
            message, hint="this S3 service lacks an operation that chunkmap needs; use another"
        )
    if status >= 500 or status == 408:
        return _with_status(TransientStorageError(message), status)
    if code == "NoSuchBucket":
        return BucketMissingError(parse(uri).bucket)
    if names & _MISSING:
        return ObjectMissingError(uri)
    if names & _DENIED:
        return AccessDeniedError(
            _RIGHTS.get(action, action),
            uri,
            hint=f"the server returned {code or status}: check the credentials (AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID) and their permissions",
        )
    if names & _REFUSED:
        return ObjectRefusedError(message)
    return StorageError(message)


def _with_status(error: TransientStorageError, status: int) -> TransientStorageError:
    error.status = status
    return error


def _from_text(error: Exception, action: str, uri: str) -> StorageError:
    """Translate obstore's generic errors, which have status and S3 code only in their text."""
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text)
    if status is None:
        # "Generic S3 error: Error performing list request: … - what went wrong"
        return TransientStorageError(f"{action} {uri}: {text.splitlines()[0].rpartition(' - ')[2]}")
    return from_code(code.group(1) if code else "", int(status.group(1)), action, uri, "")


def _unspellable(error: Exception, action: str, uri: str) -> ObjectRefusedError:
    reason = str(error).splitlines()[0]
    return ObjectRefusedError(f"{action} {redacted(uri)!r}: the key cannot be sent: {reason}")


def status_of(error: Exception) -> str:
    """Return the HTTP status of a client's error; `none` if there was no response."""
    import botocore.exceptions
    import obstore.exceptions as foreign

    match error:
        case foreign.AlreadyExistsError() | foreign.PreconditionError():
            return "412"
        case foreign.PermissionDeniedError():
            return "403"
        case foreign.UnauthenticatedError():
            return "401"
        case FileNotFoundError():
            return "404"
        case foreign.BaseError():
            match = _STATUS.search(str(error))
            return match.group(1) if match else "none"
        case botocore.exceptions.ClientError():
            return str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "none"))
    return "none"


def translate(error: Exception, action: str, uri: str) -> Exception:
    """Return chunkmap's error for a client's error; unknown errors are returned unchanged."""
    if isinstance(error, StorageError):
        return error
    of_client = None if uri.startswith("file:") else _from_client(error, action, uri)
    if of_client is not None:
        return of_client
    match error:
        case FileNotFoundError():
            if "<Code>NoSuchBucket</Code>" in str(error):
                return BucketMissingError(parse(uri).bucket)
            return ObjectMissingError(uri)
        case PermissionError() if uri.startswith("file:"):
            right = _RIGHTS.get(action, action).removeprefix("s3:")
            verb = next((verb for part, verb in _VERBS.items() if part in right), "write")
            hint = "check the permissions of the file and its folders"
            return AccessDeniedError(verb, uri, hint=hint)
        case PermissionError():
            return from_code("AccessDenied", 403, action, uri, "")
        case TimeoutError() | ConnectionError():
            return TransientStorageError(f"{action} {uri}: {error}")
        case OSError():
            kind = ObjectRefusedError if error.errno in _REFUSED_FILES else StorageError
            return kind(f"{action} {uri}: {error.strerror or error}")
        case ValueError():
            # obstore raises it for a key that it cannot parse, and Python for one not in UTF-8.
            return _unspellable(error, action, uri)
    if type(error).__module__.startswith("aiohttp."):
        # botocore does not wrap the error of a body that ends early.
        return TransientStorageError(f"{action} {uri}: {error}")
    return error


def _from_client(error: Exception, action: str, uri: str) -> StorageError | None:
    """Translate an error of a class of obstore or botocore; None for others."""
    import botocore.exceptions
    import obstore.exceptions as foreign

    match error:
        case foreign.BaseError():
            return _from_obstore(error, action, uri)
        case botocore.exceptions.ClientError():
            details = error.response.get("Error", {})
            meta = error.response.get("ResponseMetadata", {})
            status = int(meta.get("HTTPStatusCode", 0))
            text = details.get("Message") or ""
            return from_code(details.get("Code", ""), status, action, uri, text)
        case botocore.exceptions.NoCredentialsError():
            return from_code("AccessDenied", 403, action, uri, "")
        case botocore.exceptions.ParamValidationError():
            return ObjectRefusedError(f"{action} {redacted(uri)!r}: {error}")
        case botocore.exceptions.BotoCoreError():
            return TransientStorageError(f"{action} {uri}: {error}")
    return None


def _from_obstore(error: foreign.BaseError, action: str, uri: str) -> StorageError:
    import obstore.exceptions as foreign

    match error:
        case foreign.AlreadyExistsError():
            return AlreadyExistsError(uri)
        case foreign.PreconditionError():
            return PreconditionFailedError(uri)
        case foreign.PermissionDeniedError() | foreign.UnauthenticatedError():
            return from_code("AccessDenied", 403, action, uri, "")
        case foreign.InvalidPathError():
            return _unspellable(error, action, uri)
        case foreign.NotSupportedError():
            return StorageError(f"{action} {uri}: {error}")
    return _from_text(error, action, uri)


@contextmanager
def translating(action: str, uri: str) -> Iterator[None]:
    """Translate errors of the block."""
    try:
        yield
    except Exception as error:
        translation = translate(error, action, uri)
        if translation is error:
            raise
        raise translation from error
