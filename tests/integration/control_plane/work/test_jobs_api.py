"""`/api/v1/jobs` over HTTP on a real database: what is refused, and what is kept when it is not."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shared.messages import ToldCause

ORDER = {"device_id": "truck-001", "component": "brakes", "version": "1.1.0"}


@pytest.fixture
async def ready(desk: Any) -> None:
    """A truck that may get 1.1.0, and versions that it may not."""
    await desk.add_truck()
    await desk.publish()
    await desk.publish("2.0.0", hardware=("rev-z",))
    old = await desk.publish("0.9.0")
    await desk.firmwares.withdraw(old.firmware_id, why="burns brakes", by="anna")


async def create(api: httpx.AsyncClient, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await api.post("/api/v1/jobs", json=ORDER | more, headers=headers)


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["detail"]
    assert body["advice"]
    return body


async def test_an_order_is_a_row_a_line_and_an_event_at_once(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    answer = await create(office_api)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["location"] == f"/api/v1/jobs/{job['job_id']}"
    assert (job["state"], job["device_id"], job["attempt"]) == ("scheduled", "truck-001", 1)
    assert (job["step"], job["progress"], job["error"]) == (None, None, None)
    [target] = job["targets"]
    assert (target["component"], target["version"], target["kind"]) == ("brakes", "1.1.0", "brake-controller")
    assert await desk.events(job["job_id"]) == [("job.created", "job.events", "job.created", 1)]
    read = await office_api.get(answer.headers["location"])
    assert read.headers["etag"] == '"1"'
    story = read.json()
    [line] = story.pop("history")
    assert (line["cause"], line["from_state"], line["to_state"]) == ("admin", None, "scheduled")
    assert story.pop("history_total") == 1
    assert story == job


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"device_id": "truck-999"}, 404, "unknown_device"),
        ({"component": "mast"}, 404, "unknown_component"),
        ({"version": "7.7.7"}, 404, "unknown_firmware"),
        ({"version": "2.0.0"}, 422, "incompatible"),
        ({"version": "0.9.0"}, 409, "withdrawn"),
        ({"scheduled_at": "2999-01-01T00:00:00Z"}, 422, "invalid"),
        ({"scheduled_at": "9999-12-31T23:59:59-12:00"}, 422, "invalid"),
        ({"scheduled_at": "2026-11-25T04:00:00"}, 422, "invalid"),  # no zone: whose four o'clock?
        ({"scheduled_at": "soon"}, 422, "invalid"),
        ({"device_id": "truck/001"}, 422, "invalid"),
        ({"device_id": "truck-001\n"}, 422, "invalid"),
        ({"device_id": ""}, 422, "invalid"),
        ({"device_id": None}, 422, "invalid"),
        ({"version": "1.1.0; drop"}, 422, "invalid"),
        ({"version": 110}, 422, "invalid"),
        ({"component": "b" * 65}, 422, "invalid"),
        ({"component": "brakes\x00"}, 422, "invalid"),
        ({"urgency": "high"}, 422, "invalid"),  # an unknown field is not silently ignored
    ],
)
async def test_what_can_not_be_ordered(
    office_api: httpx.AsyncClient, desk: Any, ready: None, more: dict[str, Any], status: int, code: str
) -> None:
    is_problem(await create(office_api, **more), status, code)
    assert await desk.count("jobs") == 0
    assert await desk.count("event_outbox") == 0


async def test_a_component_that_says_it_is_other_hardware_gets_nothing(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    async with desk.db.transaction() as connection:
        await connection.execute("UPDATE components SET reported_hardware = 'rev-c'")
    is_problem(await create(office_api), 422, "incompatible")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"device_id": "a"}', b"{" * 5000]
)
async def test_bodies_that_are_no_order(office_api: httpx.AsyncClient, body: bytes) -> None:
    answer = await office_api.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    is_problem(answer, 422, "invalid")


async def test_a_body_without_end_is_refused(office_api: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 65536

    announced = await office_api.post("/api/v1/jobs", content=b" " * 2_000_000)
    is_problem(announced, 413, "too_large")
    is_problem(await office_api.post("/api/v1/jobs", content=endless()), 413, "too_large")


async def test_a_truck_has_one_live_job_however_many_ask(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    answers = await asyncio.gather(*(create(office_api) for _ in range(6)))
    assert sorted(a.status_code for a in answers) == [201, 409, 409, 409, 409, 409]
    [job_id] = [a.json()["job_id"] for a in answers if a.status_code == 201]
    for answer in answers:
        if answer.status_code == 409:
            assert job_id in is_problem(answer, 409, "live_job")["detail"]
    assert await desk.count("jobs") == 1
    assert await desk.count("event_outbox") == 1
    await office_api.post(f"/api/v1/jobs/{job_id}/cancel", headers={"If-Match": '"1"'})
    assert (await create(office_api)).status_code == 201


async def test_the_index_decides_not_the_question_before_it(desk: Any, ready: None) -> None:
    await desk.order()
    async with desk.db.transaction() as connection:
        target = await connection.fetchval(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'one_live_job_per_device'"
        )
    assert "UNIQUE" in target


async def test_a_repeated_order_is_the_same_order(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    key = {"Idempotency-Key": "order-17"}
    answers = await asyncio.gather(*(create(office_api, headers=key) for _ in range(4)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["job_id"] for a in answers}) == 1
    assert {a.headers["etag"] for a in answers} == {'"1"'}
    assert await desk.count("jobs") == 1
    is_problem(await create(office_api, headers=key, version="2.0.0"), 409, "idempotency_key_reused")
    bad = await create(office_api, headers={"Idempotency-Key": "x" * 201})
    is_problem(bad, 422, "invalid")


async def test_a_refused_order_may_be_tried_again_under_its_key(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    key = {"Idempotency-Key": "order-18"}
    is_problem(await create(office_api, headers=key, version="1.2.0"), 404, "unknown_firmware")
    await desk.publish("1.2.0")
    assert (await create(office_api, headers=key, version="1.2.0")).status_code == 201


async def test_lists_page_without_gap_or_repeat(office_api: httpx.AsyncClient, desk: Any) -> None:
    await desk.publish()
    for number in range(5):
        await desk.add_truck(f"truck-{number}")
        await desk.order(f"truck-{number}")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await office_api.get("/api/v1/jobs", params=params)).json()
        seen += [job["device_id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"truck-{n}" for n in (4, 3, 2, 1, 0)]
    one = (await office_api.get("/api/v1/jobs", params={"device_id": "truck-3"})).json()
    assert [job["device_id"] for job in one["items"]] == ["truck-3"]
    none = (await office_api.get("/api/v1/jobs", params={"state": "done"})).json()
    assert none == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "many"},
        {"state": "sleeping"},
        {"device_id": "a/b"},
        {"cursor": "nonsense"},
        {"cursor": "WyJ4IiwieSJd"},
        {"cursor": "W10"},
        {"cursor": "x" * 501},
    ],
)
async def test_questions_for_a_list_that_can_not_be_answered(
    office_api: httpx.AsyncClient, params: dict[str, Any]
) -> None:
    is_problem(await office_api.get("/api/v1/jobs", params=params), 422, "invalid")


@pytest.mark.parametrize("verb", ["cancel", "abandon"])
async def test_a_change_needs_the_version_that_was_read(
    office_api: httpx.AsyncClient, desk: Any, ready: None, verb: str
) -> None:
    job = await desk.order()
    path = f"/api/v1/jobs/{job.job_id}/{verb}"
    is_problem(await office_api.post(path), 428, "precondition_required")
    is_problem(await office_api.post(path, headers={"If-Match": '"2"'}), 412, "stale_version")
    for nonsense in ("1", "*", '"x"', 'W/"1"', '"1', '"²"'):
        headers = {b"If-Match": nonsense.encode()}
        is_problem(await office_api.post(path, headers=headers), 422, "invalid")
    unknown = await office_api.post(f"/api/v1/jobs/none/{verb}", headers={"If-Match": '"1"'})
    is_problem(unknown, 404, "unknown_job")
    assert (await desk.jobs.get(job.job_id)).version == 1
    done = await office_api.post(path, headers={"If-Match": '"1"'})
    assert done.status_code == 200, done.text
    assert done.headers["etag"] == '"2"'
    again = await office_api.post(path, headers={"If-Match": '"2"'})
    is_problem(again, 409, "job_ended")


async def test_before_the_dispatch_a_cancel_ends_the_job(
    office_api: httpx.AsyncClient, desk: Any, ready: None
) -> None:
    job = await desk.order()
    await desk.jobs.move_due(10)
    answer = await office_api.post(f"/api/v1/jobs/{job.job_id}/cancel", headers={"If-Match": '"2"'})
    assert answer.json()["state"] == "cancelled"
    assert answer.json()["finished_at"] is not None
    assert [event[0] for event in await desk.events(job.job_id)] == [
        "job.created",
        "job.ready_to_execute",
        "job.completed",
    ]
    # Nothing that a truck says later of a job that it was never told about changes this.
    await desk.report(desk.status(job, 1, "flashing"))
    assert (await desk.jobs.get(job.job_id)).state == "cancelled"


async def test_after_the_dispatch_a_cancel_asks_and_an_abandon_ends(
    office_api: httpx.AsyncClient, desk: Any
) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    job = await desk.jobs.get(job.job_id)
    assert job.state == "dispatched"
    path = f"/api/v1/jobs/{job.job_id}"
    asked = await office_api.post(f"{path}/cancel", headers={"If-Match": f'"{job.version}"'})
    assert (asked.json()["state"], asked.json()["revision"]) == ("cancelling", 2)
    assert asked.json()["finished_at"] is None
    version = asked.headers["etag"]
    again = await office_api.post(f"{path}/cancel", headers={"If-Match": version})
    assert (again.status_code, again.json()["revision"], again.headers["etag"]) == (200, 2, version)
    given_up = await office_api.post(f"{path}/abandon", headers={"If-Match": version})
    assert given_up.json()["state"] == "abandoned"
    await desk.report(desk.status(job, 9, "done"))
    story = (await office_api.get(path)).json()
    assert story["state"] == "abandoned"
    assert [line["to_state"] for line in story["history"]] == [
        *("scheduled", "ready", "dispatched", "cancelling", "abandoned", "abandoned")
    ]
    assert story["history"][-1]["applied"] is False
    assert story["history"][3]["cause"] == "admin"


async def test_the_story_is_bounded_and_says_how_long_it_is(
    office_api: httpx.AsyncClient, desk: Any, ready: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.jobs.service.MOST_HISTORY", 5)
    job = await desk.order()
    await desk.report(*(desk.status(job, n, "downloading", progress=n) for n in range(1, 21)))
    story = (await office_api.get(f"/api/v1/jobs/{job.job_id}")).json()
    assert [line["seq"] for line in story["history"]] == [16, 17, 18, 19, 20]
    assert story["history_total"] == 21
    assert story["progress"] == 20


WAIT = (
    ToldCause(code="brake_not_set"),
    ToldCause(code="battery_low", detail="24"),
    ToldCause(code="wheel_chocks_missing", detail="left"),
)
IN_WORDS = {
    "en": "the truck's own sentence",
    "ru": "машина не готова: стояночный тормоз не включён, напряжение батареи ниже 24 В, "
    "wheel_chocks_missing (left)",
}


@pytest.mark.parametrize(
    ("query", "header", "language"),
    [
        ("", "", "en"),
        ("?lang=ru", "", "ru"),
        ("", "ru-RU,ru;q=0.9,en;q=0.5", "ru"),
        ("?lang=en", "ru", "en"),
        ("", "de", "en"),
    ],
)
async def test_why_a_truck_waits_is_read_in_the_readers_language(
    office_api: httpx.AsyncClient, desk: Any, ready: None, query: str, header: str, language: str
) -> None:
    job = await desk.order()
    waits = desk.status(job, 1, "downloading", "waiting", reason=IN_WORDS["en"], causes=WAIT)
    await desk.report(waits)
    headers = {"Accept-Language": header} if header else {}
    answer = await office_api.get(f"/api/v1/jobs/{job.job_id}{query}", headers=headers)
    assert (answer.headers["content-language"], answer.headers["vary"]) == (language, "Accept-Language")
    story = answer.json()
    assert story["reason"] == IN_WORDS["en"]
    assert story["why"] == IN_WORDS[language]
    assert [(one["code"], one["detail"]) for one in story["causes"]] == [
        (one.code, one.detail) for one in WAIT
    ]
    texts = [one["text"] for one in story["causes"]]
    assert texts[0] == {"en": "the parking brake is not set", "ru": "стояночный тормоз не включён"}[language]
    line = story["history"][-1]
    assert (line["why"], line["causes"]) == (story["why"], story["causes"])
    listed = (await office_api.get(f"/api/v1/jobs{query}", headers=headers)).json()["items"][0]
    assert (listed["why"], listed["causes"]) == (story["why"], story["causes"])
    # What it said next says nothing of causes, and the office's own word neither.
    await desk.report(desk.status(job, 2, "flashing", reason="brakes (1 of 2)"))
    later = (await office_api.get(f"/api/v1/jobs/{job.job_id}{query}", headers=headers)).json()
    assert (later["why"], later["causes"]) == ("brakes (1 of 2)", [])
    refused = await office_api.get(f"/api/v1/jobs/{job.job_id}?lang=de")
    is_problem(refused, 422, "invalid")


async def test_a_truck_may_not_order(office_api: httpx.AsyncClient) -> None:
    for authorization in ("", "Bearer", "Bearer nonsense", "Basic YTpi"):
        answer = await office_api.get("/api/v1/jobs", headers={"Authorization": authorization})
        is_problem(answer, 401, "unauthenticated")


@pytest.mark.filterwarnings("error")
async def test_every_operation_is_described_and_has_its_problems(office_api: httpx.AsyncClient) -> None:
    described = (await office_api.get("/openapi.json")).json()
    operations = {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert {"post /api/v1/jobs", "get /api/v1/jobs/{job_id}", "post /api/v1/jobs/{job_id}/cancel"} <= set(
        operations
    )
    for name, operation in operations.items():
        assert operation.get("description"), name
        if "/api/v1/" in name:
            assert "application/problem+json" in str(operation["responses"]), name
    assert described["components"]["schemas"]["NewJob"]["examples"]


async def test_health_names_its_parts(office_api: httpx.AsyncClient) -> None:
    assert (await office_api.get("/healthz")).json() == {"ok": True, "parts": {}}
    assert (await office_api.get("/readyz")).json() == {
        "ok": True,
        "parts": {"database": True, "outbox": True},
    }
    text = (await office_api.get("/metrics")).text
    assert "outbox_pending_total" in text
    assert "outbox_errors_total" in text
