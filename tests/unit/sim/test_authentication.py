"""0x29: who gets in by a certificate, and with which code everybody else is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from shared.errors import ConfigError
from sim.mcu.assembly import McuSettings
from sim.mcu.authentication import CertificateAccess, load_ca
from sim.mcu.profile import Refused

NOW = datetime(2026, 11, 25, tzinfo=UTC)
DAY = timedelta(days=1)
CA_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_CA_KEY = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
REVOKED = 77


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certify(
    public: Any,
    *,
    subject: str = "tester 7",
    issuer: str = "workshop CA",
    signer: Any = CA_KEY,
    since: datetime = NOW - DAY,
    until: datetime = NOW + DAY,
    serial: int = 5,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(since)
        .not_valid_after(until)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer, algorithm).public_bytes(Encoding.DER)


CA = certify(CA_KEY.public_key(), subject="workshop CA")


def field(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


@pytest.fixture
def access() -> CertificateAccess:
    return CertificateAccess(load_ca(CA), utc_now=lambda: NOW, revoked=frozenset({REVOKED}))


def key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, True, False, False, False, False, False, False)


def is_in(access: CertificateAccess) -> bool:
    return access.unlocked


def challenge_for(access: CertificateAccess, certificate: bytes) -> bytes:
    answer = access.serve(b"\x01\x00" + field(certificate) + field(b""))
    assert answer[:3] == b"\x69\x01\x11"
    assert answer[3:5] == b"\x00\x20"
    assert answer[37:] == b"\x00\x00", "no ephemeral key"
    return answer[5:37]


def prove(access: CertificateAccess, proof: bytes, *, ephemeral: bytes = b"") -> bytes:
    return access.serve(b"\x03" + field(proof) + field(ephemeral))


KEYS: dict[str, tuple[Any, Callable[[bytes], bytes]]] = {
    "ed25519": (ED25519.public_key(), ED25519.sign),
    "p-256": (P256.public_key(), lambda data: P256.sign(data, ec.ECDSA(hashes.SHA256()))),
}


@pytest.mark.parametrize("kind", KEYS)
def test_the_owner_of_a_certified_key_gets_in(access: CertificateAccess, kind: str) -> None:
    public, sign = KEYS[kind]
    usage = (
        (key_usage(signs=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName([x509.DNSName("tester-7")]), False),
    )
    challenge = challenge_for(access, certify(public, extensions=usage))
    assert not is_in(access)
    assert prove(access, sign(challenge)) == b"\x69\x03\x12\x00\x00"
    assert is_in(access)
    assert access.serve(b"\x00") == b"\x69\x00\x10"
    assert not is_in(access)
    assert access.serve(b"\x08") == b"\x69\x08\x02"


def rsa_key() -> Any:
    return rsa.generate_private_key(65537, 2048).public_key()


UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
REFUSED: dict[str, tuple[Callable[[], bytes], int]] = {
    "over": (lambda: certify(KEYS["ed25519"][0], since=NOW - 2 * DAY, until=NOW - DAY), 0x50),
    "not yet": (lambda: certify(KEYS["ed25519"][0], since=NOW + DAY, until=NOW + 2 * DAY), 0x50),
    "signed by another key in the CA's name": (lambda: certify(KEYS["p-256"][0], signer=OTHER_CA_KEY), 0x51),
    "signed by itself in the CA's name": (lambda: certify(P256.public_key(), signer=P256), 0x51),
    "a bit changed": (lambda: certify(KEYS["p-256"][0]).replace(b"tester 7", b"tester 8"), 0x51),
    "of another CA": (lambda: certify(KEYS["p-256"][0], issuer="other CA", signer=OTHER_CA_KEY), 0x52),
    "RSA": (lambda: certify(rsa_key()), 0x53),
    "another curve": (
        lambda: certify(ec.generate_private_key(ec.SECP384R1()).public_key()),
        0x53,
    ),
    "a CA": (
        lambda: certify(
            KEYS["p-256"][0], extensions=((x509.BasicConstraints(ca=True, path_length=None), True),)
        ),
        0x53,
    ),
    "no certificate": (lambda: b"certificate", 0x54),
    "half of one": (lambda: certify(KEYS["p-256"][0])[:100], 0x54),
    "PEM": (
        lambda: x509.load_der_x509_certificate(certify(KEYS["p-256"][0])).public_bytes(Encoding.PEM),
        0x54,
    ),
    "a key that may not sign": (
        lambda: certify(KEYS["p-256"][0], extensions=((key_usage(signs=False), True),)),
        0x55,
    ),
    "a critical extension that nobody knows": (
        lambda: certify(KEYS["p-256"][0], extensions=((UNKNOWN, True),)),
        0x55,
    ),
    "for servers": (
        lambda: certify(
            KEYS["p-256"][0],
            extensions=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),),
        ),
        0x56,
    ),
    "revoked": (lambda: certify(KEYS["p-256"][0], serial=REVOKED), 0x57),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_flaw_of_a_certificate_has_its_code(access: CertificateAccess, case: str) -> None:
    certificate, nrc = REFUSED[case]
    with pytest.raises(Refused) as refused:
        access.serve(b"\x01\x00" + field(certificate()) + field(b""))
    assert refused.value.nrc == nrc
    with pytest.raises(Refused) as refused:
        prove(access, bytes(64))
    assert refused.value.nrc == 0x24, "and there is no challenge to answer"


MALFORMED = {
    "no field": b"\x01\x00",
    "no configuration": b"\x01",
    "one field": b"\x01\x00" + field(b"x"),
    "a field that ends early": b"\x01\x00\x00\x05abc",
    "bytes behind": b"\x01\x00" + field(b"x") + field(b"") + b"\x00",
    "an empty certificate": b"\x01\x00" + field(b"") + field(b""),
    "an empty proof": b"\x03" + field(b"") + field(b""),
    "a proof alone": b"\x03" + field(bytes(64)),
    "deauthenticate with more": b"\x00\x00",
    "configuration with more": b"\x08\x00",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_no_certificate(access: CertificateAccess, body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        access.serve(body)
    assert refused.value.nrc == 0x13


def test_a_challenge_is_answered_once_and_rightly(access: CertificateAccess) -> None:
    certificate = certify(ED25519.public_key())
    first = challenge_for(access, certificate)
    second = challenge_for(access, certificate)
    assert first != second
    for proof in (ED25519.sign(first), ED25519.sign(second)):
        with pytest.raises(Refused) as refused:
            prove(access, proof)
        assert refused.value.nrc == (0x58 if proof == ED25519.sign(first) else 0x24)
    challenge = challenge_for(access, certificate)
    with pytest.raises(Refused) as refused:
        prove(access, ED25519.sign(challenge), ephemeral=bytes(32))
    assert refused.value.nrc == 0x5B, "no session keys here"
    prove(access, ED25519.sign(challenge))
    assert is_in(access)
    challenge_for(access, certificate)
    assert not is_in(access), "who begins anew is out until he is in again"


def test_another_communication_configuration_is_refused(access: CertificateAccess) -> None:
    with pytest.raises(Refused) as refused:
        access.serve(b"\x01\x01" + field(certify(P256.public_key())) + field(b""))
    assert refused.value.nrc == 0x5C


def test_a_key_of_another_kind_never_proves(access: CertificateAccess) -> None:
    challenge = challenge_for(access, certify(P256.public_key()))
    with pytest.raises(Refused) as refused:
        prove(access, ED25519.sign(challenge))
    assert refused.value.nrc == 0x58


# --- in the ECU ---------------------------------------------------------------------------------


def test_in_the_ecu_a_session_change_and_a_reset_end_it(make_ecu: Any) -> None:
    real_now = datetime.now(UTC)
    mine = certify(ED25519.public_key(), since=real_now - DAY, until=real_now + DAY)
    ecu = make_ecu(security_ca=CA)

    def authenticate() -> None:
        ecu.ask("1003")
        assert ecu.ask("2908") == "7f297f", "only where it is programmed"
        ecu.ask("1002")
        assert ecu.ask("2908") == "690802"
        assert ecu.ask("2ef15a41") == "7f2e33"
        answer = bytes.fromhex(ecu.ask(b"\x29\x01\x00" + field(mine) + field(b"")))
        assert ecu.ask(b"\x29\x03" + field(ED25519.sign(answer[5:37])) + field(b"")) == "6903120000"
        assert ecu.ask("2ef15a41") == "6ef15a"

    authenticate()
    assert ecu.ask("2701") == "7f2711", "no other access"
    assert [ecu.ask(f"29{task:02x}") for task in (2, 4, 5, 6, 7, 9)] == ["7f2912"] * 6
    ecu.ask("1002")
    assert ecu.ask("2ef15a41") == "7f2e33"
    authenticate()
    assert ecu.ask("2900") == "690010"
    assert ecu.ask("2ef15a41") == "7f2e33"
    authenticate()
    ecu.now += 5.0
    ecu.ask("1003")
    authenticate()
    ecu.power_on()
    ecu.ask("1003")
    ecu.ask("1002")
    assert ecu.ask("2ef15a41") == "7f2e33"


@pytest.mark.parametrize(
    "words",
    [{}, {"security_ca": b"nonsense"}, {"security_ca": CA, "security_secret": bytes(32)}],
    ids=["neither", "no certificate", "both"],
)
def test_an_ecu_has_one_way_in(tmp_path: Any, words: dict[str, bytes], signer: Any) -> None:
    from sim.mcu.profile import EcuIdentity

    with pytest.raises(ConfigError):
        McuSettings(
            flash_file=tmp_path / "flash.bin",
            identity=EcuIdentity(kind="k", hardware="h"),
            public_keys=(signer.public,),
            **words,  # type: ignore[arg-type]
        )
