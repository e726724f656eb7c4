"""What trucks are told, when, and how often; on a real database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from control_plane.bus.base import BusMessage
from control_plane.dispatcher.pace import Pace
from control_plane.errors import Unavailable
from control_plane.outbox.service import job_event
from shared import topics
from shared.messages import CommandKind
from shared.topics import DEVICE_COMMANDS, JOB_EVENTS, BusTopic


async def kinds_and_revisions(desk: Any) -> list[tuple[str, int]]:
    return [(command.kind, command.revision) for command in desk.air.commands()]


def event(event_type: str, job: Any, topic: BusTopic) -> BusMessage:
    new = job_event(
        event_type, job_id=job.job_id, device_id=job.device_id, version=job.version, data={}, topic=topic
    )
    return BusMessage(topic=new.topic, key=new.key, event_id=new.event_id, payload=new.payload)


async def test_a_command_is_whole_and_made_when_it_is_sent(desk: Any, unix_time: list[float]) -> None:
    job = await desk.ready_job()
    await desk.hello()
    unix_time[0] += 500.0
    await desk.dispatcher.step()
    [command] = desk.air.commands()
    assert (command.job_id, command.attempt, command.revision) == (job.job_id, 1, 1)
    assert (command.kind, command.requires) == ("install", ("install", "doc-ed25519"))
    assert datetime.now(UTC) < command.expires_at < datetime.now(UTC) + timedelta(hours=25)
    [target] = command.targets
    firmware = await desk.firmwares.get(job.targets[0].firmware_id)
    assert target.document.encode() == firmware.document
    assert (target.component, target.version) == ("brakes", "1.1.0")
    assert (target.sha256, target.length) == (firmware.sha256, firmware.length)
    url = urlsplit(target.url)
    assert url.path == f"/files/{firmware.sha256}"
    # Signed now, not when the job was made.
    assert int(parse_qs(url.query)["expires"][0]) == int(unix_time[0] + desk.dispatcher.url_for_s)


async def test_the_job_is_dispatched_before_and_nothing_is_open_while_it_is_published(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    seen: list[tuple[str, int]] = []

    async def look() -> None:
        row = await desk.row(
            "SELECT (SELECT state FROM jobs WHERE job_id = $1) AS state,"
            " (SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%') AS open",
            job.job_id,
        )
        seen.append((row["state"], row["open"]))

    desk.air.before_publish = look
    await desk.dispatcher.step()
    assert seen == [("dispatched", 0)]
    assert [e[0] for e in await desk.events(job.job_id)][-1] == "job.state_changed"
    assert (await desk.jobs.get(job.job_id)).dispatched_at is not None


async def test_nothing_is_sent_to_a_truck_that_is_away_until_it_says_hello(desk: Any) -> None:
    await desk.ready_job()
    await desk.dispatcher.step()
    await desk.hello(online=False)
    await desk.make_due()
    await desk.dispatcher.step()
    assert desk.air.commands() == []
    await desk.hello()
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1)]


async def test_trucks_that_are_away_do_not_hold_up_those_that_are_here(desk: Any) -> None:
    await desk.publish()
    for number in range(6):
        await desk.add_truck(f"truck-{number}")
        await desk.order(f"truck-{number}")
    await desk.jobs.move_due(10)
    await desk.hello("truck-5")
    desk.dispatcher.pace = Pace(rate_per_s=1e-6, burst=2)
    for _ in range(4):
        await desk.dispatcher.step()
    assert len(desk.air.commands("truck-5")) == 1


async def test_it_is_sent_again_with_growing_waits_until_a_status_is_seen(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    waits = []
    for _ in range(8):
        await desk.dispatcher.step()
        await desk.dispatcher.step()  # not due again yet
        row = await desk.row(
            "SELECT extract(epoch FROM next_try_at - last_sent_at)::float8 AS wait FROM commands"
        )
        waits.append(round(row["wait"]))
        await desk.make_due()
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    sent = desk.air.commands()
    assert len(sent) == 8
    assert len({command.command_id for command in sent}) == 1
    await desk.report(desk.status(job, 1, "downloading", "received"))
    await desk.make_due()
    await desk.dispatcher.step()
    assert len(desk.air.commands()) == 8


async def test_hello_settles_what_the_truck_has_and_what_it_lacks(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.hello(**{job.job_id: 1})
    await desk.make_due()
    await desk.dispatcher.step()
    assert len(desk.air.commands()) == 1
    # Its database is gone: it has never heard of the job.
    await desk.hello(store_id="store-2")
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1), ("install", 1)]


async def test_a_cancel_is_sent_until_the_truck_has_it(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.report(desk.status(job, 1, "downloading"))
    job = await desk.jobs.get(job.job_id)
    await desk.jobs.cancel(job.job_id, job.version, "anna")
    await desk.dispatcher.step()
    cancel = desk.air.commands()[-1]
    assert (cancel.kind, cancel.revision, cancel.requires) == ("cancel", 2, ("cancel",))
    assert (cancel.targets, cancel.expires_at) == ((), None)
    # Progress on its way does not mean that the truck has heard of it.
    await desk.report(desk.status(job, 2, "downloading", progress=50))
    await desk.make_due()
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1), ("cancel", 2), ("cancel", 2)]
    await desk.report(desk.status(job, 3, "flashing", "too_late"))
    await desk.make_due()
    await desk.dispatcher.step()
    assert len(desk.air.commands()) == 3
    await desk.report(desk.status(job, 4, "done"))
    assert (await desk.jobs.get(job.job_id)).state == "done"


async def test_an_expired_url_is_replaced_by_a_newer_revision(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.report(desk.status(job, 1, "downloading", "url_expired"))
    assert (await desk.jobs.get(job.job_id)).command_kind is CommandKind.URL
    await desk.dispatcher.step()
    url = desk.air.commands()[-1]
    assert (url.kind, url.revision, url.requires) == ("url", 2, ("fresh-url",))
    assert url.targets[0].url.startswith("http://office.test/files/")
    # The same asking once more (a duplicate) makes nothing new; a newer one does.
    await desk.report(desk.status(job, 1, "downloading", "url_expired"))
    await desk.report(desk.status(job, 2, "downloading", "url_expired"))
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1), ("url", 2), ("url", 3)]
    await desk.report(desk.status(job, 3, "downloading", progress=10))
    await desk.make_due()
    await desk.dispatcher.step()
    assert len(desk.air.commands()) == 3


async def test_a_truck_that_forgot_the_job_gets_a_whole_install_not_a_url(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.report(desk.status(job, 1, "downloading", "url_expired"))
    await desk.dispatcher.step()
    await desk.hello(store_id="store-2")
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1), ("url", 2), ("install", 2)]


async def test_what_was_withdrawn_is_not_sent(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.firmwares.withdraw(job.targets[0].firmware_id, why="burns brakes", by="anna")
    await desk.dispatcher.step()
    assert desk.air.commands() == []
    job = await desk.jobs.get(job.job_id)
    assert (job.state, job.now.error.code) == ("error", "withdrawn")
    assert "burns brakes" in job.now.error.text
    assert job.finished_at is not None
    assert [e[0] for e in await desk.events(job.job_id)][-1] == "job.completed"
    # The office ended it: a late word of the truck does not open it again.
    await desk.report(desk.status(job, 1, "downloading"))
    assert (await desk.jobs.get(job.job_id)).state == "error"


async def test_what_was_withdrawn_after_the_dispatch_is_stopped(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.firmwares.withdraw(job.targets[0].firmware_id, why="burns brakes", by="anna")
    await desk.make_due()
    await desk.dispatcher.step()
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1), ("cancel", 2)]
    job = await desk.jobs.get(job.job_id)
    assert (job.state, job.now.reason is not None) == ("cancelling", True)


async def test_only_so_many_go_at_once(desk: Any) -> None:
    await desk.publish()
    for number in range(5):
        await desk.add_truck(f"truck-{number}")
        await desk.order(f"truck-{number}")
        await desk.hello(f"truck-{number}")
    await desk.jobs.move_due(10)
    desk.dispatcher.pace = Pace(rate_per_s=1e-6, burst=3)
    for _ in range(4):
        rest_s = await desk.dispatcher.step()
    assert len(desk.air.sent) == 3
    assert rest_s > 1000
    states = await desk.db.fetch("SELECT state FROM jobs WHERE state = 'ready'")
    assert len(states) == 2


async def test_a_broker_that_is_away_costs_nothing(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    desk.air.connected = False
    await desk.dispatcher.step()
    assert (await desk.jobs.get(job.job_id)).state == "ready"
    desk.air.connected, desk.air.failing = True, True
    with pytest.raises(Unavailable):
        await desk.dispatcher.step()
    row = await desk.row(
        "SELECT tries, extract(epoch FROM next_try_at - clock_timestamp())::float8 AS wait FROM commands"
    )
    assert row["tries"] == 0
    assert row["wait"] <= 1.0
    desk.air.failing = False
    await desk.make_due()
    await desk.dispatcher.step()
    assert await kinds_and_revisions(desk) == [("install", 1)]


async def test_the_consumer_only_writes_rows_and_a_repeat_writes_none(desk: Any) -> None:
    job = await desk.ready_job()
    ready = event("job.ready_to_execute", job, DEVICE_COMMANDS)
    await desk.dispatcher.handle([ready, ready])
    first = await desk.row("SELECT job_id, revision, command_id FROM commands")
    await desk.dispatcher.handle([ready])
    assert await desk.row("SELECT job_id, revision, command_id FROM commands") == first
    assert desk.air.sent == []
    assert (await desk.jobs.get(job.job_id)).state == "ready"


async def test_rows_of_jobs_that_ended_go(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.hello()
    await desk.dispatcher.step()
    await desk.report(desk.status(job, 1, "done"))
    job = await desk.jobs.get(job.job_id)
    await desk.dispatcher.handle([event("job.state_changed", job, JOB_EVENTS)])
    assert await desk.count("commands") == 1
    await desk.dispatcher.handle([event("job.completed", job, JOB_EVENTS)])
    assert await desk.count("commands") == 0


async def test_an_ended_job_is_not_sent_even_if_its_event_is_late(desk: Any) -> None:
    job = await desk.ready_job()
    await desk.dispatcher.step()
    job = await desk.jobs.get(job.job_id)
    await desk.jobs.cancel(job.job_id, job.version, "anna")
    await desk.hello()
    await desk.dispatcher.step()
    assert desk.air.sent == []
    assert await desk.count("commands") == 0


async def test_one_command_that_can_not_be_built_holds_up_no_other(desk: Any) -> None:
    await desk.publish()
    for name in ("truck-1", "truck-2"):
        await desk.add_truck(name)
        await desk.order(name)
        await desk.hello(name)
    await desk.jobs.move_due(10)
    async with desk.db.transaction() as connection:
        # Larger than any message may be.
        await connection.execute(
            "INSERT INTO firmwares (firmware_id, kind, version, hardware, release_counter, length, sha256,"
            " document, state, created_by) SELECT 'big', kind, '9', hardware, 1, length, sha256,"
            " convert_to(repeat('x', 200000), 'utf8'), state, created_by FROM firmwares"
        )
        await connection.execute(
            "UPDATE job_targets SET firmware_id = 'big' FROM jobs"
            " WHERE jobs.job_id = job_targets.job_id AND device_id = 'truck-1'"
        )
    await desk.dispatcher.step()
    assert [topic for topic, _ in desk.air.sent] == [topics.commands("truck-2")]
