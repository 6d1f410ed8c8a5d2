"""Make and keep the secrets of the local stack, in its state folder."""

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
"""Name of the file with the password of the Prefect UI and API."""
_TLS, SEAWEEDFS, _AUTHORITY = "tls", "seaweedfs", "seaweedfs-tls"


def s3_settings(root: Path, port: int) -> dict[str, str]:
    """Return the settings that reach the stack's S3, with credentials that are made once."""
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
    """Write the security.toml for one start of the stack's SeaweedFS; returns its folder."""
    folder = make_folder(root / SEAWEEDFS)
    authority = _without_expiring(root / _AUTHORITY)
    for name, text in seaweedfs.certificates(authority, CA_DAYS).items():
        write_file(folder / name, text)
    toml = seaweedfs.security_toml(str(folder), seaweedfs.new_tokens())
    write_file(folder / "security.toml", toml)
    return folder


def prefect_password(root: Path) -> str:
    """Return the login of the stack's Prefect server (name, colon, password), made once."""
    file = root / PREFECT_PASSWORD
    try:
        login = file.read_text(encoding="utf-8").strip()
    except OSError:
        login = ""
    if not login:
        login = f"chunkmap:{secrets.token_hex(16)}"
        write_file(file, login + "\n")
    return login


def make_tls(root: Path) -> None:
    """Make the certificates of the stack's Dask cluster, unless valid ones exist."""
    make(_without_expiring(root / _TLS), days=CA_DAYS)


def tls_settings(root: Path, part: str) -> dict[str, str]:
    """Return the settings `dask.tls` for a role in the stack's cluster: `worker` or `client`."""
    folder = root / _TLS
    files = {"ca": "ca.pem", "cert": f"{part}.pem", "key": f"{part}-key.pem"}
    return {name: str(folder / file) for name, file in files.items()}


def _without_expiring(folder: Path) -> Path:
    """Remove a folder of certificates if they are about to expire; returns its path."""
    certificate = folder / "client.pem"
    if certificate.exists() and expires(certificate) - datetime.now(UTC) < timedelta(
        days=WARN_DAYS
    ):
        shutil.rmtree(folder)
    return folder
