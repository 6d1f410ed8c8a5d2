"""Refuse what is cheap to refuse, before anything is started for a job."""

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
def reaching(settings: Settings) -> Iterator[None]:
    """Around the first words with S3: when nobody answers, it is the address that is wrong.

    Raises:
        EngineUnavailableError: S3 does not answer, however often it was tried.
    """
    try:
        yield
    except TransientStorageError as error:
        where = settings.s3.endpoint_url or "Amazon's address"
        others = ", or where s3.buckets says" if settings.s3.buckets else ""
        raise EngineUnavailableError(
            f"S3 does not answer at {where} (s3.endpoint_url{others}): {error}",
            hint="is it up, and is the address right? `chunkmap config` says where it comes from",
        ) from error


def preflight(job: Job, settings: Settings, storage: Storage) -> None:
    """Refuse what is cheap to refuse, before anything is started for a job. Writes nothing.

    Raises:
        JobError, TransformNotAllowedError: the transform is not there or may not be used.
        EngineUnavailableError, BucketMissingError, AccessDeniedError: the output's state cannot
            be read.
    """
    load_transform(job.transform, job.params, settings.transforms)
    with reaching(settings):
        TableLog(storage, job.output.uri).head()
