"""Enrolment over HTTP: one-time tokens, lost answers, replaced credentials, attacks."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import bcrypt
import httpx
import pytest
from fastapi import FastAPI

from control_plane.access import api as access_api
from control_plane.access.attempts import WrongAttempts
from control_plane.access.certificates_api import BrokerForTrucks
from control_plane.access.service import AccessService
from control_plane.db import Database
from control_plane.embedded.nats import BrokerUser


def _secrets() -> dict[str, str]:
    return {"http_token": secrets.token_urlsafe(32), "mqtt_password": secrets.token_urlsafe(32)}


async def _token(operator: httpx.AsyncClient, device_id: str = "truck-001") -> str:
    await operator.post("/api/v1/devices", json={"device_id": device_id})
    answer = await operator.post(f"/api/v1/devices/{device_id}/enrolment-tokens")
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    token: str = answer.json()["token"]
    return token


async def _enrol(client: httpx.AsyncClient, token: str, own: dict[str, str]) -> httpx.Response:
    return await client.post("/api/v1/enrolments", json={"enrolment_token": token, **own})


async def _who(client: httpx.AsyncClient, token: str) -> str:
    """How the office sees a bearer: operators may list devices, trucks may not, others are unknown."""
    answer = await client.get("/api/v1/devices", headers={"Authorization": f"Bearer {token}"})
    return {200: "operator", 403: "truck", 401: "nobody"}[answer.status_code]


def _refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_truck_trades_its_token_for_its_own_secrets(
    operator: httpx.AsyncClient,
    anyone: httpx.AsyncClient,
    broker_told: list[list[BrokerUser]],
    database: Database,
) -> None:
    token, own = await _token(operator), _secrets()
    assert await _who(anyone, own["http_token"]) == "nobody"
    answer = await _enrol(anyone, token, own)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "device_id": "truck-001",
        "mqtt_host": "broker.test",
        "mqtt_port": 1883,
        "mqtt_tls": False,
        "mqtt_ca": "",
        "certificate": None,
        "ca_chain": "",
    }
    assert await _who(anyone, own["http_token"]) == "truck", "and at once, though it was unknown a moment ago"

    office, truck = broker_told[-1]
    assert office.name == "quarry.office"
    assert truck.name == "truck-001"
    assert set(truck.subscribes) == {"commands/truck-001/ota", "acks/truck-001"}
    assert bcrypt.checkpw(own["mqtt_password"].encode(), truck.password_bcrypt.encode())

    rows = await database.fetch(
        "SELECT c::text AS c, t::text AS t FROM device_credentials c, enrolment_tokens t"
    )
    for secret in (token, *own.values()):
        assert secret not in rows[0]["c"] + rows[0]["t"]


async def test_a_lost_answer_is_given_again_and_only_to_the_same_secrets(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient, database: Database
) -> None:
    token, own = await _token(operator), _secrets()
    first = await _enrol(anyone, token, own)
    # Also after its time: the truck may have been off for weeks.
    await database.fetch("UPDATE enrolment_tokens SET expires_at = now() - interval '30 days'")
    assert (await _enrol(anyone, token, own)).json() == first.json()
    for other in (
        _secrets(),
        own | {"mqtt_password": secrets.token_urlsafe(32)},
        own | {"http_token": secrets.token_urlsafe(32)},
    ):
        _refused(await _enrol(anyone, token, other), 403, "enrolment_token_used")
    assert await _who(anyone, own["http_token"]) == "truck"


async def test_one_token_used_by_many_at_once_enrols_one(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    token = await _token(operator)
    candidates = [_secrets() for _ in range(5)]
    answers = await asyncio.gather(*(_enrol(anyone, token, own) for own in candidates))
    assert sorted(one.status_code for one in answers) == [200, 403, 403, 403, 403]
    for own, answer in zip(candidates, answers, strict=True):
        expected = "truck" if answer.status_code == 200 else "nobody"
        assert await _who(anyone, own["http_token"]) == expected


async def test_enrolling_anew_replaces_the_credential_at_once(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient, broker_told: list[list[BrokerUser]]
) -> None:
    old, new = _secrets(), _secrets()
    first_token = await _token(operator)
    await _enrol(anyone, first_token, old)
    assert await _who(anyone, old["http_token"]) == "truck"
    second_token = await _token(operator)
    assert await _who(anyone, old["http_token"]) == "truck", "a new token alone changes nothing"
    assert (await _enrol(anyone, second_token, new)).status_code == 200
    assert await _who(anyone, old["http_token"]) == "nobody"
    assert await _who(anyone, new["http_token"]) == "truck"
    [truck] = [user for user in broker_told[-1] if user.name == "truck-001"]
    assert bcrypt.checkpw(new["mqtt_password"].encode(), truck.password_bcrypt.encode())
    # The first token with the first secrets must not bring the old credential back.
    _refused(await _enrol(anyone, first_token, old), 403, "bad_enrolment_token")
    assert await _who(anyone, old["http_token"]) == "nobody"


async def test_only_the_newest_open_token_of_a_device_works(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    older, newer = await _token(operator), await _token(operator)
    other = await _token(operator, "truck-002")
    _refused(await _enrol(anyone, older, _secrets()), 403, "bad_enrolment_token")
    assert (await _enrol(anyone, newer, _secrets())).json()["device_id"] == "truck-001"
    assert (await _enrol(anyone, other, _secrets())).json()["device_id"] == "truck-002"


async def test_an_expired_token_enrols_nobody(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient, database: Database
) -> None:
    token, own = await _token(operator), _secrets()
    await database.fetch("UPDATE enrolment_tokens SET expires_at = now()")
    _refused(await _enrol(anyone, token, own), 403, "enrolment_token_expired")
    assert await _who(anyone, own["http_token"]) == "nobody"


async def test_a_secret_of_another_truck_is_not_taken(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    own = _secrets()
    await _enrol(anyone, await _token(operator, "truck-001"), own)
    token = await _token(operator, "truck-002")
    _refused(await _enrol(anyone, token, own), 422, "invalid")
    assert (await _enrol(anyone, token, _secrets())).status_code == 200, "the token was not used up"


async def test_a_truck_may_not_do_what_operators_do(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    own = _secrets()
    await _enrol(anyone, await _token(operator), own)
    header = {"Authorization": f"Bearer {own['http_token']}"}
    for method, path in [
        ("GET", "/api/v1/devices"),
        ("POST", "/api/v1/devices"),
        ("PATCH", "/api/v1/devices/truck-001"),
        ("POST", "/api/v1/devices/truck-001/enrolment-tokens"),
        ("POST", "/api/v1/firmwares"),
        ("POST", "/api/v1/firmwares/f1/withdraw"),
    ]:
        _refused(await anyone.request(method, path, headers=header), 403, "forbidden")


WRONG_ENROLMENTS: dict[str, Any] = {
    "null": None,
    "a list": [],
    "no password": {"http_token": "t" * 43},
    "unknown field": {"http_token": "t" * 43, "mqtt_password": "p" * 43, "device_id": "truck-002"},
    "weak token": {"http_token": "t" * 42, "mqtt_password": "p" * 43},
    "weak password": {"http_token": "t" * 43, "mqtt_password": "secret"},
    "password that bcrypt would cut": {"http_token": "t" * 43, "mqtt_password": "p" * 73},
    "null in password": {"http_token": "t" * 43, "mqtt_password": "p" * 42 + "\x00"},
    "newline at the end": {"http_token": "t" * 43 + "\n", "mqtt_password": "p" * 43},
    "number": {"http_token": 17, "mqtt_password": "p" * 43},
    "huge number": {"http_token": 10**400, "mqtt_password": "p" * 43},
}


async def test_a_wrong_enrolment_is_refused_and_uses_nothing_up(
    operator: httpx.AsyncClient, anyone: httpx.AsyncClient
) -> None:
    token = await _token(operator)
    for name, own in WRONG_ENROLMENTS.items():
        body = {"enrolment_token": token, **own} if isinstance(own, dict) else own
        answer = await anyone.post("/api/v1/enrolments", json=body)
        assert answer.status_code == 422, f"{name}: {answer.text}"
        assert answer.json()["code"] == "invalid", name
        assert token not in answer.text, f"{name}: secrets are not echoed"
    assert (await anyone.post("/api/v1/enrolments")).status_code == 422
    for wrong in ("", "x" * 129, "a b", "a\x00", 5, None, ["a"]):
        answer = await anyone.post("/api/v1/enrolments", json={"enrolment_token": wrong, **_secrets()})
        _refused(answer, 422, "invalid")
    assert (await _enrol(anyone, token, _secrets())).status_code == 200


@pytest.mark.parametrize(
    "body",
    [{"valid_for_s": 59}, {"valid_for_s": 604801}, {"valid_for_s": "60"}, {"valid_for_s": 60.5},
     {"valid_for_s": 10**30}, {"valid_for_s": True}, {"for_s": 60}, [], "x"],
    ids=str,
)  # fmt: skip
async def test_a_wrong_life_of_a_token_is_refused(operator: httpx.AsyncClient, body: Any) -> None:
    await operator.post("/api/v1/devices", json={"device_id": "truck-001"})
    _refused(await operator.post("/api/v1/devices/truck-001/enrolment-tokens", json=body), 422, "invalid")


async def test_a_token_for_nobody(operator: httpx.AsyncClient) -> None:
    _refused(await operator.post("/api/v1/devices/truck-404/enrolment-tokens"), 404, "unknown_device")
    _refused(await operator.post("/api/v1/devices/a%2Fb/enrolment-tokens"), 404, "not_found")
    _refused(await operator.post("/api/v1/devices/a%00/enrolment-tokens"), 422, "invalid")


async def test_wrong_tries_are_bounded_for_each_address(
    rooms_app: FastAPI, access: AccessService, operator: httpx.AsyncClient
) -> None:
    token = await _token(operator)
    now = [0.0]
    limited = FastAPI()
    limited.exception_handlers = rooms_app.exception_handlers
    attempts = WrongAttempts(most=3, pause_s=60, clock=lambda: now[0])
    limited.include_router(
        access_api.make_router(access, broker=BrokerForTrucks(host="b", port=1), attempts=attempts)
    )

    async def enrol_from(address: str, enrolment_token: str) -> int:
        transport = httpx.ASGITransport(app=limited, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await _enrol(client, enrolment_token, _secrets())).status_code

    assert [await enrol_from("10.0.0.1", "wrong") for _ in range(4)] == [403, 403, 403, 429]
    assert await enrol_from("10.0.0.1", token) == 429, "not even a right one, while it pauses"
    assert await enrol_from("10.0.0.2", "wrong") == 403
    now[0] += 60
    assert await enrol_from("10.0.0.1", token) == 200
