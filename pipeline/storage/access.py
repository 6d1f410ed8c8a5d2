"""How S3 is reached: endpoint, region and credentials, resolved once from the standard places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import botocore.session
from obstore.store import S3Store
from s3fs import S3FileSystem

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from botocore.credentials import Credentials

CONNECT_SECONDS = 5.0
"""Long enough for a busy server, short enough to name a dead address while the user looks on."""
READ_SECONDS = 60.0
"""One range or part; larger transfers are cut into several."""


@dataclass(frozen=True, slots=True)
class Access:
    """One S3 service and who we are there."""

    endpoint: str | None = None
    """URL; None means AWS."""
    region: str = "us-east-1"
    profile: str | None = None
    key_id: str | None = None
    """Access key id; None asks botocore's own chain (variables, profile, instance role)."""
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    addressing: str | None = None
    """`path` or `virtual`; None leaves it to the clients at Amazon, and is `path` elsewhere."""

    def options(self, bucket: str) -> dict[str, Any]:
        """What obstore and Polars need to address a bucket, without credentials."""
        options: dict[str, Any] = {"aws_region": self.region}
        if self.addressing is not None:
            options["aws_virtual_hosted_style_request"] = self.addressing == "virtual"
        if self.endpoint:
            endpoint = self.endpoint
            if self.addressing == "virtual":
                # Both want to be given the bucket's own host then.
                endpoint = endpoint.replace("://", f"://{bucket}.", 1)
            # Under both names: a variable AWS_ENDPOINT_URL_S3 wins over the plain one.
            options |= {"aws_endpoint_url": endpoint, "aws_endpoint_url_s3": endpoint}
            options.setdefault("aws_virtual_hosted_style_request", False)
        return options

    def store(self, bucket: str) -> S3Store:
        """An obstore client of one bucket: listings, ranged reads, small writes.

        Its own retries are off: there is one retry policy, at the door.
        """
        return S3Store(
            bucket,
            config=self.options(bucket),  # type: ignore[arg-type]
            client_options={
                "allow_http": True,
                "connect_timeout": f"{CONNECT_SECONDS}s",
                "timeout": f"{READ_SECONDS}s",
            },
            retry_config={"max_retries": 0},
            credential_provider=_Provider(self._credentials()),
        )

    def filesystem(self) -> S3FileSystem:
        """An s3fs client: multipart uploads, copies, and keys that obstore cannot spell."""
        frozen = self._credentials().get_frozen_credentials() if self.key_id is None else None
        static = self.key_id is not None or self.profile is None
        return S3FileSystem(
            key=self.key_id or (frozen.access_key if frozen and static else None),
            secret=self.secret or (frozen.secret_key if frozen and static else None),
            token=self.token or (frozen.token if frozen and static else None),
            profile=None if static else self.profile,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": self.region},
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": 64,
                "s3": {"addressing_style": self.addressing} if self.addressing else {},
                # Trailing checksums send a body in small pieces: 60 MB/s instead of several 100.
                # The request's signature covers the body already, and we keep a checksum of ours.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _credentials(self) -> Credentials:
        if self.key_id is not None:
            from botocore.credentials import Credentials

            return Credentials(self.key_id, self.secret or "", self.token)
        found = botocore.session.Session(profile=self.profile).get_credentials()
        if found is None:
            raise UsageError(
                "no S3 credentials found",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or start the embedded stack with `chunkmap up`",
            )
        return found


class _Provider:
    """Gives obstore the credentials that botocore holds, refreshed by botocore."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> Any:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": getattr(self._credentials, "_expiry_time", None),
        }
