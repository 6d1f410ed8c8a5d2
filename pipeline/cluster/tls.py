"""Configure TLS for Dask's connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cluster.certificates import ephemeral
from pipeline.config.sections import DaskSettings, TlsSettings
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from distributed.security import Security


def client_security(settings: DaskSettings) -> Security | None:
    """Make the TLS configuration of this process's clients.

    Raises:
        SettingsError: As `security_of`.
    """
    given: Security | None = settings.security
    return security_of(settings.tls) if given is None else given


def security_of(settings: TlsSettings) -> Security | None:
    """Make the TLS configuration of this process's connections; None without certificates.

    A process has one certificate for all its roles. A client's certificate is not valid for a
    scheduler, because of its extended key usage.

    Raises:
        SettingsError: A file is missing or cannot be read.
    """
    if settings.ca is None or settings.cert is None or settings.key is None:
        return None
    for name in ("ca", "cert", "key"):
        path = getattr(settings, name).expanduser()
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"dask.tls.{name}: {path}: {error.strerror}",
                "chunkmap tls init --directory DIR makes certificates",
            ) from error
    cert, key = str(settings.cert.expanduser()), str(settings.key.expanduser())
    return _security(str(settings.ca.expanduser()), cert, key)


def own_security() -> Security:
    """Make the TLS configuration of a cluster that this process starts, with its own certificate.

    Every account of this machine can reach its scheduler, whose clients can run code as this user.
    """
    made = ephemeral()
    return _security(made.ca, made.cert, made.key)


def _security(ca: str, cert: str, key: str) -> Security:
    from distributed.security import Security

    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        tls_client_cert=cert,
        tls_client_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
    )
