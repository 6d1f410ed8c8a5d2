"""Dask's connections under TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.settings import TlsSettings

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
    from distributed.security import Security

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
    return Security(
        require_encryption=True,
        tls_ca_file=str(settings.ca.expanduser()),
        tls_client_cert=cert,
        tls_client_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
    )
