"""Due jobs move by the database's clock, each once, whatever happened to their events."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from control_plane.bus.base import BusMessage
from control_plane.loops import Loop, Wake
from control_plane.scheduler.worker import Scheduler

FUTURE = datetime.now(UTC) + timedelta(hours=1)


async def due(desk: Any, count: int) -> list[Any]:
    await desk.publish()
    jobs = []
    for number in range(count):
        await desk.add_truck(f"truck-{number}")
        jobs.append(await desk.order(f"truck-{number}"))
    return jobs


async def test_a_due_job_becomes_ready_with_its_event(desk: Any) -> None:
    [job] = await due(desk, 1)
    scheduler = Scheduler(jobs=desk.jobs, wake=Wake(), outbox=desk.outbox)
    await scheduler.step()
    assert (await desk.jobs.get(job.job_id)).state == "ready"
    assert await desk.events(job.job_id) == [
        ("job.created", "job.events", "job.created", 1),
        # Keyed by device on the topic of commands: 500 trucks are 500 keys.
        ("job.ready_to_execute", "device.commands", "truck-0", 2),
    ]
    await scheduler.step()
    assert len(await desk.events(job.job_id)) == 2


async def test_a_job_waits_for_its_time_and_the_rest_is_bounded(desk: Any) -> None:
    await desk.publish()
    await desk.add_truck()
    soon = await desk.order(scheduled_at=FUTURE)
    scheduler = Scheduler(jobs=desk.jobs, wake=Wake(), outbox=desk.outbox)
    assert await scheduler.step() == scheduler.most_rest_s
    assert (await desk.jobs.get(soon.job_id)).state == "scheduled"
    async with desk.db.transaction() as connection:
        await connection.execute("UPDATE jobs SET scheduled_at = clock_timestamp() + interval '1 s'")
    assert 0 < await scheduler.step() <= 1.0
    async with desk.db.transaction() as connection:
        await connection.execute("UPDATE jobs SET scheduled_at = clock_timestamp()")
    await scheduler.step()
    assert (await desk.jobs.get(soon.job_id)).state == "ready"


async def test_two_schedulers_at_once_move_each_job_once(desk: Any) -> None:
    jobs = await due(desk, 12)
    moved = await asyncio.gather(*(desk.jobs.move_due(5) for _ in range(6)))
    assert sum(count for count, _ in moved) == len(jobs)
    for job in jobs:
        assert [e[0] for e in await desk.events(job.job_id)] == ["job.created", "job.ready_to_execute"]
        assert (await desk.jobs.get(job.job_id)).version == 2


async def test_a_full_batch_goes_on_at_once(desk: Any) -> None:
    await due(desk, 3)
    scheduler = Scheduler(jobs=desk.jobs, wake=Wake(), outbox=desk.outbox, batch=2)
    assert await scheduler.step() == 0.0
    assert await scheduler.step() > 0


async def test_job_created_ends_the_rest(desk: Any) -> None:
    wake = Wake()
    scheduler = Scheduler(jobs=desk.jobs, wake=wake, outbox=desk.outbox, most_rest_s=3600.0)
    steps = 0
    rested = asyncio.Event()

    async def step() -> float:
        nonlocal steps
        steps += 1
        rested.set()
        return await scheduler.step()

    loop = asyncio.create_task(Loop(name="scheduler", step=step, wake=wake).run())
    try:
        await rested.wait()
        [job] = await due(desk, 1)
        message = BusMessage(topic="job.events", key="job.created", event_id="e", payload=b"")
        async with asyncio.timeout(20):
            while (await desk.jobs.get(job.job_id)).state != "ready":
                await scheduler.handle([message])
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
