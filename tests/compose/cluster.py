"""The real compose file, in a project of its own."""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import polars as pl
from botocore.config import Config

from tests.compose.engine import Engine, wait_until
from tests.contracts.source import ROOT

FILE = ROOT / "docker-compose.dask.yml"
TRANSFORMS = ROOT / "tests" / "compose" / "transforms.yml"
UP_SECONDS = 600.0
"""With every core busy; an idle machine takes about one."""
CLI = ("sh", "/usr/local/lib/chunkmap/entrypoint.sh")


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a service, as the engine describes it."""

    id: str
    details: dict[str, Any]

    @property
    def pid(self) -> int:
        """Of its first process, here outside."""
        return int(self.details["State"]["Pid"])

    @property
    def is_healthy(self) -> bool:
        """By its health check."""
        return bool(self.details["State"].get("Health", {}).get("Status") == "healthy")


@dataclass(slots=True)
class Cluster:
    """A compose project."""

    engine: Engine
    jobs: Path
    project: str = field(default_factory=lambda: f"chunkmap-test-{uuid.uuid4().hex[:6]}")
    variables: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    more: tuple[Path, ...] = ()
    """Files that change what the compose file says."""

    def __post_init__(self) -> None:
        with reserved_ports(5) as ports:
            names = (
                *("PREFECT_PORT", "DASHBOARD_PORT", "S3_PORT", "PROMETHEUS_PORT"),
                "GRAFANA_PORT",
            )
            self.ports = dict(zip(names, ports, strict=True))
        self.variables |= {name: str(port) for name, port in self.ports.items()}
        self.variables |= {
            "COMPOSE_PROJECT_NAME": self.project,
            "JOBS": str(self.jobs),
            "TEST_TRANSFORMS": str(TRANSFORMS.parent / "transforms" / "cluster_transforms.py"),
        }

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """`docker compose …` and its environment."""
        files = [word for path in (FILE, TRANSFORMS, *self.more) for word in ("--file", str(path))]
        # From nothing: a developer's own .env must not be read.
        program = [self.engine.program, "compose", "--env-file", os.devnull, *files, *arguments]
        return program, {**self.engine.variables, **self.variables}

    def __call__(self, *arguments: str, check: bool = True, seconds: float = UP_SECONDS) -> str:
        """Run `docker compose …`; returns what it prints, errors too unless they are raised."""
        program, variables = self.command(*arguments)
        done = subprocess.run(
            program, env=variables, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode:
            said = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
            raise AssertionError(f"compose {' '.join(arguments)}: {done.returncode}\n{said}")
        return done.stdout if check else done.stdout + done.stderr

    def up(self, *more: str, workers: int = 1) -> None:
        """Start what does not run, and wait until all of it is healthy."""
        self("up", "--detach", "--no-build", "--scale", f"dask-worker={workers}", *more)
        self.await_healthy("dask-worker", workers)

    def scale(self, workers: int) -> None:
        """As `make cluster-scale` does."""
        self(
            *("up", "--detach", "--no-build", "--no-deps", "--no-recreate"),
            *("--scale", f"dask-worker={workers}", "dask-worker"),
        )

    def containers(self, service: str) -> list[Container]:
        """Those of a service that run."""
        return self._described(self("ps", "--quiet", service))

    def all_containers(self) -> list[Container]:
        """Those of every service, jobs that have ended among them."""
        return self._described(self("--profile", "*", "ps", "--all", "--quiet"))

    def _described(self, ids: str) -> list[Container]:
        found = json.loads(self.engine("inspect", *ids.split())) if ids.strip() else []
        return [Container(container["Id"], container) for container in found]

    def await_healthy(self, service: str, count: int = 1, seconds: float = UP_SECONDS) -> None:
        """Until so many containers of a service are healthy."""

        def healthy() -> bool:
            return sum(container.is_healthy for container in self.containers(service)) == count

        if not wait_until(healthy, seconds):
            raise AssertionError(f"{service} is not healthy:\n{self('logs', service)[-3000:]}")

    def crash(self, service: str) -> None:
        """Kill -9 the first process of a service's first container. Docker starts it again."""
        # Not `docker kill`, after which Docker takes it for stopped on purpose.
        os.kill(self.containers(service)[0].pid, signal.SIGKILL)

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's first container, with its secrets."""
        return self("exec", "-T", service, *CLI, *command, check=check)

    def chunkmap(self, *arguments: str, check: bool = True, seconds: float = 900) -> str:
        """Run `chunkmap …` in a driver of its own."""
        return self(
            *("run", "--rm", "--no-deps", "-T", "driver"), *arguments, check=check, seconds=seconds
        )

    @contextmanager
    def running(self, job: str, *command: str) -> Iterator[Run]:
        """`chunkmap run JOB`, or another command, in a driver of its own beside the test.

        It is killed if it is left.
        """
        name = f"{self.project}-driver-{uuid.uuid4().hex[:6]}"
        flags = ("run", "--rm", "--no-deps", "-T", "--name", name)
        asked = (*(command or ("run",)), f"conf/jobs/{job}", "--json")
        program, variables = self.command(*flags, "driver", *asked)
        process = subprocess.Popen(
            program, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield Run(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
            self.engine("rm", "--force", name, check=False)

    def s3(self, role: str = "admin") -> S3:
        """The cluster's S3 through its published port, as one of its identities."""
        secret = f"{self.project}_secret-s3-{role}"
        text = self.engine(
            *("run", "--rm", "--user", "10001", "--network", "none", "--entrypoint", "cat"),
            *("--volume", f"{secret}:/s:ro", "chunkmap:local", "/s/credentials"),
        )
        file = configparser.ConfigParser()
        file.read_string(text)
        known = file["default"]
        return S3(
            f"http://127.0.0.1:{self.ports['S3_PORT']}",
            known["aws_access_key_id"],
            known["aws_secret_access_key"],
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A `chunkmap run --json` that is under way."""

    process: subprocess.Popen[str]

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def ended(self, seconds: float = 600) -> tuple[int, str, str]:
        """Its exit code and what it printed, once it has ended."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def result(self, seconds: float = 600) -> dict[str, Any]:
        """Its JSON, once it has ended well."""
        code, out, err = self.ended(seconds)
        assert code == 0, f"{out[-2000:]}\n{err[-4000:]}"
        found: dict[str, Any] = json.loads(out)
        return found


@dataclass(frozen=True, slots=True)
class S3:
    """An S3 as one identity sees it."""

    endpoint: str
    key: str
    secret: str

    def client(self) -> Any:
        """A client that tries once."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def read(self, uri: str) -> pl.DataFrame:
        """Every row of the Parquet objects under a prefix, by a plain glob."""
        options = {
            # Under both names: a developer's own AWS_ENDPOINT_URL_S3 wins over the plain one.
            "aws_endpoint_url": self.endpoint,
            "aws_endpoint_url_s3": self.endpoint,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "aws_region": "us-east-1",
            "aws_allow_http": "true",
        }
        return pl.scan_parquet(f"{uri}**/*.parquet", storage_options=options).collect()

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """The keys under a prefix."""
        pages = self.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in found for item in page.get("Contents", [])]


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Different ports that are free."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for address in sockets:
            address.bind(("127.0.0.1", 0))
        yield [int(address.getsockname()[1]) for address in sockets]
    finally:
        for address in sockets:
            address.close()
