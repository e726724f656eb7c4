"""Attacks on a firmware document and its image, by name; each ends with a refusal by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from shared.release import BadRelease, FirmwareSpec, Incompatible
from shared.trust.document import (
    MAX_DOCUMENT_BYTES,
    BadDocument,
    Expired,
    TrustError,
    Unsigned,
    WrongImage,
    make_document,
    read_unverified,
    verify_document,
)
from shared.trust.image import check_image
from shared.trust.keys import BadKey, key_ring, load_public, load_signer, new_key

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
IMAGE = bytes(range(256)) * 16
PRIVATE, PUBLIC = new_key()
THIEF_PRIVATE, _ = new_key()
RING = key_ring([PUBLIC])
SPEC = FirmwareSpec(
    kind="brake-controller",
    hardware=("B2", "B3"),
    version="1.1.0",
    release_counter=2,
    length=len(IMAGE),
    sha256=hashlib.sha256(IMAGE).hexdigest(),
)
DOCUMENT = make_document(SPEC, load_signer(PRIVATE), NOW + timedelta(days=365))


def resigned(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A document whose content was changed and which the right key signed all the same."""
    from tuf.api.metadata import Metadata, Targets

    obj = json.loads(DOCUMENT)
    change(obj["signed"])
    metadata: Metadata[Targets] = Metadata.from_dict(obj)
    metadata.sign(load_signer(PRIVATE))
    return metadata.to_bytes()


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    obj = json.loads(DOCUMENT)
    change(obj)
    return json.dumps(obj).encode()


def target_of(signed: dict[str, Any]) -> dict[str, Any]:
    [target] = signed["targets"].values()
    found: dict[str, Any] = target
    return found


def test_what_was_signed_is_what_is_read() -> None:
    assert verify_document(DOCUMENT, RING, now=NOW) == SPEC
    assert read_unverified(DOCUMENT) == SPEC


ATTACKS: dict[str, tuple[bytes, type[TrustError]]] = {
    "no signature": (edited(lambda d: d["signatures"].clear()), Unsigned),
    "signature of another key": (
        make_document(SPEC, load_signer(THIEF_PRIVATE), NOW + timedelta(days=365)),
        Unsigned,
    ),
    "another key's signature under the right key id": (
        edited(
            lambda d: d["signatures"][0].update(
                sig=json.loads(make_document(SPEC, load_signer(THIEF_PRIVATE), NOW + timedelta(days=365)))[
                    "signatures"
                ][0]["sig"]
            )
        ),
        Unsigned,
    ),
    "one signature twice for a threshold": (
        edited(lambda d: d["signatures"].append(d["signatures"][0])),
        BadDocument,
    ),
    "longer image": (edited(lambda d: target_of(d["signed"]).update(length=9)), Unsigned),
    "other hash": (edited(lambda d: target_of(d["signed"])["hashes"].update(sha256="0" * 64)), Unsigned),
    "other kind": (edited(lambda d: target_of(d["signed"])["custom"].update(kind="steering")), Unsigned),
    "other hardware": (edited(lambda d: target_of(d["signed"])["custom"].update(hardware=["B9"])), Unsigned),
    "other version": (edited(lambda d: target_of(d["signed"])["custom"].update(version="9.9")), Unsigned),
    "later expiry": (edited(lambda d: d["signed"].update(expires="2099-01-01T00:00:00Z")), Unsigned),
    "expired": (make_document(SPEC, load_signer(PRIVATE), NOW), Expired),
    "two targets": (
        resigned(lambda s: s["targets"].update({"x": dict(target_of(s))})),
        BadDocument,
    ),
    "no target": (resigned(lambda s: s["targets"].clear()), BadDocument),
    "no custom": (resigned(lambda s: target_of(s).pop("custom")), BadDocument),
    "hardware is a string": (resigned(lambda s: target_of(s)["custom"].update(hardware="B2")), BadDocument),
    "counter is a truth value": (
        resigned(lambda s: target_of(s)["custom"].update(release_counter=True)),
        BadDocument,
    ),
    "negative counter": (resigned(lambda s: target_of(s)["custom"].update(release_counter=-1)), BadDocument),
    "fields disagree with the name": (
        resigned(lambda s: target_of(s)["custom"].update(version="2.0")),
        BadDocument,
    ),
    "not sha256": (resigned(lambda s: target_of(s).update(hashes={"md5": "0" * 32})), BadDocument),
    "another role": (edited(lambda d: d["signed"].update(_type="timestamp")), BadDocument),
    "not json": (b"\x00\x01", BadDocument),
    "empty": (b"", BadDocument),
    "deep": (b"[" * 20000, BadDocument),
    "endless": (b" " * (MAX_DOCUMENT_BYTES + 1), BadDocument),
    "a list": (b"[]", BadDocument),
    "cut": (DOCUMENT[:-20], BadDocument),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_document_under_attack_is_refused_by_name(name: str) -> None:
    raw, refusal = ATTACKS[name]
    with pytest.raises(TrustError) as caught:
        verify_document(raw, RING, now=NOW)
    assert type(caught.value) is refusal


def test_a_threshold_needs_different_keys() -> None:
    with pytest.raises(Unsigned, match="1 valid"):
        verify_document(DOCUMENT, RING, now=NOW, threshold=2)


def test_no_keys_trust_nothing_and_a_threshold_of_zero_is_no_threshold() -> None:
    with pytest.raises(Unsigned):
        verify_document(DOCUMENT, {}, now=NOW)
    with pytest.raises(ValueError, match="threshold"):
        verify_document(DOCUMENT, RING, now=NOW, threshold=0)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (IMAGE[:-1] + b"\x00", "SHA-256"),
        (IMAGE[:-1], "has 4095 bytes"),
        (IMAGE + b"\x00", "longer"),
        (b"", "has 0 bytes"),
    ],
    ids=["tampered", "truncated", "oversized", "empty"],
)
def test_other_bytes_than_the_signed_ones_are_refused(image: bytes, says: str) -> None:
    with pytest.raises(WrongImage, match=says):
        check_image([image], SPEC)


def test_an_endless_image_is_refused_before_its_end() -> None:
    fed = 0

    def endless() -> Any:
        nonlocal fed
        while True:
            fed += 1
            yield b"\x00" * 1024

    with pytest.raises(WrongImage):
        check_image(endless(), SPEC)
    assert fed == 5


def test_the_signed_bytes_pass_in_any_chunks() -> None:
    check_image([IMAGE[:7], IMAGE[7:1000], b"", IMAGE[1000:]], SPEC)


@pytest.mark.parametrize(
    ("kind", "hardware"), [("steering", "B2"), ("brake-controller", "B1"), ("brake-controller", "b2")]
)
def test_a_firmware_for_another_component_does_not_fit(kind: str, hardware: str) -> None:
    with pytest.raises(Incompatible):
        SPEC.check_fits(kind=kind, hardware=hardware)
    SPEC.check_fits(kind="brake-controller", hardware="B3")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "a/b"},
        {"kind": "line\n"},
        {"hardware": ()},
        {"hardware": ("",)},
        {"version": ""},
        {"version": "../1"},
        {"length": 0},
        {"length": 2**40},
        {"sha256": "A" * 64},
    ],
)
def test_a_firmware_that_cannot_be_is_not_described(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "kind": "k",
        "hardware": ("h",),
        "version": "1",
        "release_counter": 0,
        "length": 1,
        "sha256": "0" * 64,
    }
    with pytest.raises(BadRelease):
        FirmwareSpec(**(fields | change))


def test_an_encrypted_key_needs_its_passphrase() -> None:
    private, public = new_key(b"a long passphrase")
    assert b"ENCRYPTED" in private
    assert load_signer(private, b"a long passphrase").public_key.keyid == load_public(public).keyid
    for wrong in (None, b"wrong"):
        with pytest.raises(BadKey):
            load_signer(private, wrong)


def test_only_ed25519_keys_are_taken() -> None:
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    pem = rsa.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(BadKey, match="Ed25519"):
        load_signer(pem)
    public = rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(BadKey, match="Ed25519"):
        load_public(public)
    for nonsense in (b"", b"-----BEGIN PUBLIC KEY-----\n"):
        with pytest.raises(BadKey):
            load_public(nonsense)
        with pytest.raises(BadKey):
            load_signer(nonsense)


def test_the_signature_is_plain_ed25519_over_canonical_json() -> None:
    """RFC 8032 over the OLPC canonical form: another implementation can check it."""
    obj = json.loads(DOCUMENT)
    canonical = json.dumps(obj["signed"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    private = serialization.load_pem_private_key(PRIVATE, None)
    assert isinstance(private, Ed25519PrivateKey)
    private.public_key().verify(bytes.fromhex(obj["signatures"][0]["sig"]), canonical)
