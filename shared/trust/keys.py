"""Firmware keys: Ed25519 (RFC 8032) in PEM, private halves offline, public halves on trucks."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from shared.trust.document import TrustError


class BadKey(TrustError):
    """A key file can't be used."""

    code = "bad_key"
    advice = "Give an Ed25519 key in PEM, as `quarry release keygen` writes it, and its passphrase."


def new_key(passphrase: bytes | None = None) -> tuple[bytes, bytes]:
    """A fresh key pair as (private PEM in PKCS #8, public PEM); encrypted when a passphrase is given."""
    private = Ed25519PrivateKey.generate()
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return (
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection),
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def load_signer(private_pem: bytes, passphrase: bytes | None = None) -> CryptoSigner:
    """A signer of an Ed25519 private key. Raises BadKey."""
    try:
        private = serialization.load_pem_private_key(private_pem, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"the private key can't be read: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise BadKey("the private key is not an Ed25519 key")
    return CryptoSigner(private)


def load_public(public_pem: bytes) -> Key:
    """The public half; its key id is derived from it. Raises BadKey."""
    try:
        public = serialization.load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(f"the public key can't be read: {error}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise BadKey("the public key is not an Ed25519 key")
    return SSlibKey.from_crypto(public)


def key_ring(public_pems: list[bytes]) -> dict[str, Key]:
    """Provisioned keys by their key id. Raises BadKey."""
    return {key.keyid: key for key in map(load_public, public_pems)}


def load_role_key(public_pem: bytes) -> Key:
    """The public half of a repository key: Ed25519, or ECDSA P-256 as PKCS #11 tokens have. Raises BadKey."""
    try:
        public = serialization.load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(f"the public key can't be read: {error}") from error
    if isinstance(public, Ed25519PublicKey):
        return SSlibKey.from_crypto(public)
    if isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1):
        return SSlibKey.from_crypto(public)
    raise BadKey("the public key is neither Ed25519 nor ECDSA P-256")
