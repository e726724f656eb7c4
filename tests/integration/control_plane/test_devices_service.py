"""What trucks say of themselves: hello, manifest, store numbers; in any order, any number of times."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.db import Connection, Database
from control_plane.devices import service
from control_plane.devices.service import Component, DeviceRecord, DeviceService, NewComponent
from control_plane.errors import Conflict, Invalid, NotFound
from shared.ids import BadId
from shared.messages import Hello, Installed, Manifest

AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BRAKE = NewComponent(component="brake", kind="brake-controller", hardware="rev-b")


@pytest.fixture
async def truck(database: Database, devices: DeviceService) -> str:
    async with database.transaction() as connection:
        await devices.create(connection, device_id="truck-001", components=[BRAKE], by="admin")
    return "truck-001"


def _hello(*, online: bool = True, store_id: str = "s1", version: str = "1.0") -> Hello:
    return Hello(online=online, store_id=store_id, agent_version=version, features=("install",))


def _installed(
    version: str | None = "1.0.0",
    *,
    component: str = "brake",
    kind: str = "brake-controller",
    hw: str = "rev-b",
) -> Installed:
    sha256 = None if version is None else "ab" * 32
    return Installed(component=component, kind=kind, hardware=hw, version=version, sha256=sha256)


def _manifest(*components: Installed, seq: int = 1, store_id: str = "s1") -> Manifest:
    return Manifest(store_id=store_id, seq=seq, components=components, at=AT)


async def _take(database: Database, devices: DeviceService, device_id: str, manifest: Manifest) -> bool:
    async with database.transaction() as connection:
        return await devices.take_manifest(connection, device_id, manifest)


async def _hear(
    database: Database, devices: DeviceService, device_id: str, hello: Hello, at: datetime = AT
) -> bool:
    async with database.transaction() as connection:
        return await devices.heard(connection, device_id, hello, at)


async def _brake(devices: DeviceService) -> Component:
    return (await devices.get("truck-001")).components[0]


async def test_hello_and_last_will(database: Database, devices: DeviceService, truck: str) -> None:
    assert await _hear(database, devices, truck, _hello())
    device = await devices.get(truck)
    assert (device.online, device.last_seen_at, device.agent_version) == (True, AT, "1.0")
    assert device.features == ("install",)
    assert device.version == 1, "coming and going is no new version"
    async with database.transaction() as connection:
        assert await devices.which_online(connection, [truck, "truck-404"]) == {truck}
    assert await _hear(database, devices, truck, _hello(online=False), AT + timedelta(seconds=1))
    assert not (await devices.get(truck)).online
    async with database.transaction() as connection:
        assert await devices.which_online(connection, [truck]) == set()
        assert await devices.which_online(connection, []) == set()


async def test_a_replayed_old_hello_does_not_change_the_present(
    database: Database, devices: DeviceService, truck: str
) -> None:
    await _hear(database, devices, truck, _hello(online=False, version="2.0"))
    assert await _hear(database, devices, truck, _hello(version="1.0"), AT - timedelta(days=1))
    device = await devices.get(truck)
    assert (device.online, device.agent_version, device.last_seen_at) == (False, "2.0", AT)


async def test_unknown_trucks_are_said_to_be_so(database: Database, devices: DeviceService) -> None:
    assert not await _hear(database, devices, "truck-404", _hello())
    assert not await _take(database, devices, "truck-404", _manifest(_installed()))
    async with database.transaction() as connection:
        with pytest.raises(NotFound):
            await devices.lock_for_job(connection, "truck-404")
    with pytest.raises(NotFound):
        await devices.get("truck-404")


async def test_the_newest_manifest_wins_in_every_order_of_arrival(
    database: Database, devices: DeviceService, truck: str
) -> None:
    # s1 and s2 were seen in this order, so what s2 says is newer, whatever its seq.
    async with database.transaction() as connection:
        numbers = await devices.store_numbers(connection, [(truck, "s1")])
        numbers |= await devices.store_numbers(connection, [(truck, "s2")])
    assert numbers == {(truck, "s1"): 1, (truck, "s2"): 2}
    manifests = [
        _manifest(_installed("1.0.1"), seq=1),
        _manifest(_installed("1.0.2"), seq=2),
        _manifest(_installed("2.0.0"), seq=0, store_id="s2"),
        _manifest(_installed("2.0.1"), seq=1, store_id="s2"),
    ]
    for order in itertools.permutations(manifests):
        async with database.transaction() as connection:
            await connection.execute("UPDATE device_stores SET manifest_seq = -1")
            await connection.execute("UPDATE components SET installed_version = NULL")
        best = (0, -1)
        for manifest in order:
            assert await _take(database, devices, truck, manifest)
            assert await _take(database, devices, truck, manifest)
            best = max(best, (numbers[truck, manifest.store_id], manifest.seq))
            expected = f"{best[0]}.0.{best[1]}"
            assert (await _brake(devices)).installed_version == expected


async def test_the_same_seq_again_changes_nothing_even_with_other_content(
    database: Database, devices: DeviceService, truck: str
) -> None:
    await _take(database, devices, truck, _manifest(_installed("1.0.0"), seq=0))
    await _take(database, devices, truck, _manifest(_installed("6.6.6"), seq=0))
    assert (await _brake(devices)).installed_version == "1.0.0"


async def test_a_new_version_only_when_something_is_different(
    database: Database, devices: DeviceService, truck: str
) -> None:
    await _take(database, devices, truck, _manifest(_installed("1.0.0"), seq=1))
    assert (await devices.get(truck)).version == 2
    await _take(database, devices, truck, _manifest(_installed("1.0.0"), seq=2))
    assert (await devices.get(truck)).version == 2
    await _take(database, devices, truck, _manifest(_installed("1.0.1"), seq=3))
    assert (await devices.get(truck)).version == 3
    erased = _manifest(
        Installed(component="brake", kind="brake-controller", hardware="rev-b", in_bootloader=True), seq=4
    )
    await _take(database, devices, truck, erased)
    brake = await _brake(devices)
    assert (brake.installed_version, brake.installed_sha256, brake.in_bootloader) == (None, None, True)


async def test_other_hardware_than_registered_is_shown_and_never_overwrites(
    database: Database, devices: DeviceService, truck: str
) -> None:
    await _take(database, devices, truck, _manifest(_installed(hw="rev-x"), seq=1))
    brake = await _brake(devices)
    assert (brake.kind, brake.hardware) == ("brake-controller", "rev-b")
    assert (brake.reported_kind, brake.reported_hardware, brake.differs) == (None, "rev-x", True)
    # The truck was repaired: the difference is gone by itself.
    await _take(database, devices, truck, _manifest(_installed(), seq=2))
    assert not (await _brake(devices)).differs
    # Or the operator corrects what is registered.
    await _take(database, devices, truck, _manifest(_installed(kind="other", hw="rev-x"), seq=3))
    version = (await devices.get(truck)).version
    registered = NewComponent(component="brake", kind="other", hardware="rev-x")
    device = await devices.change(truck, version, components=[registered], by="admin")
    [brake] = device.components
    assert (brake.kind, brake.hardware, brake.differs) == ("other", "rev-x", False)
    assert brake.installed_version == "1.0.0", "what the truck said of it stays"


async def test_a_component_that_nobody_registered_is_taken_as_the_truck_says(
    database: Database, devices: DeviceService, truck: str
) -> None:
    await _take(database, devices, truck, _manifest(_installed(component="mast", kind="mast", hw="rev-1")))
    brake, mast = (await devices.get(truck)).components
    assert brake.reported_at is None, "what is not in the manifest stays as it was"
    assert (mast.component, mast.kind, mast.hardware, mast.differs) == ("mast", "mast", "rev-1", False)


async def test_a_truck_that_invents_components_fills_no_table(
    database: Database, devices: DeviceService, truck: str
) -> None:
    for seq in range(3):
        invented = [_installed(component=f"c{seq}-{n}") for n in range(64)]
        await _take(database, devices, truck, _manifest(*invented, seq=seq))
    await _take(database, devices, truck, _manifest(_installed("9.9.9"), seq=9))
    components = (await devices.get(truck)).components
    assert len(components) == 64
    assert {one.component: one.installed_version for one in components}["brake"] == "9.9.9"


async def test_stores_are_numbered_at_first_sight_and_for_ever(
    database: Database, devices: DeviceService, truck: str
) -> None:
    async with database.transaction() as connection:
        await devices.create(connection, device_id="truck-002", by="admin")
    await _hear(database, devices, truck, _hello(store_id="zzz"))
    pairs = [(truck, "aaa"), (truck, "zzz"), ("truck-002", "aaa"), ("truck-404", "aaa"), (truck, "aaa")]
    async with database.transaction() as connection:
        numbers = await devices.store_numbers(connection, pairs)
        assert numbers == {(truck, "zzz"): 1, (truck, "aaa"): 2, ("truck-002", "aaa"): 1}
        assert await devices.store_numbers(connection, reversed(pairs)) == numbers
        assert await devices.store_numbers(connection, []) == {}


async def test_stores_numbered_by_many_at_once_agree_and_never_deadlock(
    database: Database, devices: DeviceService
) -> None:
    names = [f"truck-{n}" for n in range(6)]
    async with database.transaction() as connection:
        for name in names:
            await devices.create(connection, device_id=name, by="admin")
    pairs = [(name, f"store-{n}") for name in names for n in range(4)]

    async def number(shift: int) -> dict[tuple[str, str], int]:
        async with database.transaction() as connection:
            return await devices.store_numbers(connection, pairs[shift:] + pairs[:shift])

    first, *others = await asyncio.gather(*(number(shift) for shift in (0, 3, 7, 11, 17, 23)))
    assert all(one == first for one in others)
    for name in names:
        assert sorted(n for (device_id, _), n in first.items() if device_id == name) == [1, 2, 3, 4]


async def test_a_mad_truck_gets_a_bounded_number_of_stores(
    database: Database, devices: DeviceService, truck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_STORES", 3)
    async with database.transaction() as connection:
        numbers = await devices.store_numbers(connection, [(truck, f"s{n}") for n in range(5)])
        assert sorted(numbers.values()) == [1, 2, 3]
        assert await devices.store_numbers(connection, numbers) == numbers, "the old ones go on"
    assert await _take(database, devices, truck, _manifest(_installed("6.6.6"), store_id="s4"))
    assert (await _brake(devices)).installed_version is None, "what can't be ordered is not believed"


async def test_the_lock_of_a_job_holds_others_off(
    database: Database, devices: DeviceService, truck: str
) -> None:
    async with database.transaction() as connection:
        record = await devices.lock_for_job(connection, truck)
        assert isinstance(record, DeviceRecord)
        other = asyncio.create_task(_take(database, devices, truck, _manifest(_installed("1.0.1"))))
        async with asyncio.timeout(10):
            while not await _waiting(database):
                assert not other.done()
        assert (await devices.lock_for_job(connection, truck)) == record
    assert await other
    assert (await _brake(devices)).installed_version == "1.0.1"


async def _waiting(database: Database) -> bool:
    return bool(
        await database.fetch(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


async def test_creation_refuses_what_can_not_be(
    database: Database, devices: DeviceService, truck: str
) -> None:
    async def create(device_id: str, components: list[NewComponent]) -> None:
        async def act(connection: Connection) -> None:
            await devices.create(connection, device_id=device_id, components=components, by="admin")

        await database.run(act)

    with pytest.raises(BadId):
        await create("a/b", [])
    with pytest.raises(Invalid):
        await create("new", [BRAKE, BRAKE])
    with pytest.raises(Conflict):
        await create(truck, [])
    with pytest.raises(NotFound):
        await devices.get("new")
