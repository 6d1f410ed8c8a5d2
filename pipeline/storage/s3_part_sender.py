"""Send the parts of uploads without copies of their bytes.

s3fs copies a body several times and hashes it for the signature: 1.9 ms of processor time per MB,
instead of 0.4 ms here, where the bytes go straight from memory to the socket and the signature uses
a digest that is known already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, HeadersDict
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from botocore.parsers import create_parser
from botocore.utils import get_environ_proxies
from typing_extensions import override

from pipeline.storage.s3_client import S3Client
from pipeline.storage.s3_connection import CONNECT_SECONDS, READ_SECONDS
from pipeline.uris import parse

_CONNECTIONS = 64
"""Maximum number of idle connections that are kept."""
_HEADERS = {
    "RequestPayer": "x-amz-request-payer",
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
}
"""Headers of the parameters that parts may have."""


class _KnownDigest(S3SigV4Auth):  # type: ignore[misc]
    """Signs a request whose body's SHA-256 is known."""

    def __init__(self, digest: str, credentials: Any, region: str) -> None:
        super().__init__(credentials, "s3", region)
        self._digest = digest

    @override
    def payload(self, request: Any) -> str:
        return self._digest


class PartSender:
    """Sends parts of uploads, from any thread."""

    def __init__(self, s3: S3Client) -> None:
        self._s3 = s3
        self._session = URLLib3Session(
            verify=s3.access.certificates(),
            proxies=get_environ_proxies(s3.access.endpoint or "https://s3.amazonaws.com"),
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            max_pool_connections=_CONNECTIONS,
        )
        self._credentials = None if s3.access.anonymous else s3.access.credentials()

    def send(
        self, uri: str, upload: str, number: int, body: memoryview, sha256: str | None = None
    ) -> str:
        """Send a part; return its ETag.

        Args:
            uri: Final key of the upload.
            upload: Id of the upload.
            number: Number of the part, from 1.
            body: The part.
            sha256: Its SHA-256 in hexadecimal digits; default: it is computed.

        Raises:
            StorageError: S3 refuses the part, or does not answer.
        """
        part = {"UploadId": upload, "PartNumber": number}
        request = AWSRequest("PUT", self._s3.wait(self._url(uri, part)), self._headers(len(body)))
        if self._credentials is not None:
            digest = sha256 or hashlib.sha256(body).hexdigest()
            credentials = self._credentials.get_frozen_credentials()
            _KnownDigest(digest, credentials, self._s3.access.region).add_auth(request)
        with self._s3.requests.sent("upload_part", uri):
            headers = HeadersDict(request.headers.items())
            response = self._session.send(
                AWSPreparedRequest("PUT", request.url, headers, body, stream_output=False)
            )
            if response.status_code != 200:
                raise _error(response)
        return str(response.headers["ETag"]).strip('"')

    async def _url(self, uri: str, part: Mapping[str, Any]) -> str:
        """Return the URL of a part, as the raw client addresses it."""
        at = parse(uri)
        client = await self._s3.client(at.bucket)
        signed = await client.generate_presigned_url(
            "upload_part", Params={"Bucket": at.bucket, "Key": at.key, **part}
        )
        # Its signature would not cover the body.
        query = {"partNumber": part["PartNumber"], "uploadId": part["UploadId"]}
        address = urlsplit(str(signed))
        return urlunsplit(address._replace(query=urlencode(query, quote_via=quote)))

    def _headers(self, length: int) -> dict[str, str]:
        parameters = self._s3.access.parameters(_HEADERS)
        named = {_HEADERS[name]: value for name, value in parameters.items()}
        return {"Content-Length": str(length), **named}


def _error(response: Any) -> ClientError:
    answer = {
        "status_code": response.status_code,
        "headers": response.headers,
        "body": response.content,
    }
    return ClientError(create_parser("rest-xml").parse(answer, None), "UploadPart")
