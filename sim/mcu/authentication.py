"""Authentication by certificate (0x29, ISO 14229-1:2020 clause 10.6, annex B.5): unidirectional APCE.

The tester sends a certificate that the ECU's CA has issued, gets a challenge, and answers with a signature
over it by the certificate's key: Ed25519, or ECDSA on P-256 with SHA-256. No session keys are made.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.errors import ConfigError
from sim.mcu.profile import Nrc, Refused, Sid, require_length

CHALLENGE_BYTES = 32

_JUDGED = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
}
_Key = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


class Task(IntEnum):
    """Sub-functions that this ECU has (table 74)."""

    DEAUTHENTICATE = 0x00
    VERIFY_CERTIFICATE = 0x01
    PROVE_OWNERSHIP = 0x03
    CONFIGURATION = 0x08


class Result(IntEnum):
    """authenticationReturnParameter (annex B.5)."""

    CONFIGURATION_APCE = 0x02
    DEAUTHENTICATED = 0x10
    CERTIFICATE_VERIFIED = 0x11
    AUTHENTICATED = 0x12


def load_ca(data: bytes) -> x509.Certificate:
    """A CA certificate in PEM or DER; raises ConfigError."""
    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        return load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the CA certificate can't be read: {error}") from error


class CertificateAccess:
    """Certificate, challenge and proof of one ECU. `utc_now` is its clock; `revoked` are serial numbers."""

    sid = Sid.AUTHENTICATION
    sub_functions = frozenset(Task)

    def __init__(
        self,
        ca: x509.Certificate,
        *,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        revoked: frozenset[int] = frozenset(),
    ) -> None:
        self._ca = ca
        self._utc_now = utc_now
        self._revoked = revoked
        self._awaited: tuple[bytes, _Key] | None = None
        self.unlocked = False

    def power_on(self) -> None:
        """Nobody is authenticated after a reset."""
        self.lock()

    def lock(self) -> None:
        """Forget the challenge and who was authenticated."""
        self._awaited = None
        self.unlocked = False

    def serve(self, body: bytes) -> bytes:
        """Answer one task; raises Refused."""
        task = Task(body[0])
        match task:
            case Task.DEAUTHENTICATE:
                require_length(body, 1)
                self.lock()
                return _answer(task, Result.DEAUTHENTICATED)
            case Task.CONFIGURATION:
                require_length(body, 1)
                return _answer(task, Result.CONFIGURATION_APCE)
            case Task.VERIFY_CERTIFICATE:
                return self._verify(body)
            case Task.PROVE_OWNERSHIP:
                return self._prove(body)

    def _verify(self, body: bytes) -> bytes:
        if len(body) < 2:
            raise Refused(Nrc.INCORRECT_LENGTH)
        certificate, _challenge = _fields(body[2:], 2)
        if not certificate:
            raise Refused(Nrc.INCORRECT_LENGTH)
        # No other configuration is agreed on: nothing after the authentication is secured.
        if body[1] != 0x00:
            raise Refused(Nrc.CONFIGURATION)
        self.lock()
        key = self._judge(certificate)
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._awaited = (challenge, key)
        return _answer(Task.VERIFY_CERTIFICATE, Result.CERTIFICATE_VERIFIED, challenge, b"")

    def _prove(self, body: bytes) -> bytes:
        proof, ephemeral = _fields(body[1:], 2)
        if not proof:
            raise Refused(Nrc.INCORRECT_LENGTH)
        if self._awaited is None:
            raise Refused(Nrc.SEQUENCE_ERROR)
        if ephemeral:
            raise Refused(Nrc.SESSION_KEY)
        (challenge, key), self._awaited = self._awaited, None
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(proof, challenge)
            else:
                key.verify(proof, challenge, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise Refused(Nrc.OWNERSHIP) from None
        self.unlocked = True
        return _answer(Task.PROVE_OWNERSHIP, Result.AUTHENTICATED, b"")

    def _judge(self, data: bytes) -> _Key:
        """The certificate's key; raises Refused with what is wrong first, from its form to its use."""
        try:
            certificate = x509.load_der_x509_certificate(data)
            extensions = certificate.extensions
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            raise Refused(Nrc.CERTIFICATE_FORMAT) from None
        if not _is_ours(key):
            raise Refused(Nrc.CERTIFICATE_TYPE)
        if certificate.issuer != self._ca.subject:
            raise Refused(Nrc.CERTIFICATE_CHAIN)
        try:
            certificate.verify_directly_issued_by(self._ca)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            raise Refused(Nrc.CERTIFICATE_SIGNATURE) from None
        if not certificate.not_valid_before_utc <= self._utc_now() <= certificate.not_valid_after_utc:
            raise Refused(Nrc.CERTIFICATE_TIME)
        if certificate.serial_number in self._revoked:
            raise Refused(Nrc.CERTIFICATE_INVALID)
        _judge_use(extensions)
        assert isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey)
        return key


def _is_ours(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey)


def _judge_use(extensions: x509.Extensions) -> None:
    """A tester's certificate: no CA's, for signatures, and for clients where it says for whom."""
    for extension in extensions:
        value = extension.value
        if extension.critical and extension.oid not in _JUDGED:
            raise Refused(Nrc.CERTIFICATE_CONTENT)
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Refused(Nrc.CERTIFICATE_TYPE)
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise Refused(Nrc.CERTIFICATE_CONTENT)
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH not in value:
            raise Refused(Nrc.CERTIFICATE_SCOPE)


def _fields(data: bytes, count: int) -> list[bytes]:
    """So many byte strings, each after its length of two bytes; refuses what does not fit exactly."""
    found: list[bytes] = []
    for _ in range(count):
        size = int.from_bytes(data[:2], "big")
        if len(data) < 2 + size:
            raise Refused(Nrc.INCORRECT_LENGTH)
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    if data:
        raise Refused(Nrc.INCORRECT_LENGTH)
    return found


def _answer(task: Task, result: Result, *fields: bytes) -> bytes:
    lengths = b"".join(len(one).to_bytes(2, "big") + one for one in fields)
    return bytes([Sid.AUTHENTICATION + 0x40, task, result]) + lengths
