"""Make the security.toml of a SeaweedFS server, which restricts its master, volumes and filer.

Clients use its S3 port, which checks signatures. Its other ports are for its own services, and
require no authentication without this file.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster.certificates import DAYS, make

SERVICES = ("master", "volume", "filer", "s3", "admin", "worker", "client")
"""Components that use gRPC, with a certificate on both sides."""
TOKENS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
"""Keys that sign requests for the data of volumes and filer, for writing and reading each."""


def certificates(authority: Path, days: int = DAYS) -> dict[str, str]:
    """Read the files that `security_toml` names from a folder; make them if missing.

    Only the server may have a certificate of this authority, which gives access to everything.

    Args:
        authority: The folder of the authority.
        days: The days for which new certificates are valid.

    Returns:
        The contents by name: `ca.pem`, `cert.pem` and `key.pem`.
    """
    make(authority, ("127.0.0.1",), days)
    sources = {"ca.pem": "ca.pem", "cert.pem": "worker.pem", "key.pem": "worker-key.pem"}
    return {name: (authority / source).read_text("ascii") for name, source in sources.items()}


def new_tokens() -> dict[str, str]:
    """Make keys for `TOKENS`, valid for one start of the server, which alone uses them."""
    return {name: secrets.token_hex(32) for name in TOKENS}


def security_toml(folder: str, tokens: Mapping[str, str]) -> str:
    """Write the text of security.toml.

    Args:
        folder: The folder in which the server finds the files of `certificates`.
        tokens: Keys from `new_tokens`; none if only this server can reach its ports over HTTP.
    """
    # A JSON string is a TOML string.
    ca, cert, key = (
        json.dumps(f"{folder}/{name}.pem", ensure_ascii=False) for name in ("ca", "cert", "key")
    )
    lines = [f"[grpc]\nca = {ca}"]
    lines += [f"[grpc.{name}]\ncert = {cert}\nkey = {key}" for name in SERVICES]
    lines += [f'[{name}]\nkey = "{value}"' for name, value in tokens.items()]
    return "\n".join(lines) + "\n"
