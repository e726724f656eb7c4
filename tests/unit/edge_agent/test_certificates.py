"""The truck's certificate: when the next one is due by any clock, and that a pair belongs together."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.office.certificates import (
    BadCertificate,
    Certificate,
    Standing,
    check_ours,
    make_csr,
    make_csr_and_proof,
    new_client_key,
    read_certificate,
    show_pair,
)
from edge_agent.office.renewal import Situation, why_ask
from shared.certificates import proves

BEGAN = datetime(2026, 12, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LIFE_S = 90 * 86400.0


def certificate(serial: str = "5f", life: timedelta = 90 * DAY) -> Certificate:
    return Certificate(serial=serial, not_before=BEGAN, not_after=BEGAN + life)


def made_for(key_pem: str, device_id: str) -> str:
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(95)
        .not_valid_before(BEGAN)
        .not_valid_after(BEGAN + 90 * DAY)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("at", "standing"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), Standing.NOT_YET),
        (BEGAN - timedelta(seconds=1), Standing.NOT_YET),
        (BEGAN, Standing.GOOD),
        (BEGAN + 59 * DAY, Standing.GOOD),
        (BEGAN + 68 * DAY, Standing.DUE),
        (BEGAN + 75 * DAY, Standing.DUE),
        (BEGAN + 76 * DAY, Standing.ENDS_SOON),
        (BEGAN + 90 * DAY, Standing.ENDED),
        (BEGAN + 9000 * DAY, Standing.ENDED),
    ],
)
def test_how_it_stands(at: datetime, standing: Standing) -> None:
    assert certificate().standing(at) is standing


def test_a_short_life_is_not_always_about_to_end() -> None:
    short = certificate(life=timedelta(days=7))
    assert short.standing(BEGAN + DAY) is Standing.GOOD
    assert short.standing(BEGAN + 6 * DAY) is Standing.ENDS_SOON


@given(st.integers(0, 2**159), st.integers(3600, 825 * 86400))
def test_due_after_two_thirds_and_well_before_the_end(serial: int, life_s: int) -> None:
    one = certificate(f"{serial:x}", timedelta(seconds=life_s))
    part = (one.due_at - one.not_before) / (one.not_after - one.not_before)
    assert 2 / 3 - 1e-6 <= part <= 3 / 4 + 1e-6
    assert one.due_at == certificate(f"{serial:x}", timedelta(seconds=life_s)).due_at, "over restarts too"


def test_a_fleet_does_not_renew_in_one_hour() -> None:
    due = {certificate(f"{n:x}").due_at.date() for n in range(500)}
    assert len(due) >= 7


def situation(standing: Standing | None, *, down_s: float = 0.0, given_s: float | None = None) -> Situation:
    return Situation(standing=standing, life_s=LIFE_S, link_down_s=down_s, given_s=given_s)


@pytest.mark.parametrize(
    ("now", "asks"),
    [
        (situation(None), True),
        (situation(Standing.GOOD), False),
        (situation(Standing.DUE), True),
        (situation(Standing.ENDS_SOON), True),
        (situation(Standing.ENDED), True),
        # A clock that says 1970 judges nothing, but a broker that is long away may not take the certificate.
        (situation(Standing.NOT_YET), False),
        (situation(Standing.NOT_YET, down_s=3601), True),
        (situation(Standing.GOOD, down_s=3599), False),
        (situation(Standing.GOOD, down_s=3601), True),
        # A clock a year ahead calls each new one ended: once a day is enough.
        (situation(Standing.ENDED, given_s=3600), False),
        (situation(Standing.ENDED, given_s=86401), True),
        (situation(Standing.GOOD, down_s=7200, given_s=3600), False),
    ],
)
def test_when_it_is_asked_for(now: Situation, asks: bool) -> None:
    assert (why_ask(now) is not None) is asks


def test_a_request_names_nobody_and_is_signed_by_its_key() -> None:
    key = new_client_key()
    csr = x509.load_pem_x509_csr(make_csr(key).encode())
    assert csr.is_signature_valid
    assert not list(csr.extensions)
    last = new_client_key()
    pem, proof = make_csr_and_proof(key, last, "truck-1")
    asked = x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER)
    holder = serialization.load_pem_private_key(last.encode(), None)
    assert isinstance(holder, ec.EllipticCurvePrivateKey)
    assert proves(holder.public_key(), proof, "truck-1", asked)
    assert not proves(holder.public_key(), proof, "truck-2", asked)
    assert not proves(holder.public_key(), proof, "truck-1", asked + b"\0")


def test_a_pair_belongs_together() -> None:
    key, other = new_client_key(), new_client_key()
    pem = made_for(key, "truck-1")
    check_ours(pem, key, "truck-1")
    for wrong_pem, wrong_key, device_id, says in (
        (pem, other, "truck-1", "another key"),
        (pem, key, "truck-2", "not for truck-2"),
        ("nothing", key, "truck-1", "can't be read"),
        (pem, "nothing", "truck-1", "private key"),
    ):
        with pytest.raises(BadCertificate, match=says):
            check_ours(wrong_pem, wrong_key, device_id)
    context = ssl.create_default_context()
    show_pair(context, key, pem)
    with pytest.raises(BadCertificate, match="can't be used"):
        show_pair(context, other, pem)
    assert read_certificate(pem).serial == "5f"
