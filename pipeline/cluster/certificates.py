"""A private certificate authority, and certificates for the processes of a cluster.

Who holds a certificate of this authority may take part in the cluster, which means: may run code on
its workers. Names of hosts are noted in certificates, though Dask goes by the authority alone.
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
"""How long the authority and its certificates are valid."""
WARN_DAYS = 30
"""From when on a certificate that expires is worth a word."""
BEFORE = timedelta(minutes=10)
"""How far a clock may be behind ours and still take a certificate that was made just now."""


@dataclass(frozen=True, slots=True)
class Ephemeral:
    """A certificate and its key for one cluster, in memory, and the authority that signed it."""

    ca: str
    cert: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Made:
    """What `make` did."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    """What was there already."""


def make(folder: Path, hosts: Sequence[str] = (), days: int = DAYS, *, force: bool = False) -> Made:
    """Make an authority and a certificate with a key for each part: scheduler, worker, client.

    An authority that is there is used again, so that new certificates are taken beside old ones.

    Args:
        folder: Made for this user alone if it is not there.
        hosts: Names and addresses to note in the scheduler's and the workers' certificates.
        days: How long the certificates are valid.
        force: Make the three certificates anew. The authority stays: to change it, too, move
            ca.pem and ca-key.pem away first.

    Raises:
        UsageError: half an authority is there, or the folder cannot be written to.
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
        one, other = (ca_file, ca_key_file) if ca_file.exists() else (ca_key_file, ca_file)
        raise UsageError(
            f"{one} is there and {other} is not",
            "bring the other one back, or move this one away and make everything anew",
        )
    if not ca_file.exists():
        ca, ca_key = _authority()
        _write(ca_file, ca, ca_key_file, ca_key)
        written += [ca_file, ca_key_file]
        force = True  # What another authority has signed is of no use.
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
        certificate, key = _signed(part, hosts, days, ca, ca_key)
        _write(files[0], certificate, files[1], key)
        written += files
    return Made(tuple(written), tuple(kept))


def ephemeral() -> Ephemeral:
    """Make an authority that signs one certificate, and forget its key.

    For processes that start each other and hand it on: nobody else can have one of that authority.
    """
    ca, ca_key = _authority()
    certificate, key = _signed("worker", (), DAYS, ca, ca_key)
    return Ephemeral(_pem(ca).decode(), _pem(certificate).decode(), _key_pem(key).decode())


def expires(path: Path) -> datetime:
    """When a certificate expires (UTC).

    Raises:
        UsageError: the file is missing or holds no certificate.
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
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    return built.sign(key, hashes.SHA256()), key


def _signed(
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
    # Workers and the scheduler call each other. A client only calls: with its certificate nobody
    # can pass for a scheduler.
    purposes = [Oid.CLIENT_AUTH] if part == "client" else [Oid.SERVER_AUTH, Oid.CLIENT_AUTH]
    names = [_host(host) for host in dict.fromkeys([f"chunkmap-{part}", "localhost", *hosts])]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    end = min(now + timedelta(days=days), ca.not_valid_after_utc)
    built = (
        x509.CertificateBuilder(
            ca.subject, _name(f"chunkmap {part}"), key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - BEFORE)
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
    # The key first: a certificate without its key would count as made.
    _replace(key_path, _key_pem(key), 0o600)
    _replace(path, _pem(certificate), 0o644)


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _replace(path: Path, data: bytes, mode: int) -> None:
    """In one step, and never readable by others for a moment."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)
