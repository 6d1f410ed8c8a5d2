"""Make a private certificate authority, and certificates for the processes of a cluster.

The owner of a certificate of this authority may join the cluster, and thereby run code on its
workers. Certificates contain host names, but Dask checks only the authority.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.private import make_folder

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

PARTS = ("scheduler", "worker", "client")
CA_DAYS, DAYS = 3650, 365
"""Days for which the authority and its certificates are valid."""
WARN_DAYS = 30
"""Days before its expiry from which on a certificate is reported."""
CLOCK_TOLERANCE = timedelta(minutes=10)
"""Time by which another clock may be behind and still accept a new certificate."""


@dataclass(frozen=True, slots=True)
class Ephemeral:
    """A certificate with its key for one cluster, in memory, and the authority that signed it."""

    ca: str
    cert: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Made:
    """The result of `make`."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    """Files that existed already."""


def make(folder: Path, hosts: Sequence[str] = (), days: int = DAYS, *, force: bool = False) -> Made:
    """Make an authority, and a certificate with a key for scheduler, workers and clients each.

    An existing authority is used, so that new certificates are accepted together with old ones.

    Args:
        folder: The folder to write to; if it does not exist, it is made for this user only.
        hosts: Names and addresses to put into the certificates of scheduler and workers.
        days: The number of days for which the certificates are valid.
        force: Replace existing certificates. The authority stays: to replace it too, move ca.pem
            and ca-key.pem away first.

    Raises:
        UsageError: One of the authority's files is missing, or the folder cannot be written to.
    """
    try:
        make_folder(folder)
        return _make(folder, hosts, days, force)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}") from error


def _make(folder: Path, hosts: Sequence[str], days: int, force: bool) -> Made:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    ca_file, ca_key_file = folder / "ca.pem", folder / "ca-key.pem"
    written: list[Path] = []
    kept: list[Path] = []
    if ca_file.exists() != ca_key_file.exists():
        present, missing = (ca_file, ca_key_file) if ca_file.exists() else (ca_key_file, ca_file)
        raise UsageError(
            f"{present} exists, but {missing} does not",
            f"restore {missing.name}, or move {present.name} away and make all certificates again",
        )
    if not ca_file.exists():
        ca, ca_key = _authority()
        _write(ca_file, ca, ca_key_file, ca_key)
        written += [ca_file, ca_key_file]
        force = True  # Certificates of another authority are useless.
    else:
        ca = load_pem_x509_certificate(ca_file.read_bytes())
        loaded = load_pem_private_key(ca_key_file.read_bytes(), password=None)
        ca_key = loaded  # type: ignore[assignment]
        kept += [ca_file, ca_key_file]
    for part in PARTS:
        files = folder / f"{part}.pem", folder / f"{part}-key.pem"
        if not force and all(file.exists() for file in files):
            kept += files
            continue
        certificate, key = _sign(part, hosts, days, ca, ca_key)
        _write(files[0], certificate, files[1], key)
        written += files
    return Made(tuple(written), tuple(kept))


def ephemeral() -> Ephemeral:
    """Make an authority that signs one certificate, and discard its key.

    For processes that start each other and pass it on: there is no other certificate of it.
    """
    ca, ca_key = _authority()
    certificate, key = _sign("worker", (), DAYS, ca, ca_key)
    return Ephemeral(_pem(ca).decode(), _pem(certificate).decode(), _key_pem(key).decode())


def expires(path: Path) -> datetime:
    """Read when a certificate expires (UTC).

    Raises:
        UsageError: The file is missing or holds no certificate.
    """
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} holds no certificate: {error}") from error


def _authority() -> tuple[Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("chunkmap cluster CA")
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    return built.sign(key, hashes.SHA256()), key


def _sign(
    part: str,
    hosts: Sequence[str],
    days: int,
    ca: Certificate,
    ca_key: EllipticCurvePrivateKey,
) -> tuple[Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID as Oid

    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    # Workers and the scheduler call each other. A client is never called: its certificate must not
    # be valid for a scheduler.
    purposes = [Oid.CLIENT_AUTH] if part == "client" else [Oid.SERVER_AUTH, Oid.CLIENT_AUTH]
    names = [_host(host) for host in dict.fromkeys([f"chunkmap-{part}", "localhost", *hosts])]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    end = min(now + timedelta(days=days), ca.not_valid_after_utc)
    built = (
        x509.CertificateBuilder(
            ca.subject, _name(f"chunkmap {part}"), key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
    )
    return built.sign(ca_key, hashes.SHA256()), key


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(text: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    path: Path, certificate: Certificate, key_path: Path, key: EllipticCurvePrivateKey
) -> None:
    # The key first, since a certificate without its key would count as complete.
    _replace(key_path, _key_pem(key), 0o600)
    _replace(path, _pem(certificate), 0o644)


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file atomically, at no moment readable by others."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)
