"""From the published folder to a truck that accepts: image repository in, directed, verified over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tuf.api.metadata import Metadata

from control_plane.bus.base import BusMessage
from control_plane.db import Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.director import service
from control_plane.director.model import MOST_GAP
from control_plane.dispatcher.service import CommandService
from control_plane.event_processor.worker import EventProcessor
from control_plane.http_app import serving
from control_plane.local_installs.service import LocalInstallService
from control_plane.loops import Wake
from shared.backoff import Backoff
from shared.ids import new_id
from shared.messages import FromDevice, Hello
from shared.topics import DEVICE_STATUS
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.repository_edit import withdraw
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import Outcome, verify
from sim.uptane_world import BUILT_AT, UptaneWorld, image_bytes

TRUCK = "truck-7"


class _NoAir:
    """A broker that nobody needs here."""

    connected = True

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        raise AssertionError(f"nothing is to be published, {topic} was")


async def _ready(yard: Any, version: str = "1.1.0", counter: int = 2) -> Any:
    """A registered truck, and a release that is published, taken in and chosen for it."""
    release = yard.world.release(version, counter)
    answer = await yard.publish()
    assert answer.status_code == 201, answer.text
    if (await yard.operator.get(f"/api/v1/devices/{TRUCK}/ecus")).status_code == 404:
        assert (await yard.register()).status_code == 200
    answer = await yard.choose(release)
    assert answer.status_code == 200, answer.text
    return release


async def test_a_truck_accepts_what_is_directed_and_fetches_its_images(yard: Any) -> None:
    release = await _ready(yard)
    listener = socket.create_server(("127.0.0.1", 0))
    async with serving(yard.app, listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def truck() -> tuple[Outcome, list[bytes]]:
            with httpx.Client(base_url=url, headers=yard.truck.headers, trust_env=False) as http:

                def fetch(wanted: Wanted) -> bytes | None:
                    base = "/repo/image" if wanted.repository == "image" else f"/repo/director/{TRUCK}"
                    answer = http.get(f"{base}/{wanted.name}")
                    return answer.content if answer.status_code == 200 else None

                reading, policy = Reading(wall=yard.clock[0]), TimePolicy(built_at=BUILT_AT)
                outcome = drive(verify(yard.world.store(), yard.world.vehicle, reading, policy), fetch)
                assert outcome.selection is not None, outcome.refused
                names = [one.served_name for one in outcome.selection.assignments]
                return outcome, [http.get(f"/repo/image/{name}").content for name in names]

        outcome, images = await asyncio.to_thread(truck)
    assert outcome.selection is not None
    assert outcome.selection.release == release
    assert [one.ecu.serial for one in outcome.selection.assignments] == ["SN-0", "SN-1"]
    assert images == [image_bytes(ecu.kind, "1.1.0") for ecu in yard.world.vehicle.ecus]


async def test_without_a_choice_nothing_is_installed_and_the_metadata_stays_fresh(yard: Any) -> None:
    assert (await yard.publish()).status_code == 201
    outcome = await yard.verify(yard.world.store())
    assert (outcome.selection, outcome.refused) == (None, None)
    assert outcome.store.director.timestamp == 1


async def test_versions_only_grow_and_what_is_signed_is_kept_until_it_is_due(yard: Any) -> None:
    async def version() -> int:
        answer = await yard.truck.get(f"/repo/director/{TRUCK}/timestamp.json")
        return int(Metadata.from_bytes(answer.content).signed.version)

    release = await _ready(yard)
    assert [await version(), await version()] == [1, 1]
    yard.clock[0] += timedelta(hours=11)
    assert await version() == 1
    yard.clock[0] += timedelta(hours=2)
    assert await version() == 2
    await yard.choose(None)
    assert await version() == 3
    await yard.choose(release)
    assert await asyncio.gather(*(version() for _ in range(5))) == [4] * 5
    # A verification that began before the newest was signed finds its files.
    for number in (1, 2, 3, 4):
        for role in ("targets", "snapshot"):
            answer = await yard.truck.get(f"/repo/director/{TRUCK}/{number}.{role}.json")
            assert Metadata.from_bytes(answer.content).signed.version == number
    assert (await yard.truck.get(f"/repo/director/{TRUCK}/5.targets.json")).status_code == 404


async def test_an_office_restored_from_a_backup_goes_on_above_what_trucks_trust(
    yard: Any, database: Database
) -> None:
    await _ready(yard)
    outcome = await yard.verify(yard.world.store())
    for hours in (13, 26):
        yard.clock[0] = yard.world.now + timedelta(hours=hours)
        outcome = await yard.verify(outcome.store)
    assert outcome.store.director.timestamp == 3
    async with database.transaction() as connection:
        # The backup is from before anything was signed for this truck.
        await connection.execute("DELETE FROM director_metadata")
        await connection.execute("UPDATE director_vehicles SET version = 1")
    refused = await yard.verify(outcome.store)
    assert refused.refused is not None
    assert refused.refused.code == "metadata_rolled_back"
    async with database.transaction() as connection:
        await yard.room.director.heard(
            connection, TRUCK, {"director/timestamp": 3, "director/snapshot": 3, "image/timestamp": 900}
        )
    again = await yard.verify(outcome.store)
    assert again.refused is None
    assert again.store.director.timestamp == 4


async def test_hello_tells_the_director_which_metadata_a_truck_trusts(yard: Any) -> None:
    processor = EventProcessor(
        db=yard.db,
        devices=yard.devices,
        jobs=yard.jobs,
        local_installs=LocalInstallService(yard.db),
        commands=CommandService(yard.jobs, yard.devices, yard.firmwares, resend=Backoff(first_s=5, most_s=9)),
        dead_letters=DeadLetterService(yard.db),
        mqtt=_NoAir(),
        metrics=yard.metrics,
        outbox=Wake(),
        dispatcher=Wake(),
        director=yard.room.director,
    )
    hello = Hello(
        online=True,
        store_id="store-1",
        agent_version="0.1.0",
        metadata_versions={"director/root": 1, "director/timestamp": 41, "image/timestamp": 77},
    )
    outer = FromDevice(
        device_id=TRUCK,
        kind="hello",
        payload=hello.to_json().decode("latin-1"),
        received_at=datetime.now(UTC),
    )
    message = BusMessage(topic=DEVICE_STATUS.name, key=TRUCK, event_id=new_id(), payload=outer.to_json())
    await processor.handle([message])
    answer = await yard.truck.get(f"/repo/director/{TRUCK}/timestamp.json")
    assert Metadata.from_bytes(answer.content).signed.version == 42


async def test_a_report_of_a_smaller_version_lowers_nothing_and_a_mad_one_is_an_alarm(yard: Any) -> None:
    await _ready(yard)
    await yard.verify(yard.world.store())
    async with yard.db.transaction() as connection:
        await yard.room.director.heard(connection, TRUCK, {"director/timestamp": 0})
        await yard.room.director.heard(connection, TRUCK, {"director/timestamp": MOST_GAP + 2})
    outcome = await yard.verify(yard.world.store())
    assert outcome.store.director.timestamp == 1
    assert await yard.alarms() == [("metadata_version_ahead", "", 1)]


async def test_operators_see_which_metadata_a_truck_trusts(yard: Any) -> None:
    await _ready(yard)
    for versions in ({"director/timestamp": 1, "image/timestamp": 7}, {"director/timestamp": 1}):
        async with yard.db.transaction() as connection:
            # What no truck of ours would say is not kept.
            await yard.room.director.heard(connection, TRUCK, {**versions, "x/y": 3})
        ecus = (await yard.operator.get(f"/api/v1/devices/{TRUCK}/ecus")).json()
        assert ecus["metadata_versions"] == versions


async def test_a_truck_gets_its_own_directions_only(yard: Any) -> None:
    await _ready(yard)
    other = await yard.add_truck("truck-8")
    for name in ("timestamp.json", "1.targets.json", "1.root.json"):
        answer = await other.get(f"/repo/director/{TRUCK}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await other.get("/repo/director/truck-8/timestamp.json")).status_code == 200
    # On the link, another truck's files in place of its own are refused.
    files: dict[str, bytes] = {}
    for name in ("timestamp.json", "1.snapshot.json", "1.targets.json"):
        files[name] = (await other.get(f"/repo/director/truck-8/{name}")).content

    def swap(wanted: Wanted, raw: bytes | None) -> bytes | None:
        return files.get(wanted.name, raw) if wanted.repository == "director" else raw

    outcome = await yard.verify(yard.world.store(), tamper=swap)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.selection) == ("wrong_vehicle", None)


async def test_a_captured_director_alone_installs_nothing_that_was_not_signed_offline(yard: Any) -> None:
    await _ready(yard)
    evil = UptaneWorld().release("6.6.6", 66)
    # The thief has the online keys and the database: he writes the rows that the director believes.
    async with yard.db.transaction() as connection:
        await connection.execute(
            "INSERT INTO image_targets (path, sha256, length, release) VALUES ($1, $2, $3, $4)",
            *(evil.target_path, "0" * 64, len(evil.dump()), evil.dump()),
        )
        for target in evil.targets:
            await connection.execute(
                "INSERT INTO image_targets (path, sha256, length) VALUES ($1, $2, $3)",
                *(target.spec.target_path, target.sha256, target.length),
            )
    assert (await yard.choose(evil)).status_code == 200
    outcome = await yard.verify(yard.world.store())
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.selection) == ("target_not_found", None)


async def test_keys_that_do_not_answer_are_not_waited_for_without_end(
    yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def stuck(*_: Any, **__: Any) -> dict[str, bytes]:
        released.wait(20)
        return {}

    monkeypatch.setattr(service, "direct", stuck)
    monkeypatch.setattr(service, "SIGN_WITHIN_S", 0.05)
    answer = await yard.truck.get(f"/repo/director/{TRUCK}/timestamp.json")
    released.set()
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    monkeypatch.undo()
    # The version that was taken for it is never used.
    answer = await yard.truck.get(f"/repo/director/{TRUCK}/timestamp.json")
    assert Metadata.from_bytes(answer.content).signed.version == 2


async def test_a_withdrawn_release_is_directed_no_more(yard: Any) -> None:
    release = await _ready(yard)
    world = yard.world
    world.now = yard.clock[0] = world.now + timedelta(minutes=1)
    world.image, _ = withdraw(world.image, release.targets[0].spec.target_path, world.now)
    world.publish()
    assert (await yard.publish()).status_code == 201
    body = (await yard.operator.get(f"/api/v1/devices/{TRUCK}/selection")).json()
    assert body["release"] is None
    assert "not signed any more" in body["why"]
    name = served_name(release.targets[0].spec.target_path, release.targets[0].sha256)
    assert (await yard.truck.get(f"/repo/image/{name}")).status_code == 404
    outcome = await yard.verify(world.store())
    assert (outcome.selection, outcome.refused) == (None, None)


async def test_files_by_range_and_tag(yard: Any) -> None:
    release = await _ready(yard)
    spec = release.targets[0].spec
    url = f"/repo/image/{served_name(spec.target_path, spec.sha256)}"
    whole = await yard.truck.get(url)
    assert whole.headers["etag"] == f'"{spec.sha256}"'
    part = await yard.truck.get(url, headers={"Range": "bytes=5-", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[5:])
    assert (await yard.truck.get(url, headers={"Range": "bytes=999999-"})).status_code == 416
    head = await yard.truck.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(spec.length))
    for url in ("/repo/image/timestamp.json", f"/repo/director/{TRUCK}/timestamp.json"):
        first = await yard.truck.get(url)
        assert first.headers["cache-control"] == "private, no-cache"
        again = await yard.truck.get(url, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        part = await yard.truck.get(url, headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.content) == (206, first.content[:10])
    assert (await yard.truck.get("/repo/image/2.snapshot.json")).headers["cache-control"] == (
        "private, immutable"
    )


@pytest.mark.parametrize(
    ("choose", "status", "code"),
    [
        (lambda: {"release": "releases/none/1/x.json"}, 404, "unknown_release"),
        (dict, 422, "invalid"),
        (lambda: {"release": "a\x00b"}, 422, "invalid"),
    ],
)
async def test_what_can_not_be_chosen(
    yard: Any, choose: Callable[[], dict[str, str]], status: int, code: str
) -> None:
    await _ready(yard)
    answer = await yard.operator.put(f"/api/v1/devices/{TRUCK}/selection", json=choose())
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_release_for_none_of_its_ecus_is_not_chosen(yard: Any) -> None:
    release = await _ready(yard)
    await yard.add_truck("truck-8")
    answer = await yard.choose(release, "truck-8")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert (await yard.choose(release, "truck-9")).json()["code"] == "unknown_device"
