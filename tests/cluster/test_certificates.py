"""A private authority and its certificates: what is made, kept, and good for what."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Oid

from pipeline.cluster.certificates import PARTS, expires, make
from pipeline.errors import UsageError


def purposes(path: Path) -> set[x509.ObjectIdentifier]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_an_authority_and_three_certificates_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    made = make(folder, ["dask-scheduler", "10.0.0.5"])
    assert len(made.written) == 8
    assert made.kept == ()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    for part in PARTS:
        certificate = x509.load_pem_x509_certificate((folder / f"{part}.pem").read_bytes())
        certificate.verify_directly_issued_by(ca)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "dask-scheduler" in names.get_values_for_type(x509.DNSName)
        assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == [
            "10.0.0.5"
        ]


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("ca", *PARTS):
        assert stat.S_IMODE((tmp_path / f"{name}-key.pem").stat().st_mode) == 0o600


def test_nobody_can_pass_for_a_scheduler_with_a_clients_certificate(tmp_path: Path) -> None:
    make(tmp_path)
    assert purposes(tmp_path / "client.pem") == {Oid.CLIENT_AUTH}
    for part in ("scheduler", "worker"):
        assert purposes(tmp_path / f"{part}.pem") == {Oid.CLIENT_AUTH, Oid.SERVER_AUTH}


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = make(tmp_path)
    assert again.written == ()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    forced = make(tmp_path, force=True)
    assert len(forced.written) == 6
    for name in ("ca.pem", "ca-key.pem"):
        assert (tmp_path / name).read_bytes() == before[tmp_path / name]
    assert (tmp_path / "worker.pem").read_bytes() != before[tmp_path / "worker.pem"]


def test_a_missing_certificate_is_made_by_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "client.pem").unlink()
    assert {path.name for path in make(tmp_path).written} == {"client.pem", "client-key.pem"}
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    client = x509.load_pem_x509_certificate((tmp_path / "client.pem").read_bytes())
    client.verify_directly_issued_by(ca)


def test_half_an_authority_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(UsageError, match=r"ca\.pem exists, but .*ca-key\.pem does not"):
        make(tmp_path)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    make(tmp_path, days=100_000)
    assert expires(tmp_path / "worker.pem") == expires(tmp_path / "ca.pem")


def test_when_it_expires(tmp_path: Path) -> None:
    make(tmp_path, days=7)
    left = expires(tmp_path / "client.pem") - datetime.now(UTC)
    assert timedelta(days=6.9) < left <= timedelta(days=7)
    with pytest.raises(UsageError, match=r"no\.pem"):
        expires(tmp_path / "no.pem")
    (tmp_path / "odd.pem").write_text("nothing")
    with pytest.raises(UsageError, match="holds no certificate"):
        expires(tmp_path / "odd.pem")
