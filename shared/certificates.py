"""A truck's client certificate in the words of both ends: its names, its keys, who may ask for the next.

The office alone decides what stands in a certificate; of a request (PKCS #10, RFC 2986) it takes the public
key. The next certificate is given to whoever proves to have the last one's key (`proof_of`).
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.ids import check_id

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey
PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey

MOST_CSR_BYTES = 4096
"""A request with a P-256 key has about 500 bytes in PEM."""
MOST_CHAIN_BYTES = 16 * 1024
OFFICE_URI = "urn:quarry:office"
_PROOF = b"quarry-ota next certificate 1\n"


def truck_uri(device_id: str, serial: str) -> str:
    """The name in one certificate of a truck (RFC 5280, 4.2.1.6, URI), which no other certificate has."""
    return f"urn:quarry:truck:{check_id(device_id, 'device_id')}:{serial}"


def is_taken(key: object) -> bool:
    """Whether a public or private key is of a kind that certificates of trucks have: P-256 or Ed25519."""
    if isinstance(key, (EllipticCurvePublicKey, EllipticCurvePrivateKey)):
        return isinstance(key.curve, SECP256R1)
    return isinstance(key, (Ed25519PublicKey, Ed25519PrivateKey))


def key_sha256(key: PublicKey) -> str:
    """SHA-256 of a key's SubjectPublicKeyInfo (RFC 5280, 4.1.2.7), in hex."""
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _to_prove(device_id: str, csr_der: bytes) -> bytes:
    return _PROOF + device_id.encode() + b"\n" + hashlib.sha256(csr_der).digest()


def proof_of(key: PrivateKey, device_id: str, csr_der: bytes) -> bytes:
    """Sign a request for a truck's next certificate with the last one's key."""
    message = _to_prove(device_id, csr_der)
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ECDSA(hashes.SHA256()))


def proves(key: PublicKey, proof: bytes, device_id: str, csr_der: bytes) -> bool:
    """Whether the holder of `key` asks for this."""
    message = _to_prove(device_id, csr_der)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(proof, message)
        else:
            key.verify(proof, message, ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
