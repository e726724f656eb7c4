"""The truck's client certificate: its key, the request for it, and PURE: when the next one is due.

The key is made on the truck and never leaves it: ECDSA P-256 (FIPS 186-5), which OpenSSL, Go and hardware
tokens take alike. The request (PKCS #10, RFC 2986) carries no name: the office decides the names.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from shared.certificates import PrivateKey, is_taken, key_sha256, proof_of
from shared.errors import OtaError
from shared.since_310 import StrEnum

RENEW_AFTER = 2 / 3
"""Of a certificate's life; then up to SPREAD more: a fleet enrolled in one day does not renew in one."""
SPREAD = 1 / 12
WARN_FOR = timedelta(days=14)
_PEM = serialization.Encoding.PEM


class BadCertificate(OtaError):
    """What should be a certificate and its key is none."""

    code = "bad_certificate"
    advice = "Enrol this truck afresh; if it repeats, look who answers in the office's place."


class Standing(StrEnum):
    """How a certificate stands by this truck's clock."""

    GOOD = "good"
    DUE = "due"
    ENDS_SOON = "ends_soon"
    ENDED = "ended"
    NOT_YET = "not_yet"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a certificate says. `serial` is in hex."""

    serial: str
    not_before: datetime
    not_after: datetime

    @property
    def due_at(self) -> datetime:
        """When the next one is asked for; always the same moment for the same certificate."""
        part = int.from_bytes(hashlib.sha256(self.serial.encode()).digest()[:4], "big") / 2**32
        return self.not_before + (self.not_after - self.not_before) * (RENEW_AFTER + SPREAD * part)

    def standing(self, now: datetime) -> Standing:
        """PURE: a clock that is before the beginning is wrong itself, and judges nothing."""
        if now < self.not_before:
            return Standing.NOT_YET
        if now >= self.not_after:
            return Standing.ENDED
        if now >= self.not_after - WARN_FOR and now >= self.due_at:
            return Standing.ENDS_SOON
        return Standing.DUE if now >= self.due_at else Standing.GOOD


def new_client_key() -> str:
    """A fresh private key, PEM (PKCS #8)."""
    key = generate_private_key(SECP256R1())
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _load_key(pem: str) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the private key can't be read") from error
    if not is_taken(key):
        raise BadCertificate("the private key is neither ECDSA P-256 nor Ed25519")
    return key  # type: ignore[return-value]  # is_taken has looked


def _request(key: PrivateKey) -> x509.CertificateSigningRequest:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a truck")])
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)


def make_csr(key_pem: str) -> str:
    """A request for a certificate of this key, PEM. Raises BadCertificate."""
    return _request(_load_key(key_pem)).public_bytes(_PEM).decode()


def make_csr_and_proof(key_pem: str, last_key_pem: str, device_id: str) -> tuple[str, bytes]:
    """A request, and that the holder of the last certificate's key asks it. Raises BadCertificate."""
    csr = _request(_load_key(key_pem))
    proof = proof_of(_load_key(last_key_pem), device_id, csr.public_bytes(serialization.Encoding.DER))
    return csr.public_bytes(_PEM).decode(), proof


def read_certificate(pem: str) -> Certificate:
    """Raises BadCertificate."""
    found = _load(pem)
    return Certificate(
        serial=f"{found.serial_number:x}",
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
    )


def check_ours(certificate_pem: str, key_pem: str, device_id: str) -> None:
    """Raises BadCertificate for a certificate of another key, or of another truck."""
    certificate = _load(certificate_pem)
    theirs = certificate.public_key()
    if not is_taken(theirs) or key_sha256(theirs) != key_sha256(_load_key(key_pem).public_key()):  # type: ignore[arg-type]
        raise BadCertificate("the certificate is for another key than this truck's")
    names = [one.value for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device_id]:
        raise BadCertificate(f"the certificate is for {names!r:.100}, not for {device_id}")


def _load(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the certificate can't be read") from error


def show_pair(context: ssl.SSLContext, key_pem: str, certificates_pem: str) -> None:
    """Let a context show this certificate (its chain behind it). Blocks. Raises BadCertificate.

    ssl reads files only: it gets one in memory, so that no second copy of the key is on a disk.
    """
    descriptor = os.memfd_create("quarry-client", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(f"{key_pem}\n{certificates_pem}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (OSError, ValueError) as error:
        raise BadCertificate(f"the certificate can't be used: {error}") from error
    finally:
        os.close(descriptor)
