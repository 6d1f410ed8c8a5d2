"""Starts one S3 server as a child of this process, waits until it answers, and stops just it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from pipeline.cluster.local import services
from pipeline.cluster.local.credentials import s3_settings
from pipeline.cluster.local.processes import HOST, free_ports
from pipeline.config.sections import S3Settings
from pipeline.storage.s3_backend import COPIED_BYTES, S3Backend
from pipeline.storage.s3_connection import Access

BUCKET = "bucket"
READER = ("READER0123456789", "only-reads-and-lists")
"""Credentials that SeaweedFS lets read and list, and nothing else."""
START_SECONDS = 60.0
TRIES = 3
_RUNNING: list[subprocess.Popen[bytes]] = []
"""Python warns of a process that runs when its object is collected."""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    endpoint: str
    key_id: str
    secret: str
    pid: int = 0
    bucket: str = BUCKET

    @property
    def access(self) -> Access:
        return Access(self.endpoint, key_id=self.key_id, secret=self.secret)

    @property
    def reader(self) -> Access:
        """Access that may read and list only (on servers that know rights)."""
        return Access(self.endpoint, key_id=READER[0], secret=READER[1])

    def settings(self) -> S3Settings:
        return S3Settings.model_validate(
            {
                "endpoint_url": self.endpoint,
                "region": "us-east-1",
                "access_key_id": self.key_id,
                "secret_access_key": self.secret,
            }
        )

    def client(self) -> Any:
        """A raw client, for what no storage of ours would do."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            config=botocore.config.Config(
                retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20
            ),
        )


@cache
def backend_of(access: Access, copied_bytes: int = COPIED_BYTES) -> S3Backend:
    """Return this process's client for an access: to create one takes a quarter of a second."""
    return S3Backend(access, copied_bytes=copied_bytes)


@contextmanager
def external(endpoint: str, environ: Mapping[str, str]) -> Iterator[Server]:
    """A service that somebody else runs, with a bucket of ours that is gone at the end.

    Args:
        endpoint: URL.
        environ: Has AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """
    bucket = f"chunkmap-contract-{uuid.uuid4().hex[:12]}"
    keys = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
    server = Server("external", endpoint, *keys, bucket=bucket)
    client = server.client()
    client.create_bucket(Bucket=bucket)
    try:
        yield server
    finally:
        _empty(client, bucket)
        client.delete_bucket(Bucket=bucket)
        client.close()


def _empty(client: Any, bucket: str) -> None:
    while uploads := client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
        for upload in uploads:
            client.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
    while objects := client.list_objects_v2(Bucket=bucket).get("Contents"):
        keys = [{"Key": info["Key"]} for info in objects]
        client.delete_objects(Bucket=bucket, Delete={"Objects": keys})


@contextmanager
def seaweedfs(folder: Path, identities: str | None = None) -> Iterator[Server]:
    """Run a SeaweedFS whose first identity may do everything, until the block ends.

    Args:
        folder: Of its files.
        identities: Its configuration, default one owner and `READER`.
    """
    server, process = _start(folder, "seaweedfs", partial(_seaweedfs, identities))
    try:
        yield server
    finally:
        _end(process)


def start(folder: Path, name: str) -> Server:
    """Start a server that runs on when this process ends; see tests/servers/sharing.py.

    Args:
        folder: Of its files.
        name: `moto` (checks no signatures, loses its state; quick, and right for unit tests),
            `seaweedfs` (as the embedded stack starts it: real signatures and rights) or `ministack`
            (clean in every race, byte-order listings, any key; checks no signatures).
    """
    prepare = {"moto": _moto, "seaweedfs": partial(_seaweedfs, None), "ministack": _ministack}
    server, process = _start(folder, name, prepare[name])
    _RUNNING.append(process)
    return server


@dataclass(frozen=True)
class _Start:
    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    key_id: str = "test"
    secret: str = "test"


def _script(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _moto(folder: Path) -> _Start:
    (port,) = free_ports(1)
    # Werkzeug warns on its log that it is no production server; the log is a file.
    return _Start([_script("moto_server"), "-H", HOST, "-p", str(port)], os.environ, port)


def _ministack(folder: Path) -> _Start:
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "GATEWAY_PORT": str(port),
        "BIND_HOST": HOST,
        "MINISTACK_HOST": HOST,
        "SERVICES": "s3",
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(folder),
        "DOCKER_HOST": f"unix://{folder}/no-docker.sock",
    }
    return _Start([sys.executable, "-m", "ministack"], environment, port)


def _seaweedfs(identities: str | None, folder: Path) -> _Start:
    ports = free_ports(services.S3_PORTS)
    if identities is not None:
        (folder / "s3.json").write_text(identities)
    owner = s3_settings(folder, ports[0])
    config = folder / "s3.json"
    said = json.loads(config.read_text())
    if identities is None and len(said["identities"]) == 1:
        credentials = [{"accessKey": READER[0], "secretKey": READER[1]}]
        reader = {"name": "reader", "credentials": credentials, "actions": ["Read", "List"]}
        config.write_text(json.dumps({"identities": [*said["identities"], reader]}))
    launch = services.s3(folder, ports)
    return _Start(
        launch.command,
        launch.environment,
        ports[0],
        owner["access_key_id"],
        owner["secret_access_key"],
    )


def _start(folder: Path, name: str, prepare: Any) -> tuple[Server, subprocess.Popen[bytes]]:
    """Start a server, with other ports if these were taken between the look and the start."""
    for again in range(TRIES):
        own = folder / str(again)
        own.mkdir(parents=True)
        start = prepare(own)
        with (own / "server.log").open("wb") as log:
            process = subprocess.Popen(
                start.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=own,
                env=dict(start.environment),
                start_new_session=True,
            )
        endpoint = f"http://{HOST}:{start.port}"
        server = Server(name, endpoint, start.key_id, start.secret, process.pid)
        if _has_started(server, process):
            return server, process
        _end(process)
    raise RuntimeError(f"{name} did not start: {(own / 'server.log').read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # It has nothing to keep, and could take seconds to end.
    process.wait()


def _has_started(server: Server, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server has made our bucket; False when it ended instead."""
    client = server.client()
    deadline = time.monotonic() + START_SECONDS
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                client.delete_object(Bucket=BUCKET, Key="ready")
                return True
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        return False
    finally:
        client.close()
