"""Certificates over HTTP: enrolment with a request, renewal by the last key, revocation; an attack table."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.access.certificates import MOST_A_DAY
from control_plane.access.service import AccessService
from control_plane.db import Connection, Database
from control_plane.embedded.nats import BrokerUser
from shared.certificates import proof_of, truck_uri

PEM = serialization.Encoding.PEM


def csr_of(key: Any, common_name: str = "truck-666", *names: str) -> x509.CertificateSigningRequest:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    if names:
        uris = [x509.UniformResourceIdentifier(one) for one in names]
        made = made.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    return made.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem_of(csr: x509.CertificateSigningRequest) -> str:
    return csr.public_bytes(PEM).decode()


class Truck:
    """A truck by hand: its secrets, its key, and what it was given."""

    def __init__(self, http: httpx.AsyncClient, device_id: str = "truck-001") -> None:
        self.http = http
        self.device_id = device_id
        self.own = {"http_token": secrets.token_urlsafe(32), "mqtt_password": secrets.token_urlsafe(32)}
        self.key: Any = ec.generate_private_key(ec.SECP256R1())
        self.certificate = ""

    @property
    def serial(self) -> str:
        return f"{x509.load_pem_x509_certificate(self.certificate.encode()).serial_number:x}"

    async def enrol(self, token: str, **more: Any) -> httpx.Response:
        body = {"enrolment_token": token, "csr": pem_of(csr_of(self.key)), **self.own, **more}
        answer = await self.http.post("/api/v1/enrolments", json=body)
        if answer.status_code == 200:
            self.certificate = answer.json()["certificate"] or ""
        return answer

    async def renew(self, key: Any, **changed: Any) -> httpx.Response:
        csr = csr_of(key)
        proof = proof_of(self.key, self.device_id, csr.public_bytes(serialization.Encoding.DER))
        body = {"csr": pem_of(csr), "serial": self.serial, "proof": base64.b64encode(proof).decode()}
        return await self.ask({**body, **changed})

    async def ask(self, body: dict[str, Any], **more: str) -> httpx.Response:
        where = more.get("device_id", self.device_id)
        bearer = {"Authorization": f"Bearer {more.get('token', self.own['http_token'])}"}
        body = {name: value for name, value in body.items() if value is not None}
        return await self.http.post(f"/api/v1/devices/{where}/certificate", json=body, headers=bearer)


async def new_token(operator: httpx.AsyncClient, device_id: str = "truck-001") -> str:
    await operator.post("/api/v1/devices", json={"device_id": device_id})
    answer = await operator.post(f"/api/v1/devices/{device_id}/enrolment-tokens")
    return str(answer.json()["token"])


@pytest.fixture
async def truck(operator: httpx.AsyncClient, anyone: httpx.AsyncClient) -> Truck:
    """Enrolled, with a certificate."""
    made = Truck(anyone)
    answer = await made.enrol(await new_token(operator))
    assert answer.status_code == 200, answer.text
    return made


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


async def states(operator: httpx.AsyncClient, device_id: str = "truck-001") -> list[tuple[str, str]]:
    items = (await operator.get(f"/api/v1/devices/{device_id}/certificates")).json()["items"]
    return [(one["state"], one["issued_for"]) for one in items]


@pytest.mark.parametrize("key", [new_key(), ed25519.Ed25519PrivateKey.generate()], ids=["p256", "ed25519"])
async def test_what_stands_in_a_certificate_is_the_offices_word(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient, key: Any
) -> None:
    truck = Truck(anyone)
    truck.key = key
    evil = csr_of(key, "truck-002", "urn:quarry:office", truck_uri("truck-002", "1"))
    answer = await truck.enrol(await new_token(operator), csr=pem_of(evil))
    given = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert given.public_key() == key.public_key()
    [name] = given.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "truck-001"
    names = given.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in names] == [truck_uri("truck-001", f"{given.serial_number:x}")]
    assert not given.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = given.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    [signer] = x509.load_pem_x509_certificates(answer.json()["ca_chain"].encode())
    given.verify_directly_issued_by(signer)
    assert timedelta(days=89) < given.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=90)


async def test_a_repeat_with_the_same_key_is_the_same_answer_and_another_key_is_none(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    truck, token = Truck(anyone), await new_token(operator)
    first = await truck.enrol(token)
    assert (await truck.enrol(token)).json() == first.json()
    assert await states(operator) == [("live", "enrolment")]
    refused(await truck.enrol(token, csr=pem_of(csr_of(new_key()))), 403, "enrolment_token_used")
    refused(await truck.enrol(token, csr=None), 403, "enrolment_token_used")
    thief = Truck(anyone)
    thief.key = truck.key
    refused(await thief.enrol(token), 403, "enrolment_token_used")
    assert await states(operator) == [("live", "enrolment")]


def _rsa() -> str:
    return pem_of(csr_of(rsa.generate_private_key(65537, 2048)))


def _forged() -> str:
    """A request for a key that its sender does not have."""
    der = bytearray(csr_of(new_key()).public_bytes(serialization.Encoding.DER))
    other = (
        new_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    at = bytes(der).index(other[:26])
    der[at : at + len(other)] = other
    return "\n".join(
        [
            "-----BEGIN CERTIFICATE REQUEST-----",
            base64.b64encode(der).decode(),
            "-----END CERTIFICATE REQUEST-----",
        ]
    )


BAD_CSRS: dict[str, Callable[[], str]] = {
    "no PEM": lambda: "hello",
    "empty": lambda: "",
    "PEM of nothing": lambda: (
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    ),
    "a certificate": lambda: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "RSA": _rsa,
    "P-384": lambda: pem_of(csr_of(ec.generate_private_key(ec.SECP384R1()))),
    "secp256k1": lambda: pem_of(csr_of(ec.generate_private_key(ec.SECP256K1()))),
    "another's key": _forged,
    "NUL": lambda: "\x00" * 100,
}


@pytest.mark.parametrize("name", BAD_CSRS)
async def test_a_bad_request_burns_no_token(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient, name: str
) -> None:
    truck, token = Truck(anyone), await new_token(operator)
    refused(await truck.enrol(token, csr=BAD_CSRS[name]()), 422, "bad_csr")
    assert (await truck.enrol(token)).status_code == 200


async def test_a_request_that_is_too_large_is_not_read(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    truck, token = Truck(anyone), await new_token(operator)
    refused(await truck.enrol(token, csr="A" * 5000), 422, "invalid")
    assert (await truck.enrol(token)).status_code == 200


async def test_the_next_certificate_leaves_the_last_one_until_it_has_shown_itself(
    truck: Truck, operator: httpx.AsyncClient, moved: list[timedelta]
) -> None:
    moved[0] = timedelta(days=60)
    second_key = new_key()
    second = await truck.renew(second_key)
    assert second.status_code == 200, second.text
    assert await states(operator) == [("live", "renewal"), ("live", "enrolment")]
    # The answer was lost: the same key asks again, by the first certificate still.
    assert (await truck.renew(second_key)).json()["certificate"] == second.json()["certificate"]
    assert await states(operator) == [("live", "renewal"), ("live", "enrolment")]
    first_serial = truck.serial
    truck.key, truck.certificate = second_key, second.json()["certificate"]
    moved[0] = timedelta(days=121)
    third = await truck.renew(new_key())
    assert third.status_code == 200, third.text
    assert await states(operator) == [("live", "renewal"), ("live", "renewal"), ("replaced", "enrolment")]
    refused(await truck.renew(new_key(), serial=first_serial), 403, "certificate_replaced")


async def test_the_same_key_may_go_on(truck: Truck, moved: list[timedelta]) -> None:
    moved[0] = timedelta(days=60)
    answer = await truck.renew(truck.key)
    assert answer.status_code == 200
    assert answer.json()["certificate"] != truck.certificate, "not the one of two months ago"


@pytest.mark.parametrize(
    ("days", "code"),
    [(89, None), (91, None), (119, None), (121, "certificate_grace_over"), (4000, "certificate_grace_over")],
)
async def test_who_was_away_comes_back_while_the_grace_lasts(
    truck: Truck, moved: list[timedelta], days: int, code: str | None
) -> None:
    moved[0] = timedelta(days=days)
    answer = await truck.renew(new_key())
    if code is None:
        given = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
        assert given.not_valid_after_utc - datetime.now(UTC) > timedelta(days=days + 89)
    else:
        refused(answer, 403, code)
        assert "enrolment token" in answer.json()["advice"]


async def _proof_of_another_request(truck: Truck) -> httpx.Response:
    stale = proof_of(truck.key, truck.device_id, b"another request")
    return await truck.renew(new_key(), proof=base64.b64encode(stale).decode())


async def _proof_for_another_truck(truck: Truck) -> httpx.Response:
    key = new_key()
    csr = csr_of(key)
    proof = proof_of(truck.key, "truck-002", csr.public_bytes(serialization.Encoding.DER))
    return await truck.renew(key, csr=pem_of(csr), proof=base64.b64encode(proof).decode())


async def _by_the_new_key_itself(truck: Truck) -> httpx.Response:
    key = new_key()
    csr = csr_of(key)
    proof = proof_of(key, truck.device_id, csr.public_bytes(serialization.Encoding.DER))
    return await truck.renew(key, csr=pem_of(csr), proof=base64.b64encode(proof).decode())


ATTACKS: dict[str, tuple[Callable[[Truck], Any], int, str]] = {
    "a stolen token alone": (lambda t: t.ask({"csr": pem_of(csr_of(new_key()))}), 403, "no_proof"),
    "the new key vouches for itself": (_by_the_new_key_itself, 403, "bad_proof"),
    "a proof of another request": (_proof_of_another_request, 403, "bad_proof"),
    "a proof for another truck": (_proof_for_another_truck, 403, "bad_proof"),
    "an unknown certificate": (lambda t: t.renew(new_key(), serial="abc"), 403, "unknown_certificate"),
    "half a proof": (lambda t: t.renew(new_key(), proof=None), 422, "invalid"),
    "the other half": (lambda t: t.renew(new_key(), serial=None), 422, "invalid"),
    "no base64": (lambda t: t.renew(new_key(), proof="%%%"), 422, "invalid"),
    "an empty proof": (lambda t: t.renew(new_key(), proof=""), 403, "bad_proof"),
    "too much proof": (lambda t: t.renew(new_key(), proof="A" * 1000), 422, "invalid"),
    "a bad request": (lambda t: t.renew(new_key(), csr="hello"), 422, "bad_csr"),
    "no bearer": (
        lambda t: t.ask({"csr": pem_of(csr_of(new_key()))}, token="x" * 43),
        401,
        "unauthenticated",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_gets_no_certificate(truck: Truck, operator: httpx.AsyncClient, name: str) -> None:
    act, status, code = ATTACKS[name]
    refused(await act(truck), status, code)
    assert await states(operator) == [("live", "enrolment")]


async def test_a_truck_can_not_renew_another(
    truck: Truck, operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    other = Truck(anyone, "truck-002")
    assert (await other.enrol(await new_token(operator, "truck-002"))).status_code == 200
    body = {"csr": pem_of(csr_of(new_key()))}
    refused(await truck.ask(body, device_id="truck-002"), 403, "forbidden")
    # Its own door, by the other's certificate.
    refused(await truck.renew(new_key(), serial=other.serial), 403, "unknown_certificate")
    # A copied data folder: two trucks must not have one key.
    refused(await truck.renew(other.key), 422, "key_in_use")
    refused(
        await operator.post(f"/api/v1/devices/{truck.device_id}/certificate", json=body), 403, "forbidden"
    )


async def test_renewals_are_limited(truck: Truck, operator: httpx.AsyncClient) -> None:
    for _ in range(MOST_A_DAY):
        assert (await truck.renew(new_key())).status_code == 200
    refused(await truck.renew(new_key()), 429, "too_many")
    assert len([one for one, _ in await states(operator) if one == "live"]) == 2


async def test_records_are_bounded(truck: Truck, database: Database, moved: list[timedelta]) -> None:
    for n in range(25):
        moved[0] = timedelta(days=60 * (n + 1))
        await database.fetch("UPDATE device_certificates SET issued_at = issued_at - interval '60 days'")
        key = new_key()
        answer = await truck.renew(key)
        assert answer.status_code == 200, answer.text
        truck.key, truck.certificate = key, answer.json()["certificate"]
    rows = await database.fetch("SELECT state FROM device_certificates")
    assert len(rows) <= 21
    assert [row["state"] for row in rows].count("live") == 2


async def test_a_truck_of_before_gets_its_first_by_its_token_once(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    truck = Truck(anyone)
    answer = await truck.enrol(await new_token(operator), csr=None)
    assert (answer.status_code, answer.json()["certificate"]) == (200, None)
    body = {"csr": pem_of(csr_of(truck.key))}
    first = await truck.ask(body)
    assert first.status_code == 200, first.text
    assert await states(operator) == [("live", "first")]
    refused(await truck.ask({"csr": pem_of(csr_of(new_key()))}), 403, "no_proof")


async def test_enrolling_anew_replaces_the_certificates(
    truck: Truck, operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    again = Truck(anyone)
    assert (await again.enrol(await new_token(operator))).status_code == 200
    assert await states(operator) == [("live", "enrolment"), ("replaced", "enrolment")]
    # Even with the new token the old key asks for nothing.
    truck.own = again.own
    refused(await truck.renew(new_key()), 403, "certificate_replaced")


async def test_a_revoked_truck_has_nothing_left(
    truck: Truck,
    operator: httpx.AsyncClient,
    anyone: httpx.AsyncClient,
    broker_told: list[list[BrokerUser]],
) -> None:
    open_token = await new_token(operator)
    answer = await operator.post("/api/v1/devices/truck-001/revocation")
    assert answer.json() == {"device_id": "truck-001", "credential": True, "certificates": 1}
    assert [one.name for one in broker_told[-1]] == ["quarry.office"]
    refused(await truck.renew(new_key()), 401, "unauthenticated")
    refused(await truck.enrol(open_token), 403, "bad_enrolment_token")
    assert await states(operator) == [("revoked", "enrolment")]
    again = await operator.post("/api/v1/devices/truck-001/revocation")
    assert again.json() == {"device_id": "truck-001", "credential": False, "certificates": 0}
    # Only a person lets it in again, and then with other secrets; the old certificate stays revoked.
    back = Truck(anyone)
    assert (await back.enrol(await new_token(operator))).status_code == 200
    truck.own = back.own
    refused(await truck.renew(new_key()), 403, "certificate_revoked")


async def test_who_may_revoke(truck: Truck, anyone: httpx.AsyncClient, operator: httpx.AsyncClient) -> None:
    bearer = {"Authorization": f"Bearer {truck.own['http_token']}"}
    for path, ask in (("revocation", anyone.post), ("certificates", anyone.get)):
        refused(await ask(f"/api/v1/devices/truck-001/{path}"), 401, "unauthenticated")
        refused(await ask(f"/api/v1/devices/truck-001/{path}", headers=bearer), 403, "forbidden")
    refused(await operator.post("/api/v1/devices/nobody/revocation"), 404, "unknown_device")
    refused(await operator.get("/api/v1/devices/nobody/certificates"), 404, "unknown_device")


async def test_no_private_word_is_told(truck: Truck, operator: httpx.AsyncClient) -> None:
    told = json.dumps((await operator.get("/api/v1/devices/truck-001/certificates")).json())
    assert "BEGIN" not in told


class Director:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    async def gateway_key_told(
        self, connection: Connection, device_id: str, public_key: str, *, replace: bool
    ) -> None:
        self.told.append((device_id, public_key, replace))


async def test_the_manifest_key_goes_to_the_director(
    access: AccessService, operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    director = access.gateway_keys = Director()
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    truck, token = Truck(anyone), await new_token(operator)
    for _ in range(2):
        assert (await truck.enrol(token, manifest_key=pem)).status_code == 200
    assert (await truck.renew(new_key(), manifest_key=pem)).status_code == 200
    assert director.told == [("truck-001", pem, True), ("truck-001", pem, False)]
