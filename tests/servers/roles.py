"""A SeaweedFS with the cluster's roles, whose rights are those of deploy/policies."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.contracts.source import ROOT
from tests.servers import launching
from tests.servers.launching import Server


@dataclass(frozen=True)
class Roles:
    """One server, as each role sees it."""

    admin: Server
    driver: Server
    worker: Server


@contextmanager
def roles(
    folder: Path, *, buckets: str, inputs: str = "", outputs: str = "", tables: str = ""
) -> Iterator[Roles]:
    """Start one; the names are as in S3_BUCKETS, S3_INPUTS, S3_OUTPUTS and S3_TABLES."""
    made, given = folder / "secrets", folder / "given"
    given.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SECRETS": str(made),
        "GIVEN": str(given),
        "CHUNKMAP_UID": str(os.getuid()),
        "SERVERS_GID": str(os.getgid()),
        "S3_BUCKETS": buckets,
        "S3_INPUTS": inputs,
        "S3_OUTPUTS": outputs,
        "S3_TABLES": tables,
    }
    subprocess.run(
        [sys.executable, str(ROOT / "deploy/make_secrets.py")],
        env=environment,
        capture_output=True,
        check=True,
    )
    text = (made / "s3-server/s3.json").read_text("utf-8")
    with launching.seaweedfs(folder / "server", text) as admin:
        client = admin.client()
        for bucket in buckets.split(","):
            client.create_bucket(Bucket=bucket)
        client.close()
        yield Roles(admin, _as(admin, made, "driver"), _as(admin, made, "worker"))


def _as(server: Server, made: Path, role: str) -> Server:
    file = configparser.ConfigParser()
    file.read(made / f"s3-{role}/credentials", "utf-8")
    known = file["default"]
    return replace(server, key_id=known["aws_access_key_id"], secret=known["aws_secret_access_key"])
