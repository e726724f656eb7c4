"""kill -9 of the whole office between any two steps: no event and no status is lost or invented."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest

from shared.messages import Status, TargetResult
from shared.states import TruckStatus


def status(job_id: str, seq: int, word: str, **more: Any) -> Status:
    return Status(
        message_id=f"m-{seq}",
        job_id=job_id,
        attempt=1,
        seq=seq,
        status=TruckStatus(word),
        step=word,
        at=datetime.now(UTC),
        **more,
    )


def name_of(pid: int) -> str | None:
    """The name of a process that lives (proc(5)); None when it does not, or only waits to be reaped."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(") ")
    except OSError:
        return None
    return None if rest.startswith("Z") else name.partition("(")[2]


def children(pid: int) -> dict[int, str]:
    """The direct children of a process, by their pids."""
    pids = [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in children_of(task)]
    return {child: name for child in pids if (name := name_of(child)) is not None}


def children_of(task: Path) -> list[str]:
    return (task / "children").read_text().split()


async def finish(office: Any, job_id: str) -> None:
    """The truck gets its command and installs; the job ends with exactly its own story."""
    job = await office.get(f"/api/v1/jobs/{job_id}")
    [target] = job["targets"]
    read_back = TargetResult(component="brakes", version=target["version"], sha256=target["sha256"])
    async with office.truck() as truck:
        async with asyncio.timeout(60):
            while not office.commands:
                await asyncio.sleep(0.02)
        await office.report(truck, status(job_id, 1, "downloading"), status(job_id, 2, "flashing"))
        await office.report(truck, status(job_id, 3, "done", targets=(read_back,)))

        async def ended() -> bool:
            return bool((await office.get(f"/api/v1/jobs/{job_id}"))["state"] == "done")

        await office.until(ended)
        async with asyncio.timeout(60):
            while not {"m-1", "m-2", "m-3"} <= set(office.accepted):
                await asyncio.sleep(0.02)
    story = await office.get(f"/api/v1/jobs/{job_id}")
    assert [line["to_state"] for line in story["history"]] == [
        *("scheduled", "ready", "dispatched", "downloading", "flashing", "done")
    ]
    assert {command.revision for command in office.commands} == {1}
    assert (await office.get("/api/v1/dead-letters"))["items"] == []


@pytest.mark.parametrize("point", ["outbox.before_publish", "outbox.before_mark"])
async def test_between_the_outbox_and_the_bus(office: Any, point: str) -> None:
    await office.start(kill_at=point)
    await office.prepare()
    # The answer may be lost with the process; the order is there or not, never half of it.
    try:
        job_id = await office.order()
    except httpx.HTTPError:
        job_id = None
    await office.until_dead()
    await office.start()
    jobs = (await office.get("/api/v1/jobs"))["items"]
    assert len(jobs) == 1
    assert job_id in (None, jobs[0]["job_id"])
    await finish(office, jobs[0]["job_id"])


async def test_between_the_dispatch_and_the_broker(office: Any) -> None:
    await office.start(kill_at="dispatcher.before_publish")
    await office.prepare()
    job_id = await office.order()
    # The broker dies under the truck, which notices that at once or when it leaves.
    with contextlib.suppress(aiomqtt.MqttError):
        async with office.truck():
            await office.until_dead()
    assert office.commands == []
    await office.start()
    assert (await office.get(f"/api/v1/jobs/{job_id}"))["state"] == "dispatched"
    await finish(office, job_id)


async def test_between_the_commit_of_a_status_and_its_ack(office: Any) -> None:
    await office.start(kill_at="event_processor.before_ack")
    await office.prepare()
    job_id = await office.order()
    # The first thing that a truck says, its hello, is taken over; then the process dies.
    # The broker dies under the truck, which notices that at once or when it leaves.
    with contextlib.suppress(aiomqtt.MqttError):
        async with office.truck():
            await office.until_dead()
    await office.start()
    await finish(office, job_id)


async def test_killed_at_any_moment_it_leaves_no_server_behind(office: Any) -> None:
    await office.start()
    servers = children(office.pid)
    assert sorted(servers.values()) == ["nats-server", "postgres"]
    await office.kill()
    async with asyncio.timeout(30):
        while any(name_of(pid) == name for pid, name in servers.items()):
            await asyncio.sleep(0.05)
    await office.start()
    assert (await office.get("/readyz"))["ok"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"QUARRY_KILL_AT": "no.such.point"}, "kill_at"),
        ({"QUARRY_HTTP_PROT": "8080"}, "http_prot"),
        ({"QUARRY_HTTP_PORT": "99999"}, "http_port"),
        ({"QUARRY_MQTT_HOST": "0.0.0.0"}, "mqtt_host"),
    ],
)
def test_what_it_does_not_understand_it_does_not_start_with(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", "serve", "--data", str(tmp_path / "office")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "office").exists()
