"""The office's certificate authority: made once, given by files, refused when anything of it is wrong."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from control_plane.access.authority import Authority, load_authority, read_csr
from control_plane.config import OfficeConfig
from shared.certificates import key_sha256
from shared.errors import ConfigError

PEM = serialization.Encoding.PEM
NOW = datetime.now(UTC)


def private_pem(key: Any, passphrase: bytes | None = None) -> bytes:
    protection = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    raw: bytes = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection)
    return raw


def ca_pem(key: Any, *, ca: bool = True, until: datetime = NOW + timedelta(days=100)) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the company's")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=200))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return made.sign(key, algorithm).public_bytes(PEM)


def given(folder: Path, certificate: bytes, key: bytes) -> OfficeConfig:
    (folder / "given.pem").write_bytes(certificate)
    (folder / "given.key").touch(mode=0o600)
    (folder / "given.key").write_bytes(key)
    return OfficeConfig(
        data=folder, ca_certificate=str(folder / "given.pem"), ca_key=str(folder / "given.key")
    )


def one_for(authority: Authority, life: timedelta = timedelta(days=90)) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    issued = authority.for_truck("truck-1", read_csr(csr.public_bytes(PEM).decode()), now=NOW, life=life)
    assert issued.key_sha256 == key_sha256(key.public_key())
    return x509.load_pem_x509_certificate(issued.pem.encode())


def test_it_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    config = OfficeConfig(data=tmp_path)
    first = load_authority(config)
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o600
    assert load_authority(config).chain == first.chain
    one_for(load_authority(config)).verify_directly_issued_by(
        x509.load_pem_x509_certificate(first.chain.encode())
    )
    assert one_for(first).serial_number != one_for(first).serial_number


def test_a_crash_between_key_and_certificate_leaves_an_authority(tmp_path: Path) -> None:
    config = OfficeConfig(data=tmp_path)
    load_authority(config)
    key = (tmp_path / "ca-key.pem").read_bytes()
    (tmp_path / "ca.pem").unlink()
    load_authority(config)
    assert (tmp_path / "ca-key.pem").read_bytes() == key


def test_strict_checks_pass(tmp_path: Path) -> None:
    """What Python 3.13 asks by default: RFC 5280 to the letter."""
    authority = load_authority(OfficeConfig(data=tmp_path))
    pair = authority.for_broker(["localhost", "10.0.0.1"], now=NOW, life=timedelta(days=1))
    (tmp_path / "pair.pem").write_bytes(pair.key + pair.certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "pair.pem")
    client = ssl.create_default_context(cadata=authority.chain)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="10.0.0.1")
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert asking.getpeercert()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "ed25519", "rsa"],
)
def test_a_given_one_is_used_and_nothing_outlives_it(tmp_path: Path, key: Any) -> None:
    config = given(tmp_path, ca_pem(key), private_pem(key))
    authority = load_authority(config)
    assert not (tmp_path / "ca.pem").exists()
    made = one_for(authority, timedelta(days=500))
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem(key)))
    assert made.not_valid_after_utc <= NOW + timedelta(days=100)


KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(65537, 1024)  # what must be refused
WRONG: dict[str, tuple[Callable[[], tuple[bytes, bytes]], str]] = {
    "another key": (lambda: (ca_pem(KEY), private_pem(OTHER)), "ca_key"),
    "no key": (lambda: (ca_pem(KEY), b"nothing"), "ca_key"),
    "an encrypted key": (lambda: (ca_pem(KEY), private_pem(KEY, b"secret")), "ca_key"),
    "a short RSA key": (lambda: (ca_pem(SHORT), private_pem(SHORT)), "ca_key"),
    "no certificate": (lambda: (b"nothing", private_pem(KEY)), "ca_certificate"),
    "no authority": (lambda: (ca_pem(KEY, ca=False), private_pem(KEY)), "ca_certificate"),
    "ended": (lambda: (ca_pem(KEY, until=NOW - timedelta(days=1)), private_pem(KEY)), "ca_certificate"),
    "endless": (lambda: (b"#" * 20_000, private_pem(KEY)), "ca_certificate"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_refuses_to_start_and_names_the_key(tmp_path: Path, name: str) -> None:
    make, says = WRONG[name]
    with pytest.raises(ConfigError, match=says):
        load_authority(given(tmp_path, *make()))


def test_files_that_are_lost_or_open_refuse_to_start(tmp_path: Path) -> None:
    config = OfficeConfig(data=tmp_path)
    load_authority(config)
    (tmp_path / "ca-key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match=r"ca-key\.pem"):
        load_authority(config)
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca-key\.pem is lost"):
        load_authority(config)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"mqtt_client_certificates": "yes"}, "mqtt_client_certificates"),
        ({"mqtt_client_certificates": "required"}, "mqtt_tls"),
        ({"mqtt_host": "0.0.0.0"}, "mqtt_host"),
        ({"mqtt_host": "0.0.0.0", "mqtt_tls": True}, "mqtt_public_host"),
        ({"mqtt_public_host": "a b"}, "mqtt_public_host"),
        ({"mqtt_certificate": "c.pem", "mqtt_tls": True}, "mqtt_certificate_key"),
        ({"mqtt_certificate": "c.pem", "mqtt_certificate_key": "k.pem"}, "mqtt_certificate"),
        ({"ca_certificate": "c.pem"}, "ca_key"),
        ({"certificate_life_s": 60.0}, "certificate_life_s"),
        ({"certificate_grace_s": -1.0}, "certificate_grace_s"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        OfficeConfig(data=tmp_path, **values)


def test_beyond_loopback_with_tls(tmp_path: Path) -> None:
    OfficeConfig(data=tmp_path, mqtt_host="0.0.0.0", mqtt_tls=True, mqtt_public_host="broker.example")
    OfficeConfig(data=tmp_path, mqtt_host="192.0.2.7", mqtt_tls=True)
