"""What trucks say becomes jobs, devices and dead letters; acks only follow what is committed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from control_plane.errors import Conflict, Unavailable
from shared.ids import new_id
from shared.messages import Installed, Manifest, StatusBatch
from shared.states import TruckStatus


def told(desk: Any, device_id: str = "truck-001") -> tuple[list[str], dict[str, str]]:
    """All accepted message ids and rejected ones with their reasons, in the order of the acks."""
    acks = desk.air.acks(device_id)
    accepted = [one for ack in acks for one in ack.accepted]
    rejected = {one.message_id: one.reason for ack in acks for one in ack.rejected}
    return accepted, rejected


async def letters(desk: Any) -> list[Any]:
    return [await desk.letters.get(one.dead_letter_id) for one in await desk.letters.page()]


async def dispatched(desk: Any) -> Any:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    desk.air.sent.clear()
    return await desk.jobs.get(job.job_id)


async def test_a_whole_update_in_order(desk: Any) -> None:
    job = await dispatched(desk)
    await desk.report(desk.status(job, 1, "downloading", "received"))
    await desk.report(
        desk.status(job, 2, "downloading", progress=50), desk.status(job, 3, "flashing", progress=10)
    )
    await desk.report(desk.status(job, 4, "done"))
    after, lines, total = await desk.jobs.story(job.job_id)
    assert (after.state, after.now.step, after.now.progress) == ("done", "finished", None)
    assert after.finished_at is not None
    [target] = after.targets
    assert (target.read_back_version, target.read_back_sha256) == ("1.1.0", target.sha256)
    assert [line.to_state for line in lines] == [
        *("scheduled", "ready", "dispatched", "downloading", "downloading", "flashing", "done")
    ]
    assert [line.version for line in lines] == list(range(1, 8))
    assert total == 7
    assert [(e[0], e[3]) for e in await desk.events(job.job_id)] == [
        ("job.created", 1),
        ("job.ready_to_execute", 2),
        ("job.state_changed", 3),
        ("job.state_changed", 4),
        ("job.state_changed", 6),
        ("job.completed", 7),
    ]
    accepted, rejected = told(desk)
    assert accepted == ["m-1-downloading", "m-2-downloading", "m-3-flashing", "m-4-done"]
    assert rejected == {}


async def test_repeats_change_nothing_and_are_acked_again(desk: Any) -> None:
    job = await dispatched(desk)
    statuses = [desk.status(job, 1, "downloading"), desk.status(job, 2, "flashing")]
    await desk.report(*statuses)
    before = (
        await desk.jobs.get(job.job_id),
        await desk.count("job_history"),
        await desk.count("event_outbox"),
    )
    desk.air.sent.clear()
    await desk.report(*statuses, statuses[0])
    await desk.report(statuses[1])
    after = (
        await desk.jobs.get(job.job_id),
        await desk.count("job_history"),
        await desk.count("event_outbox"),
    )
    assert after == before
    accepted, _ = told(desk)
    assert set(accepted) == {"m-1-downloading", "m-2-flashing"}
    text = desk.metrics.as_text().decode()
    assert 'statuses_total{outcome="applied"} 2.0' in text
    assert 'statuses_total{outcome="duplicate"} 4.0' in text


async def test_what_comes_late_is_kept_and_changes_nothing(desk: Any) -> None:
    job = await dispatched(desk)
    await desk.report(desk.status(job, 5, "flashing", progress=80))
    await desk.report(desk.status(job, 2, "downloading", progress=30))
    after, lines, _ = await desk.jobs.story(job.job_id)
    assert (after.state, after.now.progress) == ("flashing", 80)
    assert (lines[-1].applied, lines[-1].seq, lines[-1].to_state) == (False, 2, "flashing")
    accepted, _ = told(desk)
    assert accepted == ["m-5-flashing", "m-2-downloading"]


async def test_done_is_believed_only_with_the_right_read_back(desk: Any) -> None:
    job = await dispatched(desk)
    await desk.report(desk.status(job, 1, "done", targets=None))
    after, lines, _ = await desk.jobs.story(job.job_id)
    assert (after.state, after.now.error.code) == ("error", "read_back_mismatch")
    assert lines[-1].error.code == "read_back_mismatch"


async def test_a_failure_keeps_the_trucks_words(desk: Any) -> None:
    job = await dispatched(desk)
    await desk.report(desk.status(job, 1, "error", reason="ключ не подошёл"))
    after = await desk.jobs.get(job.job_id)
    assert (after.state, after.now.reason) == ("error", "ключ не подошёл")
    assert after.now.error.text == "it did not work"
    # The device is free for the next job.
    assert (await desk.order()).state == "scheduled"


@pytest.mark.parametrize("foreign", [True, False])
async def test_a_status_of_no_job_of_this_truck(desk: Any, foreign: bool) -> None:
    mine = await dispatched(desk)
    await desk.add_truck("truck-002")
    theirs = await desk.order("truck-002")
    wrong = desk.status(theirs if foreign else "4f1c", 1, "flashing")
    good = desk.status(mine, 2, "downloading")
    await desk.report(wrong, good)
    accepted, rejected = told(desk)
    assert accepted == [good.message_id]
    assert list(rejected) == [wrong.message_id]
    assert "there is no job" in rejected[wrong.message_id]
    assert (await desk.jobs.get(theirs.job_id)).state == "scheduled"
    [letter] = await letters(desk)
    assert (letter.source, letter.device_id, letter.message_id) == ("status", "truck-001", wrong.message_id)
    assert json.loads(letter.raw)["job_id"] == wrong.job_id
    # A truck that repeats it is told again, and fills no table.
    await desk.report(wrong)
    assert await desk.count("dead_letters") == 1
    assert len(desk.air.acks()) == 3


BROKEN_STATUSES: dict[str, dict[str, Any]] = {
    "an unknown status": {"status": "melting"},
    "no status": {"status": None},
    "a sequence of zero": {"seq": 0},
    "a sequence beyond all numbers": {"seq": 2**60},
    "progress of 101": {"progress": 101},
    "a time without a zone": {"at": "2026-11-25T04:00:00"},
    "a job id with a slash": {"job_id": "a/b"},
    "an endless reason": {"reason": "x" * 3000},
}


@pytest.mark.parametrize("name", BROKEN_STATUSES)
async def test_a_bad_status_does_not_take_the_good_ones_along(desk: Any, name: str) -> None:
    job = await dispatched(desk)
    good = [desk.status(job, 1, "downloading").to_obj(), desk.status(job, 3, "flashing").to_obj()]
    bad = desk.status(job, 2, "downloading").to_obj() | BROKEN_STATUSES[name]
    batch = {"v": 1, "store_id": "store-1", "statuses": [good[0], bad, good[1]]}
    await desk.say("update", json.dumps(batch, default=str).encode())
    accepted, rejected = told(desk)
    assert accepted == ["m-1-downloading", "m-3-flashing"]
    assert list(rejected) == ["m-2-downloading"]
    assert (await desk.jobs.get(job.job_id)).state == "flashing"
    [letter] = await letters(desk)
    assert json.loads(letter.raw)["seq"] == bad["seq"]


REFUSED_BY_THE_DATABASE: dict[str, dict[str, Any]] = {
    "a NUL in the reason": {"reason": "a\x00b"},
    "a NUL in the step": {"step": "wri\x00ting"},
    "an attempt beyond the column": {"attempt": 2**31},
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_DATABASE)
@pytest.mark.parametrize("place", [0, 3, 6])
async def test_what_the_database_refuses_is_found_in_the_batch(desk: Any, name: str, place: int) -> None:
    job = await dispatched(desk)
    statuses = [desk.status(job, n, "downloading", progress=n).to_obj() for n in range(1, 8)]
    statuses[place] |= REFUSED_BY_THE_DATABASE[name]
    batch = {"v": 1, "store_id": "store-1", "statuses": statuses}
    await desk.say("update", json.dumps(batch).encode())
    accepted, rejected = told(desk)
    assert list(rejected) == [f"m-{place + 1}-downloading"]
    assert sorted(accepted) == sorted(f"m-{n}-downloading" for n in range(1, 8) if n != place + 1)
    assert len(await letters(desk)) == 1
    job = await desk.jobs.get(job.job_id)
    assert job.now.progress == (6 if place == 6 else 7)


UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "another version": b'{"v": 2, "store_id": "s", "statuses": [{}]}',
    "no statuses": b'{"v": 1, "store_id": "s", "statuses": []}',
    "too many": b'{"v": 1, "store_id": "s", "statuses": [' + b"{}," * 200 + b"{}]}",
    "a bad store": b'{"v": 1, "store_id": "a b", "statuses": [{}]}',
    "deep": b"[" * 20000,
    "half a surrogate pair": b'{"v": 1, "store_id": "s", "statuses": [{"reason": "\\ud800"}]}',
}


@pytest.mark.parametrize("kind", ["update", "hello", "manifest", "telegram"])
@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_can_not_be_read_is_kept_as_it_came(desk: Any, name: str, kind: str) -> None:
    job = await dispatched(desk)
    raw = UNREADABLE[name]
    good = StatusBatch(store_id="store-1", statuses=(desk.status(job, 1, "downloading"),))
    messages = [desk.from_device(kind, raw), desk.from_device("update", good), desk.from_device(kind, raw)]
    await desk.processor.handle(messages)
    [letter] = await letters(desk)
    assert letter.raw == raw
    assert (letter.device_id, letter.reference["kind"]) == ("truck-001", kind)
    assert (await desk.jobs.get(job.job_id)).state == "downloading"


async def test_an_unknown_truck_is_a_dead_letter_and_told_so(desk: Any) -> None:
    await desk.hello("truck-404")
    await desk.report(desk.status("4f1c", 1, "downloading"), device_id="truck-404")
    manifest = Manifest(store_id="s", seq=1, components=(), at=datetime.now(UTC))
    await desk.say("manifest", manifest, "truck-404")
    assert sorted(one.reference["kind"] for one in await letters(desk)) == ["hello", "manifest", "update"]
    _, rejected = told(desk, "truck-404")
    assert "no device truck-404" in rejected["m-1-downloading"]


async def test_hello_and_manifest_reach_the_device(desk: Any) -> None:
    await desk.add_truck()
    await desk.hello()
    installed = Installed(
        component="brakes", kind="brake-controller", hardware="rev-b", version="1.0.0", sha256="a" * 64
    )
    await desk.say(
        "manifest", Manifest(store_id="store-1", seq=1, components=(installed,), at=datetime.now(UTC))
    )
    device = await desk.devices.get("truck-001")
    assert (device.online, device.agent_version) == (True, "0.1.0")
    assert device.components[0].installed_version == "1.0.0"
    await desk.hello(online=False)
    assert not (await desk.devices.get("truck-001")).online


async def test_a_truck_with_a_new_database_is_not_stale(desk: Any) -> None:
    job = await dispatched(desk)
    await desk.report(desk.status(job, 900, "downloading", progress=90))
    await desk.report(
        desk.status(job, 1, "downloading", message_id="again-1", progress=5), store_id="store-2"
    )
    assert (await desk.jobs.get(job.job_id)).now.progress == 5


async def test_acks_follow_the_commit_and_nothing_is_acked_without_one(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await dispatched(desk)
    seen: list[str] = []

    async def look() -> None:
        seen.append((await desk.row("SELECT state FROM jobs WHERE job_id = $1", job.job_id))["state"])

    desk.air.before_publish = look
    await desk.report(desk.status(job, 1, "downloading"))
    assert seen == ["downloading"]

    async def broken(*_: Any) -> None:
        raise asyncpg.ConnectionDoesNotExistError("gone")

    monkeypatch.setattr(desk.commands, "answered", broken)
    with pytest.raises(Unavailable):
        await desk.report(desk.status(job, 2, "flashing"))
    assert len(desk.air.acks()) == 1
    assert (await desk.jobs.get(job.job_id)).state == "downloading"
    monkeypatch.undo()
    await desk.report(desk.status(job, 2, "flashing"))
    assert (await desk.jobs.get(job.job_id)).state == "flashing"
    assert len(desk.air.acks()) == 2


async def test_an_unforeseen_error_is_neither_acked_nor_called_a_bad_status(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await dispatched(desk)

    async def bug(*_: Any) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(desk.commands, "answered", bug)
    with pytest.raises(KeyError):
        await desk.report(desk.status(job, 1, "done"))
    assert await letters(desk) == []
    assert desk.air.acks() == []


@pytest.mark.parametrize("how", ["away", "failing"])
async def test_an_ack_that_is_lost_comes_with_the_repeat(desk: Any, how: str) -> None:
    job = await dispatched(desk)
    desk.air.connected, desk.air.failing = how != "away", how == "failing"
    status = desk.status(job, 1, "downloading")
    await desk.report(status)
    assert (await desk.jobs.get(job.job_id)).state == "downloading"
    desk.air.connected, desk.air.failing = True, False
    await desk.report(status)
    assert told(desk)[0] == [status.message_id]


async def test_acks_of_a_large_batch_stay_small_messages(desk: Any) -> None:
    job = await dispatched(desk)
    messages = []
    for part in range(12):
        statuses = tuple(
            desk.status(job if part % 2 else "none", part * 200 + n + 1, "downloading", message_id=new_id())
            for n in range(200)
        )
        messages.append(desk.from_device("update", StatusBatch(store_id="store-1", statuses=statuses)))
    await desk.processor.handle(messages)
    accepted, rejected = told(desk)
    assert len(set(accepted)) == 1200
    assert len(rejected) == 1200
    assert max(len(payload) for _, payload in desk.air.sent) < 64 * 1024


async def test_a_dead_status_can_be_replayed_once_its_job_is_there(desk: Any) -> None:
    job = await dispatched(desk)
    status = desk.status("4f1c", 7, "flashing")
    await desk.report(status)
    [letter] = await letters(desk)
    with pytest.raises(Conflict) as caught:
        await desk.letters.replay(letter.dead_letter_id, by="anna")
    assert "no job" in caught.value.message
    async with desk.db.transaction() as connection:
        await connection.execute(
            "INSERT INTO jobs (job_id, device_id, state, scheduled_at, created_by)"
            " VALUES ('4f1c', 'truck-001', 'abandoned', now(), 'test')"
        )
        await connection.execute("UPDATE jobs SET state = 'done' WHERE job_id = $1", job.job_id)
        await connection.execute("UPDATE jobs SET state = 'dispatched' WHERE job_id = '4f1c'")
    await desk.letters.replay(letter.dead_letter_id, by="anna")
    assert (await desk.jobs.get("4f1c")).state == TruckStatus.FLASHING.value
