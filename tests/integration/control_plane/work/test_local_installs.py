"""What people installed at trucks: kept beside the jobs, acknowledged, and never able to touch one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from control_plane.jobs.service import Report, Verdict
from control_plane.local_installs import service
from shared.ids import new_id
from shared.messages import Status, TargetResult, ToldCause, WantedTarget

LOCAL = f"local-{new_id()}"
SHA = "a" * 64
WANTED = (WantedTarget(component="brakes", version="1.1.0", sha256=SHA),)
READ_BACK = (TargetResult(component="brakes", version="1.1.0", sha256=SHA),)


def said(desk: Any, seq: int, status: str, job_id: str = LOCAL, **more: Any) -> Status:
    if status == "done":
        more = {"targets": READ_BACK} | more
    found: Status = desk.status(job_id, seq, status, **({"wanted": WANTED} | more))
    return found


def told(desk: Any, device_id: str = "truck-001") -> tuple[set[str], dict[str, str]]:
    acks = desk.air.acks(device_id)
    return (
        {one for ack in acks for one in ack.accepted},
        {one.message_id: one.reason for ack in acks for one in ack.rejected},
    )


async def shown(api: httpx.AsyncClient, **params: str) -> list[dict[str, Any]]:
    answer = await api.get("/api/v1/local-installs", params=params)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_it_is_acked_and_shown_with_its_target_and_result(
    desk: Any, office_api: httpx.AsyncClient
) -> None:
    await desk.add_truck()
    await desk.report(said(desk, 1, "downloading", step="received"), said(desk, 2, "flashing", progress=40))
    [under_way] = await shown(office_api)
    assert (under_way["state"], under_way["progress"], under_way["origin"]) == ("flashing", 40, "truck")
    await desk.report(said(desk, 3, "done"))
    [one] = await shown(office_api, device_id="truck-001")
    assert (one["job_id"], one["device_id"], one["state"], one["step"]) == (
        *(LOCAL, "truck-001", "done"),
        "finished",
    )
    assert one["targets"] == [
        {
            "component": "brakes",
            "version": "1.1.0",
            "sha256": SHA,
            "read_back_version": "1.1.0",
            "read_back_sha256": SHA,
        }
    ]
    assert told(desk) == ({"m-1-downloading", "m-2-flashing", "m-3-done"}, {})
    assert await desk.count("dead_letters") == 0
    assert await shown(office_api, device_id="truck-002") == []
    assert await shown(office_api, state="done") == [one]
    assert await shown(office_api, state="error") == []
    assert await shown(office_api, job_id=LOCAL) == [one]


async def test_a_failed_one_says_what_it_was_to_be_and_why(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    await desk.report(said(desk, 1, "error"))
    [one] = await shown(office_api)
    assert (one["state"], one["error"]["text"]) == ("error", "it did not work")
    assert [(t["component"], t["version"], t["read_back_version"]) for t in one["targets"]] == [
        ("brakes", "1.1.0", None)
    ]


async def test_why_it_waits_is_said_in_the_readers_language(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    causes = (ToldCause(code="brake_not_set"),)
    reason = "the parking brake is not set"
    await desk.report(said(desk, 1, "downloading", step="waiting", reason=reason, causes=causes))
    [one] = await shown(office_api)
    assert (one["why"], [cause["code"] for cause in one["causes"]]) == (reason, ["brake_not_set"])
    [russian] = await shown(office_api, lang="ru")
    assert (russian["reason"], russian["causes"][0]["text"]) == (reason, "стояночный тормоз не включён")
    assert "стояночный тормоз не включён" in russian["why"]


async def test_an_agent_that_does_not_say_what_it_wants_is_taken_by_its_read_back(
    desk: Any, office_api: httpx.AsyncClient
) -> None:
    await desk.add_truck()
    await desk.report(said(desk, 1, "done", wanted=None))
    [one] = await shown(office_api)
    assert one["state"] == "done"
    assert [(t["version"], t["read_back_version"]) for t in one["targets"]] == [(None, "1.1.0")]


async def test_done_with_another_read_back_is_an_error(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    other = (TargetResult(component="brakes", version="1.0.0", sha256="b" * 64),)
    await desk.report(said(desk, 1, "done", targets=other))
    [one] = await shown(office_api)
    assert (one["state"], one["error"]["code"]) == ("error", "read_back_mismatch")


async def test_repeats_and_late_words_change_nothing_and_are_acked(
    desk: Any, office_api: httpx.AsyncClient
) -> None:
    await desk.add_truck()
    await desk.report(said(desk, 3, "done"))
    before = await desk.row("SELECT * FROM local_installs")
    desk.air.sent.clear()
    await desk.report(said(desk, 3, "done"), said(desk, 2, "flashing"))
    await desk.report(said(desk, 3, "done"))
    assert await desk.row("SELECT * FROM local_installs") == before
    assert told(desk) == ({"m-3-done", "m-2-flashing"}, {})
    text = desk.metrics.as_text().decode()
    assert 'statuses_total{outcome="duplicate"} 2.0' in text
    assert 'statuses_total{outcome="late"} 1.0' in text


async def test_a_new_attempt_begins_anew(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    await desk.report(said(desk, 1, "error"))
    await desk.report(said(desk, 2, "downloading", attempt=2))
    [one] = await shown(office_api)
    assert (one["state"], one["attempt"], one["error"]) == ("downloading", 2, None)


async def test_it_stands_beside_a_live_job_and_is_none(desk: Any, office_api: httpx.AsyncClient) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.report(said(desk, 1, "flashing"), desk.status(job, 2, "flashing"))
    assert (await desk.jobs.get(job.job_id)).state == "flashing"
    assert len(await shown(office_api)) == 1
    assert [one["job_id"] for one in (await office_api.get("/api/v1/jobs")).json()["items"]] == [job.job_id]
    # Nothing of it is told to trucks, dispatched, or in the way of the next job.
    await desk.report(desk.status(job, 3, "done"))
    before = len(desk.air.commands())
    await desk.dispatcher.step()
    assert len(desk.air.commands()) == before
    await desk.order()
    assert await desk.count("event_outbox") == len(
        [*await desk.events(job.job_id), *await desk.events((await desk.jobs.page())[0].job_id)]
    )


async def test_a_truck_writes_into_its_own_rows_only(desk: Any, office_api: httpx.AsyncClient) -> None:
    """The same id from another truck, and a job of the office under a word that begins like a local one."""
    await desk.add_truck("truck-001")
    await desk.add_truck("truck-002")
    await desk.report(said(desk, 1, "flashing"))
    await desk.report(said(desk, 9, "done"), device_id="truck-002")
    states = {one["device_id"]: one["state"] for one in await shown(office_api)}
    assert states == {"truck-001": "flashing", "truck-002": "done"}
    job = await desk.ready_job("truck-003")
    await desk.report(said(desk, 1, "done", job_id=f"local-{job.job_id}"[:64]), device_id="truck-003")
    await desk.report(said(desk, 2, "done", job_id=job.job_id), device_id="truck-002")
    assert (await desk.jobs.get(job.job_id)).state == "ready"
    assert "there is no job" in told(desk, "truck-002")[1]["m-2-done"]


async def test_an_unknown_truck_gets_no_row(desk: Any) -> None:
    await desk.report(said(desk, 1, "done"), device_id="truck-404")
    assert await desk.count("local_installs") == 0
    assert "there is no device" in told(desk, "truck-404")[1]["m-1-done"]
    assert await desk.count("dead_letters") == 1


async def test_two_offices_that_hear_of_it_at_once_keep_the_one_row(
    desk: Any, office_api: httpx.AsyncClient
) -> None:
    await desk.add_truck()

    def reports(status: Status) -> list[Report]:
        return [Report(device_id="truck-001", store_no=1, status=status)]

    async with desk.db.transaction() as first:
        await desk.processor.local_installs.apply(first, reports(said(desk, 3, "done")))
        second = asyncio.create_task(
            desk.db.run(lambda c: desk.processor.local_installs.apply(c, reports(said(desk, 2, "flashing"))))
        )
        async with asyncio.timeout(20):
            while not await first.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    [outcome] = await second
    assert outcome.verdict is Verdict.LATE
    assert [one["state"] for one in await shown(office_api)] == ["done"]


async def test_a_truck_fills_no_table(
    desk: Any, office_api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_PER_DEVICE", 3)
    await desk.add_truck("truck-001")
    await desk.add_truck("truck-002")
    await desk.report(said(desk, 1, "done"), device_id="truck-002")
    for number in range(1, 8):
        await desk.report(said(desk, number, "done", job_id=f"local-{number}"))
    many = [said(desk, number, "done", job_id=f"local-{number}") for number in range(10, 60)]
    kept = [one["job_id"] for one in await shown(office_api, device_id="truck-001")]
    assert kept == ["local-7", "local-6", "local-5"]
    await desk.report(*many)
    assert len(await shown(office_api, device_id="truck-001")) == 3
    assert len(await shown(office_api, device_id="truck-002")) == 1
    accepted, rejected = told(desk)
    assert len(accepted) == 57
    assert rejected == {}


async def test_a_bad_word_takes_no_good_one_along(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    await desk.report(
        said(desk, 1, "done"), said(desk, 2, "error", job_id="local-bad", reason="a null: \x00")
    )
    assert [one["job_id"] for one in await shown(office_api)] == [LOCAL]
    accepted, rejected = told(desk)
    assert accepted == {"m-1-done"}
    assert list(rejected) == ["m-2-error"]


async def test_what_became_a_dead_letter_before_can_be_replayed(
    desk: Any, office_api: httpx.AsyncClient
) -> None:
    await desk.add_truck()
    status = said(desk, 1, "done")
    await desk.report(desk.status("no-such-job", 5, "done"))
    [letter] = await desk.letters.page()
    async with desk.db.transaction() as connection:
        await connection.execute("UPDATE dead_letters SET raw = $1", status.to_json())
    answer = await office_api.post(f"/api/v1/dead-letters/{letter.dead_letter_id}/replay")
    assert answer.status_code == 200, answer.text
    assert [one["state"] for one in await shown(office_api)] == ["done"]


async def test_pages_go_from_the_newest_to_the_oldest(desk: Any, office_api: httpx.AsyncClient) -> None:
    await desk.add_truck()
    for number in range(5):
        await desk.report(said(desk, number + 1, "done", job_id=f"local-{number}"))
    found: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        page = (await office_api.get("/api/v1/local-installs", params=params)).json()
        found += [one["job_id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [f"local-{number}" for number in (4, 3, 2, 1, 0)]
    stranger = await office_api.get("/api/v1/local-installs", headers={"Authorization": "Bearer x"})
    assert stranger.status_code == 401
