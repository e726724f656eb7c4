"""Certificates: what is read from files, what is sent, and what of an ECU's answer is not taken."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from udsoncan.Response import Response
from udsoncan.services.Authentication import Authentication

from firmware_flashers.base import AccessDenied, FlashError
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_auth import authenticate, deauthenticate, read_certificate
from firmware_flashers.uds_profile import UdsTiming
from shared.errors import ConfigError

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tester")])
NOW = datetime.datetime.now(datetime.UTC)
CHALLENGE = bytes(range(32))
TIMING = UdsTiming(silent_tries=2)


def certificate_of(key: Any) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
    )
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Writes a certificate and a key, of one another or not."""

    def write(key: Any, *, owner: Any = None, encryption: Any = None, mode: int = 0o600) -> tuple[Path, Path]:
        certificate, private = tmp_path / "crt", tmp_path / "key"
        certificate.write_bytes(certificate_of(owner or key).public_bytes(Encoding.PEM))
        private.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
        )
        private.chmod(mode)
        return certificate, private

    return write


def test_a_pair_is_read_and_hides_its_key(files: Any) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        pair = read_certificate(*files(key))
        assert "PrivateKey" not in repr(pair)
        public = key.public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(pair.proof(CHALLENGE), CHALLENGE)
        else:
            public.verify(pair.proof(CHALLENGE), CHALLENGE, ec.ECDSA(SHA256()))


def test_what_is_no_pair_is_refused_by_its_key(files: Any, tmp_path: Path) -> None:
    good = ed25519.Ed25519PrivateKey.generate()
    table: list[tuple[tuple[Path, Path], str]] = []

    def expect(pair: tuple[Path, Path], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            read_certificate(*pair)
        table.append((pair, named))

    expect((tmp_path / "none", tmp_path / "none"), "security_certificate_file")
    expect(files(good, owner=ed25519.Ed25519PrivateKey.generate()), "is not the key of")
    expect(files(ec.generate_private_key(ec.SECP384R1())), "not on P-256")
    expect(files(rsa.generate_private_key(65537, 2048)), "neither Ed25519 nor on P-256")
    expect(files(good, encryption=BestAvailableEncryption(b"x")), "without a password")
    expect(files(good, mode=0o640), "chmod|can be opened by others")
    certificate, key = files(good)
    certificate.write_bytes(b"no certificate")
    expect((certificate, key), "security_certificate_file")
    certificate, key = files(good)
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    expect((certificate, key), "security_key_file")
    assert len(table) == 8


class Scripted:
    """A transport that gives these answers, one a request."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self._next: bytes | None = None

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self.sent.append(payload)
        self._next = self.answers.pop(0) if self.answers else None

    def receive(self, timeout_s: float) -> bytes | None:
        answer, self._next = self._next, None
        return answer

    def send_single(self, payload: bytes) -> None:
        self.sent.append(payload)


def counted(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


SHOWN = b"\x69\x01\x11" + counted(CHALLENGE) + counted(b"")
DONE = b"\x69\x03\x12" + counted(b"")


@pytest.fixture
def pair(files: Any) -> Any:
    return read_certificate(*files(ed25519.Ed25519PrivateKey.generate()))


def test_the_exchange_is_what_udsoncan_would_send_and_read(pair: Any) -> None:
    wire = Scripted(SHOWN, DONE, b"\x69\x00\x10")
    client = UdsClient(wire, TIMING)
    authenticate(client, pair)
    deauthenticate(client)
    tasks = Authentication.AuthenticationTask
    assert wire.sent == [
        Authentication.make_request(
            tasks.verifyCertificateUnidirectional, communication_configuration=0, certificate_client=pair.der
        ).get_payload(),
        Authentication.make_request(
            tasks.proofOfOwnership, proof_of_ownership_client=pair.proof(CHALLENGE)
        ).get_payload(),
        Authentication.make_request(tasks.deAuthenticate).get_payload(),
    ]
    for answer in (SHOWN, DONE):
        Authentication.interpret_response(Response.from_payload(answer))


def test_a_proof_whose_answer_is_lost_is_not_sent_again_but_made_anew(pair: Any) -> None:
    other = b"\x69\x01\x11" + counted(CHALLENGE[::-1]) + counted(b"")
    wire = Scripted(SHOWN, None, other, DONE)
    authenticate(UdsClient(wire, TIMING), pair)
    proofs = [one for one in wire.sent if one[:2] == b"\x29\x03"]
    assert len(proofs) == 2
    assert proofs[0] != proofs[1]


def test_it_is_bounded(pair: Any) -> None:
    wire = Scripted(*[SHOWN, None] * 10)
    with pytest.raises(FlashError) as caught:
        authenticate(UdsClient(wire, TIMING), pair)
    assert caught.value.code == "no_answer"
    assert len(wire.sent) == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"\x69\x01",
        b"\x69\x01\x12" + counted(CHALLENGE) + counted(b""),
        b"\x69\x01\x13" + counted(CHALLENGE) + counted(b""),
        b"\x69\x01\x11",
        b"\x69\x01\x11\x00",
        b"\x69\x01\x11\x00\x20" + CHALLENGE[:31],
        b"\x69\x01\x11" + counted(CHALLENGE),
        b"\x69\x01\x11" + counted(CHALLENGE) + b"\x00\x05",
        b"\x69\x01\x11" + counted(CHALLENGE) + counted(b"") + b"\x00",
        b"\x69\x01\x11" + counted(b"") + counted(b""),
        b"\x69\x01\x11" + counted(b"short") + counted(b""),
    ],
    ids=lambda raw: raw[:8].hex(),
)
def test_a_challenge_that_is_none_gets_no_proof(pair: Any, answer: bytes) -> None:
    wire = Scripted(*[answer] * 4)
    with pytest.raises(FlashError):
        authenticate(UdsClient(wire, TIMING), pair)
    assert not [one for one in wire.sent if one[:2] == b"\x29\x03"]


@pytest.mark.parametrize("said", [b"\x69\x03", b"\x69\x03\x11\x00\x00", b"\x69\x03\x10\x00\x00"])
def test_an_end_that_is_none_lets_nobody_in(pair: Any, said: bytes) -> None:
    with pytest.raises(AccessDenied):
        authenticate(UdsClient(Scripted(SHOWN, said), TIMING), pair)
