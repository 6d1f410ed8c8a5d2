"""Define the sections of the settings, with defaults and meanings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from pipeline.config.job_part import VariableName
from pipeline.config.units import Seconds, Size, SizeOrNone


def _refuse_secrets(value: str) -> None:
    """Refuse user names, passwords and queries: addresses end up in logs and reports."""
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
    """Address of its API, such as http://127.0.0.1:4200/api. Also from PREFECT_API_URL."""
    auth_string: SecretStr | None = None
    """Credentials of the server: a name, a colon and a password. From PREFECT_API_AUTH_STRING, or
    the embedded stack."""
    connect_timeout: Seconds = 10.0
    """Seconds to wait for its first response; with earlier steps at most 15 s."""

    def environment(self) -> dict[str, str]:
        """Return variables that make another process use the same server; they hold a secret."""
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in (
                ("PREFECT_API_URL", self.api_url),
                ("PREFECT_API_AUTH_STRING", self.auth_string),
            )
            if value
        }


class LineageSettings(_Section):
    """OpenLineage events about runs, backfills, ingests and loads. Needs the extra `lineage`."""

    url: HttpAddress | None = None
    """Address of their receiver, such as http://marquez:5000. Default: none are sent."""
    endpoint: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~/-]+$")] = "api/v1/lineage"
    """Path below the address."""
    namespace: Annotated[str, Field(min_length=1)] = "chunkmap"
    """Namespace of the jobs, e.g. one per environment."""
    api_key: SecretStr | None = None
    """Key that the receiver asks for. Set it as CHUNKMAP_LINEAGE__API_KEY."""
    timeout: Seconds = 5.0
    """Seconds to wait for an answer."""


class TraceSettings(_Section):
    """OpenTelemetry traces of runs and backfills. Needs the extra `traces`, also on workers."""

    endpoint: HttpAddress | None = None
    """Address of a collector that takes OTLP over HTTP, such as http://collector:4318. Default:
    there are no traces. Headers that it asks for are in OTEL_EXPORTER_OTLP_HEADERS.
    From OTEL_EXPORTER_OTLP_ENDPOINT."""


class TlsSettings(_Section):
    """Certificates; if set, all Dask connections are encrypted and authenticate both sides."""

    ca: Path | None = None
    """Certificate of the authority that signs all others, such as certs/ca.pem.
    `chunkmap tls init` creates them."""
    cert: Path | None = None
    """Certificate of this process: certs/client.pem for commands and drivers."""
    key: Path | None = None
    """Private key of this process: certs/client-key.pem."""

    @model_validator(mode="after")
    def _all_or_none(self) -> TlsSettings:
        paths = self.paths()
        if paths and len(paths) < 3:
            missing = ", ".join(name for name in ("ca", "cert", "key") if name not in paths)
            raise ValueError(f"set ca, cert and key, or none of them: {missing} is missing")
        return self

    def paths(self) -> dict[str, str]:
        """Return the paths that are set, for another process."""
        return {name: str(path) for name, path in self if path is not None}


class AdaptSettings(_Section):
    """Adaptive scaling of a cluster, if its class supports it."""

    minimum: NonNegativeInt = 0
    """Minimum number of workers."""
    maximum: PositiveInt | None = None
    """Maximum number of workers. Default: the cluster keeps its size."""


class DaskSettings(_Section):
    """The Dask cluster: a running scheduler, a cluster class, or else a local cluster."""

    scheduler: Annotated[str, AfterValidator(_scheduler_address)] | None = None
    """Address of a running scheduler, such as tcp://10.0.0.5:8786."""
    workers: PositiveInt | None = None
    """Worker processes of a local cluster. Default: one per core."""
    threads_per_worker: PositiveInt | None = None
    """Chunks that one worker maps at a time; Polars uses more threads inside. Default: one in a
    local cluster, one per core of a container."""
    memory_per_worker: Size | None = None
    """Memory limit of a worker, in bytes. Default: an equal share of the machine's memory, or the
    container's limit."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Resources that workers offer to jobs that ask for them, such as `{GPU: 1}`."""
    connect_timeout: Seconds = 10.0
    """Seconds to wait for the scheduler's first response."""
    cluster_class: str | None = None
    """Class that starts a cluster, such as dask_kubernetes.operator:KubeCluster."""
    cluster_kwargs: dict[str, Any] = Field(default={}, repr=False)
    """Keyword arguments of `cluster_class`."""
    adapt: AdaptSettings = AdaptSettings()
    """Adaptive scaling of a cluster that is started for the run."""
    tls: TlsSettings = TlsSettings()
    """Certificates of all connections."""
    stop_seconds: Annotated[Seconds, Field(gt=0)] = 25.0
    """Seconds that a stopping worker has to finish its current chunks and hand back the rest. Set
    it below the grace period of the platform: 10 s with Docker, 30 s with Kubernetes."""
    lifetime: Seconds | None = None
    """Seconds after which a worker retires and a new one replaces it. Default: never."""

    _security: Any = PrivateAttr(default=None)

    @property
    def security(self) -> Any:
        """TLS configuration of a client that a program has, which counts instead of `tls`."""
        return self._security

    def with_client(self, scheduler: str | None, security: Any) -> Self:
        """Return these settings for the cluster of a client that a program has.

        Args:
            scheduler: Address of its scheduler; None for no cluster.
            security: TLS configuration of the client (`distributed.Security`); None without TLS.
        """
        other = {"cluster_class": None, "adapt": AdaptSettings(), "tls": TlsSettings()}
        copy = self.model_copy(update={"scheduler": scheduler, **other})
        copy._security = security
        return copy

    @model_validator(mode="after")
    def _one_cluster(self) -> DaskSettings:
        if self.scheduler and self.cluster_class:
            raise ValueError("set `scheduler` or `cluster_class`, not both")
        if self.scheduler and self.adapt.maximum:
            raise ValueError(
                "`adapt` needs a cluster that is started for the run, but `scheduler` names a "
                "running one; remove one of the two"
            )
        if self.scheduler and self.tls.ca and not self.scheduler.startswith("tls://"):
            raise ValueError(
                f"`tls` is set, so `scheduler` must begin with tls://, found {self.scheduler}"
            )
        return self


EXAMPLES = "pipeline.examples"
"""Package of the example transforms, which are a part of chunkmap and therefore always allowed."""


class TransformSettings(_Section):
    """Code that may be loaded as a transform."""

    allow: tuple[str, ...] = ("examples",)
    """Packages and modules that may define transforms, checked before anything is imported.
    Importing a module also runs its parent packages, which therefore count as part of it."""
    path: tuple[str, ...] = (".",)
    """Folders that are searched for these modules before the installed packages."""
    allow_by_value: bool | None = None
    """Whether programs and notebooks may send functions to workers by value: lambdas, closures,
    functions outside the allowed modules. All who may submit runs can then run any code on the
    workers. Default: only to worker processes of the same machine (`--local`)."""

    _functions: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def functions(self) -> Mapping[str, Any]:
        """Functions that a program sends by value (`ValueFunction`), by their names in the job."""
        return self._functions

    def with_functions(self, functions: Mapping[str, Any]) -> Self:
        """Return these settings with functions that are sent by value."""
        copy = self.model_copy()
        copy._functions = dict(functions)
        return copy

    @property
    def users_modules(self) -> tuple[str, ...]:
        """Return the modules whose frames are the user's in a traceback."""
        sent = (name for value in self._functions.values() for name in value.modules)
        return (*self.allowed, *sorted(set(sent)))

    @property
    def allowed(self) -> tuple[str, ...]:
        """Return `allow`, and the package of the examples."""
        return (*self.allow, EXAMPLES)


class BatchSettings(_Section):
    """How chunks are grouped into Prefect task runs."""

    seconds: Annotated[Seconds, Field(gt=0)] = 5.0
    """Target duration of a batch in seconds. A batch has at least eight chunks; with many worker
    threads batches get longer, to limit the load on driver and Prefect (about 80 s at 1,000
    threads)."""
    max_chunks: PositiveInt = 1000
    """Maximum number of chunks in a batch."""
    in_flight_per_thread: PositiveInt = 2
    """Batches submitted ahead per worker thread."""
    flush_seconds: Annotated[Seconds, Field(gt=0)] = 2.0
    """Maximum seconds between two writes of a worker's completions, while chunks finish; in a long
    batch, as it is cut for many workers, until an eighth of it is done, but at most ten times as
    long."""
    flush_chunks: PositiveInt = 500
    """Maximum number of completed chunks before a worker stores its completions."""
    concurrency_limit: str | None = None
    """Name of a global concurrency limit in Prefect, which several clusters may share to limit the
    load on one S3. Each running batch holds one slot. Create and change it in the Prefect UI."""
    straggler_factor: Annotated[float, Field(ge=1)] = 6.0
    """Multiple of `seconds` after which a batch is a straggler and is also mapped elsewhere."""
    straggler_seconds: Annotated[Seconds, Field(gt=0)] = 60.0
    """Minimum seconds before a batch is a straggler."""


class PlannerSettings(_Section):
    """How the input is listed and its footers are read."""

    footer_concurrency: PositiveInt = 128
    """Number of footers read at a time."""
    footer_limit: Size = 64 * 2**20
    """Maximum size of a footer, in bytes."""
    map_threshold: PositiveInt = 20_000
    """Number of objects from which on the cluster reads the footers."""


class ReadingSettings(_Section):
    """How workers read chunks."""

    prefetch: bool = True
    """Read the next chunk's bytes while the current chunk is transformed, and those of up to 16
    chunks while S3 is slow."""


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PriceSettings(_Section):
    """Prices by which reports compute the cost of a run; 0 leaves a use out."""

    currency: str = "USD"
    """Currency of all prices, as it is to be shown."""
    per_1000_reads: Price = 0.0
    """Price of 1,000 GET and HEAD requests to S3, e.g. 0.0004."""
    per_1000_writes: Price = 0.0
    """Price of 1,000 PUT, COPY, POST and LIST requests to S3, e.g. 0.005."""
    per_worker_hour: Price = 0.0
    """Price of a worker for an hour, idle or not."""


class LogSettings(_Section):
    """Log lines that drivers and the cluster's processes write to standard error."""

    format: Literal["text", "json"] = "text"
    """Format of log lines. `json`: one object per line, with the ids of backfill, run, batch and
    chunk."""
    level: Literal["debug", "info", "warning"] = "info"
    """Minimum level of log lines. Workers that a run starts for itself log warnings only."""


class BucketSettings(_Section):
    """Access to a bucket, as far as it differs from `s3`.

    The key is the bucket's name, or a glob such as `archive-*`; a name wins, then the longest glob.
    Unset values are those of `s3`. The section names where credentials are and never holds them:
    each process reads its own.
    """

    endpoint_url: HttpAddress | None = None
    """Address of the service that has the bucket. For a bucket of Amazon's, next to an
    `s3.endpoint_url` of another service: https://s3.REGION.amazonaws.com."""
    region: str | None = None
    """Region of the bucket."""
    profile: str | None = None
    """Profile of ~/.aws/config and ~/.aws/credentials that has its credentials."""
    env_prefix: VariableName | None = None
    """Prefix of the variables that hold its credentials, e.g. `ARCHIVE_` for
    ARCHIVE_AWS_ACCESS_KEY_ID, ARCHIVE_AWS_SECRET_ACCESS_KEY and ARCHIVE_AWS_SESSION_TOKEN. Workers
    need them too."""
    anonymous: bool = False
    """Send unsigned requests, which public buckets allow."""
    requester_pays: bool = False
    """Agree to pay for requests and transfers of a requester-pays bucket."""
    sse_kms_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")] | None = None
    """Id, ARN or alias of the KMS key that encrypts written objects (SSE-KMS)."""
    expected_owner: Annotated[str, Field(pattern=r"^[0-9]{12}$")] | None = None
    """Account that must own the bucket (12 digits, quoted in YAML); otherwise requests fail."""
    addressing: Literal["path", "virtual"] | None = None
    """As `s3.addressing`."""
    conditional_writes: Literal["required", "single-writer"] | None = None
    """As `s3.conditional_writes`."""

    @model_validator(mode="after")
    def _one_identity(self) -> BucketSettings:
        names = [name for name in ("profile", "env_prefix", "anonymous") if getattr(self, name)]
        if len(names) > 1:
            raise ValueError(f"set `{names[0]}` or `{names[1]}`, not both")
        return self


class S3Settings(_Section):
    """Access to S3; unset values are found as in every AWS tool."""

    endpoint_url: HttpAddress | None = None
    """Address of an S3 service other than Amazon's. Also from AWS_ENDPOINT_URL_S3 and
    AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the service. Also from AWS_REGION and AWS_DEFAULT_REGION."""
    profile: str | None = None
    """Profile of ~/.aws/config and ~/.aws/credentials. Also from AWS_PROFILE."""
    access_key_id: SecretStr | None = None
    """Access key. From AWS_ACCESS_KEY_ID, or the embedded stack."""
    secret_access_key: SecretStr | None = None
    """Secret key. From AWS_SECRET_ACCESS_KEY, or the embedded stack."""
    session_token: SecretStr | None = None
    """Session token. From AWS_SESSION_TOKEN."""
    max_requests: PositiveInt = 192
    """Maximum number of concurrent requests of one process, such as a worker. While S3 throttles
    (503 SlowDown, 429), a process makes fewer."""
    copied_bytes: SizeOrNone = 4 << 20
    """Maximum size of an output that is staged as an object in the state's prefix and copied by the
    server at publish, which takes the fewest requests. Larger outputs are multipart uploads that
    are completed at publish. 0: all outputs are multipart uploads."""
    addressing: Literal["path", "virtual"] | None = None
    """Place of the bucket's name: `path` is https://host/bucket/key, `virtual` is
    https://bucket.host/key, which some services require. Default: path with an endpoint_url, else
    Amazon's preference."""
    conditional_writes: Literal["required", "single-writer"] = "required"
    """`required`: before the first run to an output, check that the service honours If-None-Match
    and If-Match, which keep two drivers from publishing over each other. `single-writer`: for
    services that do not; make sure that at most one driver or command works on an output at a
    time."""
    buckets: dict[Annotated[str, Field(pattern=_BUCKET)], BucketSettings] = {}
    """Buckets with other access: on another service, with other credentials, …"""

    @property
    def conditional(self) -> bool:
        """Whether writes use the service's conditions (If-Match, If-None-Match)."""
        return self.conditional_writes == "required"

    def of_bucket(self, name: str) -> BucketSettings:
        """Return the access to a bucket; unset values are those of this section."""
        key = self.bucket_key(name)
        bucket = BucketSettings() if key is None else self.buckets[key]
        shared = ("endpoint_url", "region", "addressing", "conditional_writes")
        return bucket.model_copy(
            update={key: getattr(self, key) for key in shared if getattr(bucket, key) is None}
        )

    def bucket_key(self, name: str) -> str | None:
        """Return the key in `buckets` that matches a bucket: its name, else the longest glob."""
        if name in self.buckets:
            return name
        globs = [key for key in self.buckets if fnmatchcase(name, key)]
        return max(globs, key=len, default=None)

    def _buckets_text(self) -> str:
        return (
            json.dumps(
                {
                    key: bucket.model_dump(exclude_defaults=True)
                    for key, bucket in self.buckets.items()
                }
            )
            if self.buckets
            else ""
        )

    def environment(self) -> dict[str, str]:
        """Return variables that make another process use the same S3; they hold secrets.

        The variables of a bucket's `env_prefix` are not included: each process reads its own.
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
