"""Images under the tags that the project names: pulled, or made from Debian's packages.

What is built from the Dockerfile is real in both cases. The stand-ins do what the originals do with
the same commands, users, volumes and variables; they are larger.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compose.engine import Engine, NoEngineError, mirror
from tests.contracts.source import ROOT

POSTGRES_ENTRYPOINT = """#!/bin/bash
set -euo pipefail
export PATH=$(echo /usr/lib/postgresql/*/bin):$PATH PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" ${POSTGRES_INITDB_ARGS:-}
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  printf "listen_addresses = '*'\\nunix_socket_directories = '/run/postgresql'\\n" \\
    >>"$PGDATA/postgresql.conf"
  pg_ctl -w -o "-c listen_addresses=''" start
  PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") psql -h /run/postgresql -U "$POSTGRES_USER" \\
    -d postgres -c "CREATE DATABASE \\"$POSTGRES_DB\\"" || true
  pg_ctl -m fast -w stop
fi
exec postgres
"""


@dataclass(frozen=True, slots=True)
class Built:
    """An image of ours."""

    tag: str
    seconds: float
    bytes: int


def python_image() -> str:
    """The base image that the Dockerfile names."""
    named = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    assert named is not None
    return named[1]


def provide_bases(engine: Engine, compose: dict[str, Any]) -> None:
    """See that every image that is not built here is there."""
    images = {name: service["image"] for name, service in compose["services"].items()}
    tags = {"python": python_image()}
    tags |= {name: images[name] for name in ("postgres", "redis", "prometheus")}
    missing = {name: tag for name, tag in tags.items() if not has(engine, tag)}
    if not engine.is_ours:
        missing = {name: tag for name, tag in missing.items() if not pulled(engine, tag)}
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise NoEngineError(f"no {', '.join(missing.values())}, and no debootstrap to make one")
    if "python" in missing:
        packages = ("python3", "python3-venv", "ca-certificates")
        root = debian(engine.folder / "python", "bookworm", packages)
        import_tree(engine, root, missing.pop("python"), ['CMD ["python3"]'])
    if missing:
        stand_in_servers(engine, missing)


def has(engine: Engine, tag: str) -> bool:
    """Whether the engine has an image."""
    return bool(engine("image", "ls", "--quiet", tag))


def pulled(engine: Engine, tag: str) -> bool:
    """Whether an image could be had from its registry."""
    engine("pull", "--quiet", tag, check=False)
    return has(engine, tag)


def debian(root: Path, suite: str, packages: tuple[str, ...]) -> Path:
    """A small Debian with these packages."""
    clock = time.perf_counter()
    root.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            suite,
            str(root),
            mirror(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        raise NoEngineError(f"debootstrap {suite}: {done.stdout[-500:]}{done.stderr[-500:]}")
    print(f"Debian {suite} with {packages[0]}: {time.perf_counter() - clock:.0f} s", flush=True)
    return root


def import_tree(engine: Engine, root: Path, tag: str, changes: list[str]) -> None:
    """Make an image of a folder."""
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        flags = [word for change in changes for word in ("--change", change)]
        command = [engine.program, "import", *flags, "-", tag]
        subprocess.run(
            command, env=dict(engine.variables), stdin=tar.stdout, check=True, capture_output=True
        )


def stand_in_servers(engine: Engine, tags: dict[str, str]) -> None:
    """PostgreSQL, Redis and Prometheus, with the users and folders of the original images."""
    packages = ("postgresql", "redis-server", "prometheus", "wget")
    root = debian(engine.folder / "servers", "trixie", packages)
    for command in (
        ["groupmod", "--gid", "999", "postgres"],
        ["usermod", "--uid", "999", "--gid", "999", "postgres"],
        ["install", "-d", "-o", "999", "-g", "999", "/data", "/var/lib/postgresql/data"],
        ["install", "-d", "-o", "65534", "-g", "65534", "/prometheus"],
        ["sh", "-c", "ln -sf /usr/lib/postgresql/*/bin/pg_isready /usr/local/bin/pg_isready"],
    ):
        subprocess.run(["chroot", root, *command], check=True, capture_output=True)
    entrypoint = root / "usr/local/bin/docker-entrypoint.sh"
    entrypoint.write_text(POSTGRES_ENTRYPOINT, "utf-8")
    entrypoint.chmod(0o755)
    changes = {
        "postgres": ['ENTRYPOINT ["docker-entrypoint.sh"]'],
        "redis": ['CMD ["redis-server"]'],
        "prometheus": ['ENTRYPOINT ["prometheus"]'],
    }
    for name, tag in tags.items():
        import_tree(engine, root, tag, changes[name])
    shutil.rmtree(root)


def build(engine: Engine, target: str, tag: str) -> Built:
    """Build a target of the Dockerfile; pip is told what pip on this machine is told."""
    clock = time.perf_counter()
    secrets: list[str] = []
    for name, variable in (
        ("pip", "PIP_CONFIG_FILE"),
        ("ca", "PIP_CERT"),
        ("ca", "SSL_CERT_FILE"),
    ):
        path = os.environ.get(variable)
        if path and Path(path).is_file() and f"id={name}," not in "".join(secrets):
            secrets += ["--secret", f"id={name},src={path}"]
    where = ["--network", "host", "--target", target, "--tag", tag]
    engine("build", "--quiet", *where, *secrets, str(ROOT), seconds=1500)
    size = int(engine("image", "inspect", "--format", "{{.Size}}", tag))
    return Built(tag, time.perf_counter() - clock, size)
