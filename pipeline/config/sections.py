"""The sections of the settings: what there is to set, with defaults and meanings."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    model_validator,
)

from pipeline.config.units import Seconds, Size, SizeOrNone


def _refuse_secrets(value: str) -> None:
    """Addresses end up in logs, reports and process lists."""
    parts = urlsplit(value)
    if "@" in value:
        raise ValueError("an address must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ValueError("an address must not hold a query (what follows `?` or `#`)")


def _http_address(value: str) -> str:
    _refuse_secrets(value)
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address such as http://127.0.0.1:4200")
    return value.rstrip("/")


def _prefect_address(value: str) -> str:
    value = _http_address(value)
    return value if urlsplit(value).path else value + "/api"


def _scheduler_address(value: str) -> str:
    value = value if "://" in value else f"tcp://{value}"
    _refuse_secrets(value)
    if not urlsplit(value).hostname:
        raise ValueError("not an address such as tcp://127.0.0.1:8786")
    return value


HttpAddress = Annotated[str, AfterValidator(_http_address)]
_BUCKET = r"^[A-Za-z0-9._*?\[\]!-]+$"


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class PrefectSettings(_Section):
    """The Prefect server."""

    api_url: Annotated[str, AfterValidator(_prefect_address)] | None = None
    """Its API, such as http://127.0.0.1:4200/api. Also from PREFECT_API_URL."""
    auth_string: SecretStr | None = None
    """What it asks for: a name, a colon and a password. From PREFECT_API_AUTH_STRING, or the
    embedded stack."""
    connect_timeout: Seconds = 10.0
    """How long to wait for its first answer; with what comes before, within 15 s."""

    def environment(self) -> dict[str, str]:
        """The Prefect variables that make another process use the same server. Holds a secret."""
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in (
                ("PREFECT_API_URL", self.api_url),
                ("PREFECT_API_AUTH_STRING", self.auth_string),
            )
            if value
        }


class TlsSettings(_Section):
    """Certificates; given, each of Dask's connections must be encrypted and both sides known."""

    ca: Path | None = None
    """Who signs all of them, such as certs/ca.pem. `chunkmap tls init` makes them."""
    cert: Path | None = None
    """Of this process: certs/client.pem for commands and drivers."""
    key: Path | None = None
    """Its private key: certs/client-key.pem."""

    @model_validator(mode="after")
    def _all_or_none(self) -> TlsSettings:
        given = self.paths()
        if given and len(given) < 3:
            missing = ", ".join(name for name in ("ca", "cert", "key") if name not in given)
            raise ValueError(f"give ca, cert and key, or none of them: {missing} is missing")
        return self

    def paths(self) -> dict[str, str]:
        """What is set, for another process."""
        return {name: str(path) for name, path in self if path is not None}


class AdaptSettings(_Section):
    """A cluster that scales itself with the work there is, where its class can."""

    minimum: NonNegativeInt = 0
    """Fewest workers."""
    maximum: PositiveInt | None = None
    """Most workers; unset, the cluster keeps its size."""


class DaskSettings(_Section):
    """The Dask cluster: a running scheduler, a cluster class, or else a local cluster."""

    scheduler: Annotated[str, AfterValidator(_scheduler_address)] | None = None
    """The address of a running scheduler, such as tcp://10.0.0.5:8786."""
    workers: PositiveInt | None = None
    """Worker processes of a local cluster. Default: one for each core."""
    threads_per_worker: PositiveInt | None = None
    """Chunks that one worker maps at a time; Polars uses further threads inside. Default: one in a
    local cluster, one for each core of a container."""
    memory_per_worker: Size | None = None
    """Limit of a worker's memory, in bytes. Default: an equal share of the machine, or what the
    container has."""
    connect_timeout: Seconds = 10.0
    """How long to wait for the scheduler's first answer."""
    cluster_class: str | None = None
    """A class that makes a cluster, such as dask_kubernetes.operator:KubeCluster."""
    cluster_kwargs: dict[str, Any] = Field(default={}, repr=False)
    """Its keyword arguments."""
    adapt: AdaptSettings = AdaptSettings()
    """How far a cluster that is started for the run scales itself."""
    tls: TlsSettings = TlsSettings()
    """Certificates of all connections."""
    stop_seconds: Annotated[Seconds, Field(gt=0)] = 25.0
    """How long a worker that is told to stop may take to end the chunks at hand and hand back the
    rest. Less than the grace period of whoever stops it: 10 s with Docker, 30 s with Kubernetes."""
    lifetime: Seconds | None = None
    """A worker retires after this long, and a fresh one takes its place. Default: never."""

    @model_validator(mode="after")
    def _one_cluster(self) -> DaskSettings:
        if self.scheduler and self.cluster_class:
            raise ValueError("give `scheduler` or `cluster_class`, not both")
        if self.scheduler and self.adapt.maximum:
            raise ValueError(
                "`adapt` is for a cluster that is started for the run, and `scheduler`"
                " names one that runs already"
            )
        if self.scheduler and self.tls.ca and not self.scheduler.startswith("tls://"):
            raise ValueError(f"`tls` is set, so `scheduler` begins with tls://: {self.scheduler}")
        return self


class TransformSettings(_Section):
    """Which code may be loaded as a transform."""

    allow: tuple[str, ...] = ("examples",)
    """Packages and modules that transforms may be defined in, checked before anything is imported.
    Importing one also runs its parent packages, which therefore count as part of it."""
    path: tuple[str, ...] = (".",)
    """Folders that are searched for them before the installed packages."""


class BatchSettings(_Section):
    """How chunks are grouped into Prefect task runs."""

    seconds: Annotated[Seconds, Field(gt=0)] = 5.0
    """How long a batch should run. It holds eight chunks at least, and lasts longer when threads
    are so many that driver and Prefect would be asked too often: 80 s with a thousand."""
    max_chunks: PositiveInt = 1000
    """Most chunks in a batch."""
    in_flight_per_thread: PositiveInt = 2
    """Batches submitted ahead for each worker thread."""
    flush_seconds: Annotated[Seconds, Field(gt=0)] = 2.0
    """A worker stores its completions at least this often, while chunks finish."""
    flush_chunks: PositiveInt = 200
    """A worker stores its completions at least after this many chunks."""
    concurrency_limit: str | None = None
    """Name of a global concurrency limit of Prefect, of which each batch holds one slot while it
    runs: what several clusters may do to one S3 at a time. Prefect's pages make and change it."""
    straggler_factor: Annotated[float, Field(ge=1)] = 6.0
    """A batch that takes this many times `seconds` is mapped again elsewhere."""
    straggler_seconds: Annotated[Seconds, Field(gt=0)] = 60.0
    """But not before this long."""


class PlannerSettings(_Section):
    """How the input is listed and its footers are read."""

    footer_concurrency: PositiveInt = 128
    """Footers read at a time."""
    footer_limit: Size = 64 * 2**20
    """Largest footer that is read, in bytes."""
    map_threshold: PositiveInt = 20_000
    """From this many objects on, footers are read by the cluster."""


class ReadingSettings(_Section):
    """How workers read chunks."""

    prefetch: bool = True
    """Read the next chunk's bytes while the present one is transformed."""


class LogSettings(_Section):
    """What the cluster's processes, drivers among them, write to their standard error."""

    format: Literal["text", "json"] = "text"
    """`json`: one object a line, with the ids of backfill, run, batch and chunk."""
    level: Literal["debug", "info", "warning"] = "info"
    """The least that is worth a line. Workers that a run starts for itself begin at warnings."""


class BucketSettings(_Section):
    """How a bucket is reached, where that differs from `s3`.

    Its key is the bucket's name, or a glob such as `archive-*`; a name wins, then the longest glob.
    What is unset is as `s3` says. It names where credentials are, and never holds them: each
    process reads its own.
    """

    endpoint_url: HttpAddress | None = None
    """The service that has the bucket. One of Amazon's, where `s3.endpoint_url` is another, is
    https://s3.REGION.amazonaws.com."""
    region: str | None = None
    """The bucket's region."""
    profile: str | None = None
    """The profile of ~/.aws/config and ~/.aws/credentials that has its credentials."""
    env_prefix: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Prefix of the variables that hold its credentials: with `ARCHIVE_` they are
    ARCHIVE_AWS_ACCESS_KEY_ID, ARCHIVE_AWS_SECRET_ACCESS_KEY and ARCHIVE_AWS_SESSION_TOKEN. Workers
    need them too."""
    anonymous: bool = False
    """Send requests without a signature, as public buckets allow."""
    requester_pays: bool = False
    """Agree to pay for requests and transfers, which such buckets ask of their readers."""
    sse_kms_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")] | None = None
    """Id, ARN or alias of the KMS key that encrypts what is written (SSE-KMS)."""
    expected_owner: Annotated[str, Field(pattern=r"^[0-9]{12}$")] | None = None
    """Account that must own the bucket (12 digits, quoted in YAML); any other's is refused."""
    addressing: Literal["path", "virtual"] | None = None
    """As `s3.addressing`."""
    conditional_writes: Literal["required", "single-writer"] | None = None
    """As `s3.conditional_writes`."""

    @model_validator(mode="after")
    def _one_identity(self) -> BucketSettings:
        given = [name for name in ("profile", "env_prefix", "anonymous") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give `{given[0]}` or `{given[1]}`, not both")
        return self


class S3Settings(_Section):
    """Where S3 is; unset values are found as every AWS tool finds them."""

    endpoint_url: HttpAddress | None = None
    """Another S3 than Amazon's. Also from AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL."""
    region: str | None = None
    """Also from AWS_REGION and AWS_DEFAULT_REGION."""
    profile: str | None = None
    """A profile of ~/.aws/config and ~/.aws/credentials. Also from AWS_PROFILE."""
    access_key_id: SecretStr | None = None
    """From AWS_ACCESS_KEY_ID, or the embedded stack."""
    secret_access_key: SecretStr | None = None
    """From AWS_SECRET_ACCESS_KEY, or the embedded stack."""
    session_token: SecretStr | None = None
    """From AWS_SESSION_TOKEN."""
    max_requests: PositiveInt = 128
    """Most requests that one process, such as a worker, has under way at a time."""
    copied_bytes: SizeOrNone = 4 << 20
    """Outputs up to this size are staged as objects of the state's prefix and copied on the
    server's side when they are published: the fewest requests. Larger ones are multipart uploads
    that are completed then. 0: all of them."""
    addressing: Literal["path", "virtual"] | None = None
    """Where the bucket's name goes: `path` is https://host/bucket/key, `virtual` is
    https://bucket.host/key, which some services insist on. Default: path with an endpoint_url, and
    what Amazon prefers without one."""
    conditional_writes: Literal["required", "single-writer"] = "required"
    """`required`: before the first run to an output it is tried that the service honours
    If-None-Match and If-Match, which keep two drivers from publishing over each other.
    `single-writer`: for services that do not; you see to it that no two drivers, and nobody else,
    ever work on an output at the same time."""
    buckets: dict[Annotated[str, Field(pattern=_BUCKET)], BucketSettings] = {}
    """Buckets that are reached in another way: on another service, with other credentials, …"""

    @property
    def conditional(self) -> bool:
        """Whether writes are to depend on the service's conditions."""
        return self.conditional_writes == "required"

    def of_bucket(self, name: str) -> BucketSettings:
        """How a bucket is reached, with what it shares with the others filled in."""
        key = self.bucket_key(name)
        found = BucketSettings() if key is None else self.buckets[key]
        shared = ("endpoint_url", "region", "addressing", "conditional_writes")
        return found.model_copy(
            update={key: getattr(self, key) for key in shared if getattr(found, key) is None}
        )

    def bucket_key(self, name: str) -> str | None:
        """The key in `buckets` that is about a bucket: its name, else the longest glob."""
        if name in self.buckets:
            return name
        globs = [key for key in self.buckets if fnmatchcase(name, key)]
        return max(globs, key=len, default=None)

    def _buckets_text(self) -> str:
        return (
            json.dumps(
                {key: one.model_dump(exclude_defaults=True) for key, one in self.buckets.items()}
            )
            if self.buckets
            else ""
        )

    def environment(self) -> dict[str, str]:
        """The variables that make another process see the same S3. Holds secrets.

        Not those that `env_prefix` of a bucket names: processes get them from where this one did.
        """
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in (
                ("AWS_ENDPOINT_URL_S3", self.endpoint_url),
                ("AWS_REGION", self.region),
                ("AWS_PROFILE", self.profile),
                ("AWS_ACCESS_KEY_ID", self.access_key_id),
                ("AWS_SECRET_ACCESS_KEY", self.secret_access_key),
                ("AWS_SESSION_TOKEN", self.session_token),
                ("CHUNKMAP_S3__ADDRESSING", self.addressing),
                ("CHUNKMAP_S3__CONDITIONAL_WRITES", None if self.conditional else "single-writer"),
                ("CHUNKMAP_S3__BUCKETS", self._buckets_text()),
            )
            if value
        }
