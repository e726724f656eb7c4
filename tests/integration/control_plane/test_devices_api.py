"""`/api/v1/devices` over HTTP on a real database."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

BRAKE = {"component": "brake", "kind": "brake-controller", "hardware": "rev-b"}
MAST = {"component": "mast", "kind": "mast-controller", "hardware": "rev-1"}


async def _create(operator: httpx.AsyncClient, device_id: str, **more: Any) -> dict[str, Any]:
    answer = await operator.post("/api/v1/devices", json={"device_id": device_id, **more})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def _is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["advice"]
    return body


async def test_a_device_is_registered_and_read_back(operator: httpx.AsyncClient) -> None:
    answer = await operator.post(
        "/api/v1/devices",
        json={
            "device_id": "truck-001",
            "name": "КАМАЗ № 17",
            "site": "north",
            "components": [BRAKE | {"installed_version": "1.0.0", "installed_sha256": "ab" * 32}],
        },
    )
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["location"] == "/api/v1/devices/truck-001"
    read = await operator.get(answer.headers["location"])
    assert read.headers["etag"] == '"1"'
    assert read.json() == answer.json()
    device = read.json()
    assert (device["name"], device["site"], device["online"]) == ("КАМАЗ № 17", "north", False)
    assert device["last_seen_at"] is None
    assert device["components"] == [
        {
            **BRAKE,
            "installed_version": "1.0.0",
            "installed_sha256": "ab" * 32,
            "reported_kind": None,
            "reported_hardware": None,
            "in_bootloader": False,
            "reported_at": None,
        }
    ]


async def test_a_taken_id_is_a_conflict(operator: httpx.AsyncClient) -> None:
    await _create(operator, "truck-001", name="first")
    answer = await operator.post("/api/v1/devices", json={"device_id": "truck-001", "name": "second"})
    _is_problem(answer, 409, "device_exists")
    assert (await operator.get("/api/v1/devices/truck-001")).json()["name"] == "first"


async def test_a_repeat_with_the_same_key_gets_the_first_answer(operator: httpx.AsyncClient) -> None:
    async def send() -> httpx.Response:
        return await operator.post(
            "/api/v1/devices", json={"device_id": "truck-001"}, headers={"Idempotency-Key": "k1"}
        )

    first, *repeats = await asyncio.gather(*(send() for _ in range(5)))
    assert [one.status_code for one in (first, *repeats)] == [201] * 5
    assert all(one.json() == first.json() for one in repeats)
    assert all(one.headers["etag"] == first.headers["etag"] for one in repeats)
    assert all(one.headers["location"] == first.headers["location"] for one in repeats)


async def test_a_key_does_not_serve_another_request(operator: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert (
        await operator.post("/api/v1/devices", json={"device_id": "truck-001"}, headers=headers)
    ).status_code == 201
    answer = await operator.post("/api/v1/devices", json={"device_id": "truck-002"}, headers=headers)
    _is_problem(answer, 409, "idempotency_key_reused")
    assert (await operator.get("/api/v1/devices/truck-002")).status_code == 404


async def test_a_failed_creation_keeps_no_answer(operator: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    twice = {"device_id": "truck-001", "components": [BRAKE, BRAKE]}
    assert (await operator.post("/api/v1/devices", json=twice, headers=headers)).status_code == 422
    good = {"device_id": "truck-001", "components": [BRAKE]}
    assert (await operator.post("/api/v1/devices", json=good, headers=headers)).status_code == 201


async def test_pages_give_every_device_once(operator: httpx.AsyncClient) -> None:
    names = [f"truck-{n:03}" for n in range(7)]
    for name in reversed(names):
        await _create(operator, name, site="north" if name != "truck-003" else "south")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await operator.get("/api/v1/devices", params=query)).json()
        assert 0 < len(page["items"]) <= 3
        seen += [one["device_id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        # A device that appears before the cursor disturbs nothing.
        if len(seen) == 3:
            await _create(operator, "aaa")
    assert seen == names
    north = (await operator.get("/api/v1/devices", params={"site": "north"})).json()["items"]
    assert [one["device_id"] for one in north] == [n for n in names if n != "truck-003"]
    assert (await operator.get("/api/v1/devices", params={"online": "true"})).json()["items"] == []
    assert len((await operator.get("/api/v1/devices", params={"online": "false"})).json()["items"]) == 8


async def test_a_change_needs_the_version_that_was_read(operator: httpx.AsyncClient) -> None:
    await _create(operator, "truck-001", name="old", site="north", components=[BRAKE])
    url = "/api/v1/devices/truck-001"
    _is_problem(await operator.patch(url, json={"name": "x"}), 428, "precondition_required")
    first = await operator.patch(url, json={"name": "new"}, headers={"If-Match": '"1"'})
    assert first.status_code == 200
    assert first.headers["etag"] == '"2"'
    assert (first.json()["name"], first.json()["site"]) == ("new", "north")
    assert [one["component"] for one in first.json()["components"]] == ["brake"]
    stale = await operator.patch(url, json={"name": "stale"}, headers={"If-Match": '"1"'})
    _is_problem(stale, 412, "stale_version")
    assert (await operator.get(url)).json()["name"] == "new"


async def test_of_two_changes_at_once_one_wins(operator: httpx.AsyncClient) -> None:
    await _create(operator, "truck-001")
    answers = await asyncio.gather(
        *(
            operator.patch("/api/v1/devices/truck-001", json={"name": n}, headers={"If-Match": '"1"'})
            for n in ("a", "b", "c")
        )
    )
    assert sorted(one.status_code for one in answers) == [200, 412, 412]
    assert (await operator.get("/api/v1/devices/truck-001")).json()["version"] == 2


async def test_components_are_replaced_as_a_whole(operator: httpx.AsyncClient) -> None:
    await _create(operator, "truck-001", components=[BRAKE | {"installed_version": "1.0.0"}])
    answer = await operator.patch(
        "/api/v1/devices/truck-001",
        json={"components": [BRAKE, MAST]},
        headers={"If-Match": '"1"'},
    )
    brake, mast = answer.json()["components"]
    assert brake["installed_version"] == "1.0.0", "what is known of the same hardware stays"
    assert mast["kind"] == "mast-controller"
    answer = await operator.patch(
        "/api/v1/devices/truck-001",
        json={"components": [BRAKE | {"hardware": "rev-c"}]},
        headers={"If-Match": '"2"'},
    )
    [brake] = answer.json()["components"]
    assert (brake["hardware"], brake["installed_version"]) == ("rev-c", None), (
        "other hardware, unknown content"
    )


WRONG_BODIES: dict[str, Any] = {
    "null": None,
    "a list": [],
    "a word": "truck",
    "no id": {"name": "x"},
    "unknown field": {"device_id": "truck-001", "colour": "red"},
    "id with slash": {"device_id": "a/b"},
    "id with wildcard": {"device_id": "+"},
    "id with newline": {"device_id": "truck-001\n"},
    "id with null": {"device_id": "truck\x00"},
    "empty id": {"device_id": ""},
    "long id": {"device_id": "x" * 65},
    "id a number": {"device_id": 17},
    "null in name": {"device_id": "truck-001", "name": "a\x00b"},
    "newline in site": {"device_id": "truck-001", "site": "a\nb"},
    "long name": {"device_id": "truck-001", "name": "x" * 201},
    "name a list": {"device_id": "truck-001", "name": ["x"]},
    "components no list": {"device_id": "truck-001", "components": BRAKE},
    "component unknown field": {"device_id": "truck-001", "components": [BRAKE | {"x": 1}]},
    "component without kind": {"device_id": "truck-001", "components": [{"component": "a", "hardware": "b"}]},
    "component twice": {"device_id": "truck-001", "components": [BRAKE, BRAKE]},
    "too many components": {
        "device_id": "truck-001",
        "components": [BRAKE | {"component": f"c{n}"} for n in range(65)],
    },
    "bad sha256": {"device_id": "truck-001", "components": [BRAKE | {"installed_sha256": "AB" * 32}]},
    "bad version": {"device_id": "truck-001", "components": [BRAKE | {"installed_version": "1.0 beta"}]},
    "null in kind": {"device_id": "truck-001", "components": [BRAKE | {"kind": "a\x00"}]},
}


@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_a_wrong_device_is_refused_by_name(operator: httpx.AsyncClient, name: str) -> None:
    answer = await operator.post("/api/v1/devices", json=WRONG_BODIES[name])
    problem = _is_problem(answer, 422, "invalid")
    assert problem["fields"]
    assert (await operator.get("/api/v1/devices")).json()["items"] == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"device_id": "\\ud800"}',
        b'{"device_id": "a", "name": "\\ud800"}',
        b"[" * 20_000,
    ],
    ids=["nothing", "cut off", "no UTF-8", "surrogate id", "surrogate name", "deep"],
)
async def test_bytes_that_are_no_json_are_refused(operator: httpx.AsyncClient, raw: bytes) -> None:
    answer = await operator.post("/api/v1/devices", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await operator.get("/api/v1/devices")).json()["items"] == []


async def test_a_body_that_is_too_large_is_refused_announced_or_not(operator: httpx.AsyncClient) -> None:
    big = b'{"device_id": "' + b"x" * (1024 * 1024) + b'"}'
    _is_problem(await operator.post("/api/v1/devices", content=big), 413, "too_large")

    async def stream() -> Any:
        for _ in range(100):
            yield b" " * 20_000

    answer = await operator.post(
        "/api/v1/devices", content=stream(), headers={"Content-Type": "application/json"}
    )
    _is_problem(answer, 413, "too_large")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": "9" * 40},
        {"cursor": "%%%"},
        {"cursor": "e30"},
        {"cursor": "WzFd"},
        {"cursor": "WyJhIiwiYiJd"},
        {"cursor": "WyJhXHUwMDAwIl0"},
        {"cursor": "x" * 501},
        {"online": "perhaps"},
        {"site": "a\x00b"},
    ],
    ids=str,
)
async def test_a_wrong_query_is_refused(operator: httpx.AsyncClient, query: dict[str, str]) -> None:
    _is_problem(await operator.get("/api/v1/devices", params=query), 422, "invalid")


@pytest.mark.parametrize("tag", ["1", '"x"', 'W/"1"', '"-1"', '""', "*", '"' + "9" * 30 + '"', '"١"'])
async def test_a_wrong_if_match_is_refused(operator: httpx.AsyncClient, tag: str) -> None:
    await _create(operator, "truck-001")
    answer = await operator.patch(
        "/api/v1/devices/truck-001", json={"name": "x"}, headers=[(b"If-Match", tag.encode())]
    )
    _is_problem(answer, 422, "invalid")


@pytest.mark.parametrize(
    "body",
    [
        {"name": 5},
        {"device_id": "other"},
        {"version": 9},
        {"components": [BRAKE, BRAKE]},
        [],
        {"site": "\x00"},
    ],
    ids=str,
)
async def test_a_wrong_change_is_refused(operator: httpx.AsyncClient, body: Any) -> None:
    await _create(operator, "truck-001")
    answer = await operator.patch("/api/v1/devices/truck-001", json=body, headers={"If-Match": '"1"'})
    _is_problem(answer, 422, "invalid")
    assert (await operator.get("/api/v1/devices/truck-001")).json()["version"] == 1


async def test_what_is_not_there_is_not_found(operator: httpx.AsyncClient) -> None:
    _is_problem(await operator.get("/api/v1/devices/truck-404"), 404, "unknown_device")
    change = await operator.patch("/api/v1/devices/truck-404", json={}, headers={"If-Match": '"1"'})
    _is_problem(change, 404, "unknown_device")
    _is_problem(await operator.get("/api/v1/devices/a.b"), 422, "invalid")
    _is_problem(await operator.get("/api/v1/devices/a%00b"), 422, "invalid")
    _is_problem(await operator.delete("/api/v1/devices/truck-404"), 405, "method_not_allowed")


@pytest.mark.parametrize("key", ["", "x" * 201, "with space", "tab\t", "ключ"], ids=ascii)
async def test_a_wrong_idempotency_key_is_refused(operator: httpx.AsyncClient, key: str) -> None:
    answer = await operator.post(
        "/api/v1/devices", json={"device_id": "truck-001"}, headers=[(b"Idempotency-Key", key.encode())]
    )
    _is_problem(answer, 422, "invalid")


async def test_nothing_opens_without_a_token(anyone: httpx.AsyncClient) -> None:
    doors = [
        ("GET", "/api/v1/devices"),
        ("POST", "/api/v1/devices"),
        ("GET", "/api/v1/devices/truck-001"),
        ("PATCH", "/api/v1/devices/truck-001"),
        ("POST", "/api/v1/devices/truck-001/enrolment-tokens"),
        ("GET", "/api/v1/firmwares"),
        ("POST", "/api/v1/firmwares"),
        ("GET", "/api/v1/firmwares/f1"),
        ("POST", "/api/v1/firmwares/f1/withdraw"),
    ]
    keys = [None, "Bearer", "Bearer ", "Bearer wrong", "Basic YWRtaW46YWRtaW4=", "Bearer " + "x" * 5000]
    for method, path in doors:
        for key in keys:
            answer = await anyone.request(method, path, headers={"Authorization": key} if key else {})
            _is_problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
