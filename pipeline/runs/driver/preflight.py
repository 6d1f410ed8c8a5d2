"""Check what is cheap to check before anything is started for a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    EngineUnavailableError,
    TransientStorageError,
)
from pipeline.runs.transforms.loading import load_transform
from pipeline.storage import Storage
from pipeline.table.log import TableLog


@contextmanager
def explain_unreachable_s3(settings: Settings) -> Iterator[None]:
    """Turn a failure of the first S3 requests into an error that names the configured address.

    Raises:
        EngineUnavailableError: S3 does not answer after all retries.
    """
    try:
        yield
    except TransientStorageError as error:
        where = settings.s3.endpoint_url or "Amazon's address"
        others = ", or at an endpoint in s3.buckets" if settings.s3.buckets else ""
        raise EngineUnavailableError(
            f"S3 does not answer at {where} (s3.endpoint_url{others}): {error}",
            hint="check that it is running and that the address is right; `chunkmap config` shows "
            "where the address is set",
        ) from error


def preflight(job: Job, settings: Settings, storage: Storage) -> None:
    """Check what is cheap to check before anything is started for a job. Writes nothing.

    Raises:
        JobError, TransformNotAllowedError: the transform does not exist or is not allowed.
        EngineUnavailableError, BucketMissingError, AccessDeniedError: the output's state cannot
            be read.
    """
    load_transform(job.transform, job.params, settings.transforms)
    with explain_unreachable_s3(settings):
        TableLog(storage, job.output.uri).head()
