"""The whole office, its real broker, and trucks that speak plain MQTT to it."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest

from control_plane.app import Office
from control_plane.config import OfficeConfig
from control_plane.data_folder import FolderBusy
from shared.errors import ConfigError
from shared.ids import new_id
from shared.messages import Sample, Status, TargetResult, Telemetry
from shared.states import TruckStatus
from shared.topics import CENTRE_READS


def status(job_id: str, seq: int, word: str, step: str | None = None, **more: Any) -> Status:
    return Status(
        message_id=more.pop("message_id", new_id()),
        job_id=job_id,
        attempt=1,
        seq=seq,
        status=TruckStatus(word),
        step=step or word,
        at=datetime.now(UTC),
        **more,
    )


def done(job: dict[str, Any], seq: int) -> Status:
    [target] = job["targets"]
    read_back = TargetResult(component="brakes", version=target["version"], sha256=target["sha256"])
    return status(job["job_id"], seq, "done", "finished", targets=(read_back,))


async def test_a_job_goes_all_the_way_and_every_status_is_acked(live: Any) -> None:
    truck = live.truck("truck-001")
    await truck.enrol()
    await live.publish()
    async with truck.online():
        job_id = await live.order("truck-001")
        await live.until(lambda: truck.commands)
        command = truck.commands[0]
        assert (command.job_id, command.kind, command.revision) == (job_id, "install", 1)
        # The image is there for whoever holds the URL, and nobody else needs to be asked.
        async with httpx.AsyncClient(trust_env=False) as client:
            image = await client.get(command.targets[0].url, headers={"Range": "bytes=6-"})
        assert (image.status_code, image.content) == (206, b"of 1.1.0")
        await live.until_state(job_id, "dispatched")
        job = await live.job(job_id)
        words = [
            status(job_id, 1, "downloading", "received"),
            status(job_id, 2, "downloading", progress=60),
            status(job_id, 3, "flashing", "writing", progress=10),
            done(job, 4),
        ]
        for one in words:
            await truck.report(one)
        await live.until_state(job_id, "done")
        await live.until(lambda: truck.accepted == {one.message_id for one in words})
        story = await live.job(job_id)
        assert [line["message_id"] for line in story["history"] if line["message_id"]] == [
            one.message_id for one in words
        ]
        # On a slow machine it may be sent again before the first status is heard: the same one.
        assert len({one.command_id for one in truck.commands}) == 1
        await truck.lose_link()
        async with asyncio.timeout(30):
            while (await live.api.get("/api/v1/devices/truck-001")).json()["online"]:
                await asyncio.sleep(0.05)
    ready = await live.api.get("/readyz")
    assert ready.status_code == 200, ready.text
    text = (await live.api.get("/metrics")).text
    assert 'jobs_finished_total{state="done"} 1.0' in text
    assert 'statuses_total{outcome="applied"} 4.0' in text
    assert "jobs_created_total 1.0" in text


async def test_duplicates_disorder_and_rubbish_harm_nothing(live: Any) -> None:
    truck = live.truck("truck-001")
    await truck.enrol()
    await live.publish()
    async with truck.online():
        job_id = await live.order("truck-001")
        await live.until(lambda: truck.commands)
        job = await live.job(job_id)
        late, last = status(job_id, 1, "downloading"), done(job, 9)
        stranger = status("4f1c", 2, "flashing", message_id="stranger")
        for rubbish in (b"", b"\xff\x00", b"{}", b"[1]", b"x" * 200_000):
            await truck.say("update", rubbish)
            await truck.say("hello", rubbish)
            await truck.say("manifest", rubbish)
        await truck.report(last)
        await truck.report(late, stranger, last)
        broken = json.loads(status(job_id, 3, "flashing", message_id="broken").to_json()) | {"seq": -1}
        batch = {"v": 1, "store_id": "store-1", "statuses": [broken]}
        await truck.say("update", json.dumps(batch).encode())
        samples = (Sample(name="oil", value=80.5, unit="C", at=datetime.now(UTC)),)
        await truck.say("telemetry", Telemetry(store_id="store-1", samples=samples))
        await live.until(lambda: {"stranger", "broken"} <= set(truck.rejected))
        await live.until(lambda: {late.message_id, last.message_id} <= truck.accepted)
        assert (await live.job(job_id))["state"] == "done"
    letters = (await live.api.get("/api/v1/dead-letters", params={"limit": 200})).json()["items"]
    assert {one["source"] for one in letters} == {"status", "mqtt"}
    too_large = [one for one in letters if one["source"] == "mqtt"]
    assert {one["reason"] for one in too_large} == {"200000 bytes are over 131072"}
    assert (await live.api.get("/readyz")).status_code == 200
    text = (await live.api.get("/metrics")).text
    assert 'mqtt_messages_total{kind="telemetry"} 1.0' in text


async def test_a_truck_that_comes_later_gets_the_newest_word_only(live: Any) -> None:
    truck = live.truck("truck-001")
    await truck.enrol()
    await live.publish()
    job_id = await live.order("truck-001")
    await live.until_state(job_id, "ready")
    async with truck.online():
        await live.until_state(job_id, "dispatched")
        await live.until(lambda: truck.commands)
    version = (await live.job(job_id))["version"]
    cancelled = await live.api.post(f"/api/v1/jobs/{job_id}/cancel", headers={"If-Match": f'"{version}"'})
    assert cancelled.json()["state"] == "cancelling"
    truck.commands.clear()
    async with truck.online(**{job_id: 1}):
        await live.until(lambda: truck.commands)
        assert {(one.kind, one.revision) for one in truck.commands} == {("cancel", 2)}
        await truck.report(status(job_id, 1, "cancelled"))
        await live.until_state(job_id, "cancelled")


async def test_statuses_wait_at_the_broker_while_the_office_is_away(tmp_path: Path, live: Any) -> None:
    """The office's session is durable: what trucks say while it restarts is there afterwards."""
    truck = live.truck("truck-001")
    await truck.enrol()
    account = json.loads((live.office.config.data / "office-mqtt.json").read_text())
    async with truck.online():
        # Somebody with the office's own account takes its session over: it is thrown out, and comes back.
        async with aiomqtt.Client(
            truck.host,
            truck.port,
            username=account["user"],
            password=account["password"],
            identifier=account["client_id"],
            clean_session=False,
        ) as thief:
            await thief.subscribe([(topic, 1) for topic in CENTRE_READS])
            await truck.report(status("4f1c", 1, "flashing", message_id="while-away"))
        async with asyncio.timeout(60):
            while (await live.api.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
        await truck.report(status("4f1c", 2, "flashing", message_id="afterwards"))
        await live.until(lambda: "afterwards" in truck.rejected)


async def test_a_folder_has_one_office(live: Any) -> None:
    with pytest.raises(FolderBusy, match="another office"):
        async with Office(live.office.config):
            pass
    assert (await live.api.get("/healthz")).status_code == 200


@pytest.mark.parametrize("key", ["http_port", "mqtt_port"])
async def test_a_busy_port_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, key: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = {"http_port": 0, "mqtt_port": 0, key: port}
        with pytest.raises(ConfigError, match=f"{key} {port}"):
            async with Office(OfficeConfig(data=tmp_path / "office", **ports)):
                pass
    assert not (tmp_path / "office" / "postgres").exists()


async def test_files_are_private_and_the_endpoints_come_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "office"
    folder.mkdir(mode=0o755)
    async with Office(OfficeConfig(data=folder, http_port=0, mqtt_port=0)) as office:
        told = json.loads((folder / "endpoints.json").read_text())
        assert (told["url"], told["mqtt_port"]) == (office.url, office.mqtt_port)
        for name in ("endpoints.json", "admin-token", "url-key", "office-mqtt.json"):
            assert (folder / name).stat().st_mode & 0o777 == 0o600, name
        assert folder.stat().st_mode & 0o777 == 0o700
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert {"http", "mqtt", "bus", "loop.outbox", "loop.scheduler", "loop.dispatcher"} <= names
    assert not (folder / "endpoints.json").exists()
    left = {task.get_name() for task in asyncio.all_tasks()} & names
    assert not {name for name in left if name.startswith(("loop.", "bus", "mqtt", "http"))}
