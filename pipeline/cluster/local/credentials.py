"""The secrets of the embedded stack, in its state folder. Each is made once and kept."""

from __future__ import annotations

import json
import secrets
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.cluster.certificates import CA_DAYS, WARN_DAYS, expires, make
from pipeline.cluster.local import seaweedfs
from pipeline.cluster.local.processes import HOST
from pipeline.private import make_folder, write_file

REGION = "us-east-1"
PREFECT_PASSWORD = "prefect-password"
"""The file of what Prefect's pages and API ask for."""
_TLS, _SEAWEEDFS, _AUTHORITY = "tls", "seaweedfs", "seaweedfs-tls"


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
        write_file(config, json.dumps({"identities": [identity]}))
    return {
        "endpoint_url": f"http://{HOST}:{port}",
        "region": REGION,
        "access_key_id": access,
        "secret_access_key": secret,
    }


def s3_security(root: Path) -> Path:
    """The folder with the security.toml of the stack's SeaweedFS, for one start of it."""
    folder = make_folder(root / _SEAWEEDFS)
    authority = _fresh(root / _AUTHORITY)
    for name, text in seaweedfs.certificates(authority, CA_DAYS).items():
        write_file(folder / name, text)
    toml = seaweedfs.security_toml(str(folder), seaweedfs.new_tokens())
    write_file(folder / "security.toml", toml)
    return folder


def prefect_password(root: Path) -> str:
    """What the stack's Prefect server asks for: a name, a colon and a password."""
    file = root / PREFECT_PASSWORD
    try:
        found = file.read_text(encoding="utf-8").strip()
    except OSError:
        found = ""
    if not found:
        found = f"chunkmap:{secrets.token_hex(16)}"
        write_file(file, found + "\n")
    return found


def make_tls(root: Path) -> None:
    """Make the certificates of the stack's Dask cluster, unless they are there and valid."""
    make(_fresh(root / _TLS), days=CA_DAYS)


def tls_settings(root: Path, part: str) -> dict[str, str]:
    """The settings `dask.tls` of a part of the stack's cluster: `worker` or `client`."""
    folder = root / _TLS
    files = {"ca": "ca.pem", "cert": f"{part}.pem", "key": f"{part}-key.pem"}
    return {name: str(folder / file) for name, file in files.items()}


def _fresh(folder: Path) -> Path:
    """A folder of certificates, emptied when they are about to expire."""
    known = folder / "client.pem"
    if known.exists() and expires(known) - datetime.now(UTC) < timedelta(days=WARN_DAYS):
        shutil.rmtree(folder)
    return folder
