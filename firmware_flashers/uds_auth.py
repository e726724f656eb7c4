"""Authentication with a certificate (ISO 14229-1:2020, 10.6, unidirectional PKI exchange).

The tester shows an X.509 certificate that chains to an authority which the ECU holds, and signs the
ECU's challenge with the certificate's key. The key is read from a file that only its owner can open;
the challenge, the proof and the key never reach a log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from firmware_flashers.base import AccessDenied, NoAnswer
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.secret_files import MOST_BYTES, read_private
from firmware_flashers.uds import UdsClient
from shared.errors import ConfigError

DEAUTHENTICATE: Final = 0x00
VERIFY_CERTIFICATE: Final = 0x01
PROOF_OF_OWNERSHIP: Final = 0x03

NO_SPECIAL_CONFIGURATION: Final = 0x00  # communicationConfiguration: nothing is encrypted
OWNERSHIP_NEEDED: Final = 0x11  # "certificate verified, ownership verification necessary", annex B.5
COMPLETE: Final = 0x12  # "ownership verified, authentication complete"
DEAUTHENTICATED: Final = 0x10
LEAST_CHALLENGE_BYTES: Final = 8
EXCHANGES: Final = 2
"""A proof whose answer is lost is not sent again; the exchange begins anew, with a new challenge."""

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """A certificate (DER) and its private key: Ed25519, or ECDSA on P-256 with SHA-256."""

    der: bytes = field(repr=False)
    key: Key = field(repr=False)

    def proof(self, challenge: bytes) -> bytes:
        """The signature over the ECU's challenge."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(challenge)
        return self.key.sign(challenge, ec.ECDSA(hashes.SHA256()))


def read_certificate(certificate_file: Path, key_file: Path) -> ClientCertificate:
    """Read a certificate (PEM or DER) and its key (PEM, for its owner's eyes only).

    Raises ConfigError naming `security_certificate_file` or `security_key_file`.
    """
    where = f"security_certificate_file {certificate_file}"
    try:
        with certificate_file.open("rb") as file:
            raw = file.read(MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror or error}") from error
    try:
        pem = raw.lstrip().startswith(b"-----")
        certificate = x509.load_pem_x509_certificate(raw) if pem else x509.load_der_x509_certificate(raw)
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where} holds no X.509 certificate: {error}") from error
    key_where = f"security_key_file {key_file}"
    try:
        key = load_pem_private_key(read_private("security_key_file", key_file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key_where} holds no private key in PEM without a password") from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(f"{key_where} is on {key.curve.name}, not on P-256")
    elif not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{key_where} is neither Ed25519 nor on P-256")
    if key.public_key() != public:
        raise ConfigError(f"{key_where} is not the key of {certificate_file}")
    return ClientCertificate(der=certificate.public_bytes(Encoding.DER), key=key)


def authenticate(client: UdsClient, certificate: ClientCertificate) -> None:
    """Show the certificate and prove that its key is held.

    Raises AccessDenied; NoAnswer or BadAnswer when an answer is lost again and again.
    """
    for left in reversed(range(EXCHANGES)):
        shown = client.authenticate(
            VERIFY_CERTIFICATE,
            bytes([NO_SPECIAL_CONFIGURATION]) + _counted(certificate.der) + _counted(b""),
            "the certificate",
        )
        challenge = _challenge(shown)
        try:
            done = client.authenticate(
                PROOF_OF_OWNERSHIP,
                _counted(certificate.proof(challenge)) + _counted(b""),
                "the proof of ownership",
                tries=1,
            )
        except (NoAnswer, BadAnswer):
            if not left:
                raise
            continue
        if done[:1] != bytes([COMPLETE]):
            raise AccessDenied(f"the ECU did not complete the authentication (it says {done[:1].hex()})")
        return


def deauthenticate(client: UdsClient) -> None:
    """Give the access back. Raises FlashError."""
    said = client.authenticate(DEAUTHENTICATE, b"", "the end of the authentication")
    if said[:1] != bytes([DEAUTHENTICATED]):
        raise BadAnswer(f"the ECU did not end the authentication (it says {said[:1].hex()})")


def _challenge(shown: bytes) -> bytes:
    """The challenge of an answer `11 lenChallenge challenge lenEphemeral ephemeral`."""
    if shown[:1] != bytes([OWNERSHIP_NEEDED]):
        raise AccessDenied(f"the ECU asks for no proof of ownership (it says {shown[:1].hex()})")
    challenge, rest = _take(shown[1:])
    _, rest = _take(rest)
    if rest:
        raise BadAnswer(f"the ECU's challenge is followed by {len(rest)} bytes too many")
    if len(challenge) < LEAST_CHALLENGE_BYTES:
        raise AccessDenied(f"the ECU's challenge has {len(challenge)} bytes: too short to be signed")
    return challenge


def _counted(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _take(raw: bytes) -> tuple[bytes, bytes]:
    """A value behind its 16-bit length, and what follows it."""
    size = int.from_bytes(raw[:2], "big")
    if len(raw) < 2 + size:
        raise BadAnswer("the ECU's answer to Authentication ends too early")
    return raw[2 : 2 + size], raw[2 + size :]
