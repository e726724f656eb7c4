"""The office's certificate authority: who gets a certificate is decided elsewhere, what stands in it here.

Its key is made at the first start (`DATA/ca-key.pem`, 0600) or given by configuration. It signs clients'
certificates for trucks, one for the office itself at each connection, and the broker's own where none is
given. Certificates are as RFC 5280 has them and as OpenSSL's strict checks want them; none outlives the
authority.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.config import OfficeConfig
from control_plane.errors import Invalid
from control_plane.secret_files import create_secret, read_or_create_secret, read_secret
from shared.certificates import (
    MOST_CHAIN_BYTES,
    MOST_CSR_BYTES,
    OFFICE_URI,
    PublicKey,
    is_taken,
    key_sha256,
    truck_uri,
)
from shared.errors import ConfigError

CA_KEY, CA_CERTIFICATE = "ca-key.pem", "ca.pem"
CA_LIFE = timedelta(days=20 * 365)
BACKDATED = timedelta(hours=1)
"""How far the clock of whoever checks a certificate may be behind ours."""
LEAST_RSA_BITS = 2048

SigningKey = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, kw_only=True)
class Csr:
    """A truck's request, its own signature checked (RFC 2986, 4.2). Only the key of it is believed."""

    public_key: PublicKey
    key_sha256: str
    der: bytes


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A truck's certificate as it was signed; `serial` is in hex."""

    serial: str
    key_sha256: str
    pem: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A private key of the office's own and its certificate, both PEM."""

    key: bytes
    certificate: bytes
    not_after: datetime


def read_csr(pem: str) -> Csr:
    """Raises Invalid (`bad_csr`) for what is too large, no request, of another kind of key, or not signed by
    the key that it is for.
    """
    if len(pem) > MOST_CSR_BYTES:
        raise _bad_csr(f"over {MOST_CSR_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad_csr("no certificate request in PEM") from error
    if not is_taken(key):
        raise _bad_csr("the key is neither ECDSA P-256 nor Ed25519")
    if not signed:
        raise _bad_csr("it is not signed by its own key")
    return Csr(
        public_key=key,  # type: ignore[arg-type]  # is_taken has looked
        key_sha256=key_sha256(key),  # type: ignore[arg-type]
        der=request.public_bytes(serialization.Encoding.DER),
    )


def _bad_csr(why: str) -> Invalid:
    return Invalid(
        f"the certificate request can't be taken: {why}",
        code="bad_csr",
        advice="Send a PKCS #10 request in PEM for a P-256 or Ed25519 key, signed by that key.",
        fields={"csr": why},
    )


class Authority:
    """Signs. `chain` is what a truck is given beside its own certificate, PEM, the signer first."""

    def __init__(self, key: SigningKey, certificates: list[x509.Certificate]) -> None:
        self._key = key
        self._certificate = certificates[0]
        self.chain = "".join(_text(one) for one in certificates)

    @property
    def not_after(self) -> datetime:
        """When it ends, and every certificate of its with it."""
        return self._certificate.not_valid_after_utc

    def for_truck(self, device_id: str, csr: Csr, *, now: datetime, life: timedelta) -> Issued:
        """A client certificate whose names are the office's words alone."""
        serial = x509.random_serial_number()
        name = f"{serial:x}"
        made = self._sign(
            csr.public_key,
            serial=serial,
            common_name=device_id,
            names=[x509.UniformResourceIdentifier(truck_uri(device_id, name))],
            purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
            now=now,
            life=life,
        )
        return Issued(
            serial=name,
            key_sha256=csr.key_sha256,
            pem=_text(made),
            not_before=made.not_valid_before_utc,
            not_after=made.not_valid_after_utc,
        )

    def for_office(self, *, now: datetime, life: timedelta) -> Pair:
        """The office's own client certificate."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(OFFICE_URI)]
        return self._pair("Quarry office", names, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)

    def for_broker(self, hosts: Collection[str], *, now: datetime, life: timedelta) -> Pair:
        """The broker's certificate for these names and addresses."""
        names = [_host(one) for one in hosts]
        return self._pair("Quarry broker", names, ExtendedKeyUsageOID.SERVER_AUTH, now=now, life=life)

    def _pair(
        self,
        common_name: str,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        *,
        now: datetime,
        life: timedelta,
    ) -> Pair:
        key = generate_private_key(SECP256R1())
        made = self._sign(
            key.public_key(),
            serial=x509.random_serial_number(),
            common_name=common_name,
            names=names,
            purpose=purpose,
            now=now,
            life=life,
        )
        return Pair(
            key=_private(key),
            certificate=(_text(made) + self.chain).encode(),
            not_after=made.not_valid_after_utc,
        )

    def _sign(
        self,
        key: PublicKey,
        *,
        serial: int,
        common_name: str,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        now: datetime,
        life: timedelta,
    ) -> x509.Certificate:
        own = self._certificate
        if now >= self.not_after:
            raise ConfigError(
                f"the certificate authority ended at {self.not_after.isoformat()}",
                advice=f"Give another one, or remove {CA_KEY} and {CA_CERTIFICATE} so that one is made.",
            )
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(own.subject)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(max(now - BACKDATED, own.not_valid_before_utc))
            .not_valid_after(min(now + life, self.not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_key_id(own), critical=False)
            .sign(self._key, _hash(self._key))
        )


def load_authority(config: OfficeConfig) -> Authority:
    """From the configured files, or the data folder's, which are made when there are none. Blocks.

    Raises ConfigError that names the key or the file.
    """
    if config.ca_certificate:
        return _read(Path(config.ca_certificate), "ca_certificate", Path(config.ca_key), "ca_key")
    key_path, path = config.data / CA_KEY, config.data / CA_CERTIFICATE
    if read_secret(path) is not None and read_secret(key_path) is None:
        raise ConfigError(
            f"{key_path} is lost, {path} is there",
            advice=f"Restore it, or remove {path}: another authority is made, and trucks renew by it.",
        )
    # The key first: a crash between the two leaves a key for which the certificate is made.
    raw = read_or_create_secret(key_path, lambda: _private(generate_private_key(SECP256R1())))
    if read_secret(path) is None:
        create_secret(path, _self_signed(_signing_key(raw, str(key_path)), datetime.now(UTC)))
    return _read(path, str(path), key_path, str(key_path))


def _read(path: Path, what: str, key_path: Path, key_what: str) -> Authority:
    raw_key = read_secret(key_path)
    if raw_key is None:
        raise ConfigError(f"{key_what}: there is no file {key_path}")
    key = _signing_key(raw_key, key_what)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_CHAIN_BYTES + 1)
        if len(raw) > MOST_CHAIN_BYTES:
            raise ConfigError(f"{what}: {path} has more than {MOST_CHAIN_BYTES} bytes")
        certificates = x509.load_pem_x509_certificates(raw)
        constraints = certificates[0].extensions.get_extension_for_class(x509.BasicConstraints).value
    except OSError as error:
        raise ConfigError(f"{what}: {path} can't be read: {error.strerror}") from error
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"{what}: {path} is no authority's certificate in PEM: {error}") from error
    if not constraints.ca:
        raise ConfigError(f"{what}: the first certificate of {path} is no authority's")
    if certificates[0].public_key() != key.public_key():
        raise ConfigError(f"{key_what}: {key_path} is not the key of {path}")
    if certificates[0].not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{what}: {path} ended at {certificates[0].not_valid_after_utc.isoformat()}")
    return Authority(key, certificates)


def _signing_key(raw: bytes, what: str) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{what}: no private key in PEM without a passphrase") from error
    if isinstance(key, RSAPrivateKey) and key.key_size < LEAST_RSA_BITS:
        raise ConfigError(f"{what}: an RSA key of {key.key_size} bits is too short")
    if not isinstance(key, (EllipticCurvePrivateKey, Ed25519PrivateKey, RSAPrivateKey)):
        raise ConfigError(f"{what}: the key is neither ECDSA, Ed25519 nor RSA")
    return key


def _self_signed(key: SigningKey, now: datetime) -> bytes:
    name = _name("Quarry office authority")
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, _hash(key))
        .public_bytes(_PEM)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Quarry OTA"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(own: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        known = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _hash(key: SigningKey) -> hashes.SHA256 | None:
    return None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()


def _host(value: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(value))
    except ValueError:
        return x509.DNSName(value)


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(_PEM).decode()


def _private(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
