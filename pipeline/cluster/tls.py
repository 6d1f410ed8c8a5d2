"""Dask's connections under TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cluster.certificates import ephemeral
from pipeline.config.sections import TlsSettings
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from distributed.security import Security


def security_of(settings: TlsSettings) -> Security | None:
    """What every connection of this process has to use; None where no certificates are set.

    One certificate a process, whatever its part. That a client's is not taken for a scheduler's is
    in the certificate itself (its extended key usage).

    Raises:
        SettingsError: a file is missing or cannot be read.
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
    """What a cluster that this process starts and ends has to use, with a certificate of its own.

    Every account of this machine reaches its scheduler, and who may send it tasks runs code as us.
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
