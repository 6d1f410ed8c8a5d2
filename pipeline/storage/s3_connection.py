"""Create S3 clients; endpoint, region and credentials come from settings and standard places."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import botocore.session
from aiobotocore.session import AioSession
from botocore.exceptions import ProfileNotFound
from obstore.store import S3Store
from s3fs import S3FileSystem

from pipeline.config.sections import S3Settings
from pipeline.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from botocore.credentials import Credentials

CONNECT_SECONDS = 5.0
"""Seconds to wait for a connection: enough for a busy server, and a dead address fails soon."""
OWNER_HEADER = "x-amz-expected-bucket-owner"
READ_SECONDS = 60.0
"""Seconds for the transfer of a range or part; larger transfers are split."""


@dataclass(frozen=True, slots=True)
class Access:
    """Access to an S3 service: address, credentials and options."""

    endpoint: str | None = None
    """URL of the service; None means AWS."""
    region: str = "us-east-1"
    profile: str | None = None
    key_id: str | None = None
    """Access key id; None uses botocore's chain (variables, profile, instance role)."""
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    addressing: str | None = None
    """`path` or `virtual`; None is the clients' default on AWS, and `path` elsewhere."""
    anonymous: bool = False
    """Whether requests are not signed."""
    requester_pays: bool = False
    sse_kms_key: str | None = None
    """KMS key that encrypts written objects."""
    expected_owner: str | None = None
    """Account that must own the bucket; otherwise S3 refuses requests."""

    def options(self, bucket: str) -> dict[str, Any]:
        """Return the options of obstore and Polars for a bucket, without credentials."""
        options: dict[str, Any] = {"aws_region": self.region}
        if self.anonymous:
            options["aws_skip_signature"] = True
        if self.requester_pays:
            options["aws_request_payer"] = True
        if self.sse_kms_key:
            options |= {
                "aws_server_side_encryption": "aws:kms",
                "aws_sse_kms_key_id": self.sse_kms_key,
            }
        if self.addressing is not None:
            options["aws_virtual_hosted_style_request"] = self.addressing == "virtual"
        if self.endpoint:
            endpoint = self.endpoint
            if self.addressing == "virtual":
                # Both expect the host of the bucket in this case.
                endpoint = endpoint.replace("://", f"://{bucket}.", 1)
            # Both names, because a variable AWS_ENDPOINT_URL_S3 would win over the first.
            options |= {"aws_endpoint_url": endpoint, "aws_endpoint_url_s3": endpoint}
            options.setdefault("aws_virtual_hosted_style_request", False)
        return options

    def store(self, bucket: str) -> S3Store:
        """Create an obstore client of a bucket, for listings, ranged reads and small writes.

        Its own retries are off, since `Storage` retries. It cannot list buckets with an expected
        owner, because it does not sign that header in listings; the s3fs client does.
        """
        headers = {OWNER_HEADER: self.expected_owner} if self.expected_owner else {}
        identity: dict[str, Any] = (
            {} if self.anonymous else {"credential_provider": _Provider(self.credentials())}
        )
        return S3Store(
            bucket,
            config=self.options(bucket),  # type: ignore[arg-type]
            client_options={
                "allow_http": True,
                "connect_timeout": f"{CONNECT_SECONDS}s",
                "timeout": f"{READ_SECONDS}s",
                "default_headers": headers,
            },
            retry_config={"max_retries": 0},
            **identity,
        )

    def parameters(self, known: Container[str]) -> dict[str, str]:
        """Return the additional parameters of raw requests, as far as the action knows them."""
        parameters = {
            "RequestPayer": "requester" if self.requester_pays else None,
            "ServerSideEncryption": "aws:kms" if self.sse_kms_key else None,
            "SSEKMSKeyId": self.sse_kms_key,
            "ExpectedBucketOwner": self.expected_owner,
            "ExpectedSourceBucketOwner": self.expected_owner,
        }
        return {name: value for name, value in parameters.items() if value and name in known}

    def filesystem(self) -> S3FileSystem:
        """Create an s3fs client, for multipart uploads, copies and keys that obstore lacks."""
        if not self._names_identity:
            self.credentials()  # Raises errors that name the setting.
        return S3FileSystem(
            session=_session_without_profile() if self._names_identity else None,
            anon=self.anonymous,
            # Keys of botocore's chain are not passed: copies of those of a role expire within
            # hours. The client asks the chain itself, and renews them.
            key=self.key_id,
            secret=self.secret,
            token=self.token,
            profile=None if self.key_id is not None else self.profile,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": self.region},
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": 64,
                "s3": {"addressing_style": self.addressing} if self.addressing else {},
                # Trailing checksums send a body in small pieces: 60 MB/s instead of several 100.
                # The signature covers the body, and chunkmap stores its own checksums.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def certificates(self) -> str | bool:
        """Return the file of authorities that is set for AWS's clients; True: the usual ones."""
        bundle = botocore.session.Session(profile=self.profile).get_config_variable("ca_bundle")
        return bundle or True

    def provide(self) -> tuple[dict[str, str | None], int | None]:
        """Return the credentials, and when they expire, as Polars wants them."""
        credentials = self.credentials()
        frozen = credentials.get_frozen_credentials()
        expires = getattr(credentials, "_expiry_time", None)
        return {
            "aws_access_key_id": frozen.access_key,
            "aws_secret_access_key": frozen.secret_key,
            "aws_session_token": frozen.token,
        }, int(expires.timestamp()) if expires else None

    @property
    def _names_identity(self) -> bool:
        return self.anonymous or self.key_id is not None

    def credentials(self) -> Credentials:
        """Return the credentials, which renew themselves; not for anonymous access."""
        if self.key_id is not None:
            from botocore.credentials import Credentials

            return Credentials(self.key_id, self.secret or "", self.token)
        try:
            credentials = botocore.session.Session(profile=self.profile).get_credentials()
        except ProfileNotFound as error:
            raise SettingsError(
                f"S3: {error} (AWS_PROFILE, or s3.profile)",
                hint="fix or unset it; `chunkmap config` shows where it is set",
            ) from error
        if credentials is None:
            raise UsageError(
                "no S3 credentials found",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or start the embedded stack with `chunkmap up`",
            )
        return credentials


def access_of(s3: S3Settings, bucket: str) -> Access:
    """Return the access to a bucket by the settings.

    Raises:
        SettingsError: A variable with its credentials is not set in this process.
    """
    settings = s3.of_bucket(bucket)
    access = Access(
        endpoint=settings.endpoint_url,
        region=settings.region or "us-east-1",
        addressing=settings.addressing,
        anonymous=settings.anonymous,
        requester_pays=settings.requester_pays,
        sse_kms_key=settings.sse_kms_key,
        expected_owner=settings.expected_owner,
    )
    if settings.anonymous:
        return access
    if settings.env_prefix is not None:
        return _with_variables(access, bucket, settings.env_prefix)
    if settings.profile is not None:
        return replace(access, profile=settings.profile)
    return replace(
        access,
        profile=s3.profile,
        key_id=s3.access_key_id.get_secret_value() if s3.access_key_id else None,
        secret=s3.secret_access_key.get_secret_value() if s3.secret_access_key else None,
        token=s3.session_token.get_secret_value() if s3.session_token else None,
    )


def _with_variables(access: Access, bucket: str, prefix: str) -> Access:
    names = [f"{prefix}{name}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} not set in this process, but bucket {bucket} needs them "
            f"(s3.buckets, env_prefix {prefix})",
            hint="set them for drivers and for workers; the workers of the embedded stack inherit "
            "the variables of `chunkmap up`",
        )
    key_id, secret = (os.environ[name] for name in names)
    token = os.environ.get(f"{prefix}AWS_SESSION_TOKEN") or None
    return replace(access, key_id=key_id, secret=secret, token=token)


def _session_without_profile() -> AioSession:
    """Create a session that does not look at AWS_PROFILE, whose profile need not exist here."""
    return AioSession(session_vars={"profile": (None, None, None, None)})


class _Provider:
    """Provides obstore with botocore's credentials, which botocore refreshes."""

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
