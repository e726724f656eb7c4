"""The interlocks on a real bus: the vehicle sends J1939, the real reader hears it, the real updater waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import can
import msgspec
import pytest

from edge_agent.clock import Clock
from edge_agent.interlocks.hold import Hold, release_hold, set_hold
from edge_agent.interlocks.j1939 import CCVS, EEC1, ETC2, VEP1
from edge_agent.interlocks.j1939_vehicle import BusSource, J1939Vehicle
from edge_agent.interlocks.people import Gates
from edge_agent.interlocks.safety import STRICT, Forbidden, Policy, VehicleState, judge
from edge_agent.update.acts import Limits
from firmware_flashers.base import Capabilities, TrustClass
from shared.backoff import Backoff
from shared.messages import Window
from shared.states import TruckStatus
from sim.can_bus import HubBus, HubServer, hub_in_thread
from sim.vehicle_bus import (
    BRAKE_CONTROLLER,
    COMPUTER,
    ENGINE,
    PARKED,
    STATES,
    TRANSMISSION,
    Sends,
    SimVehicle,
    frames,
)

SENDERS = {
    CCVS.pgn: (BRAKE_CONTROLLER,),
    EEC1.pgn: (ENGINE,),
    ETC2.pgn: (TRANSMISSION,),
    VEP1.pgn: (COMPUTER,),
}
POLICY = Policy(rules=msgspec.structs.replace(STRICT, steady_for=100))
PATIENCE_S = 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[HubServer, Path]]:
    path = tmp_path / "hub.sock"
    with hub_in_thread(path) as server:
        yield server, path


def reader(path: Path, **other: Any) -> J1939Vehicle:
    words: dict[str, Any] = {"interface": "quarry-hub", "channel": str(path), "senders": SENDERS, **other}
    return J1939Vehicle(BusSource(**words), Clock(), backoff=Backoff(first_s=0.05, most_s=0.1))


@contextmanager
def closing(bus: Any) -> Iterator[Any]:
    """A bus for the time of the block."""
    try:
        yield bus
    finally:
        bus.shutdown()


async def until(vehicle: J1939Vehicle, fits: Callable[[set[str]], bool], policy: Policy = POLICY) -> set[str]:
    """The codes of the causes, as soon as they are so."""
    found: set[str] = set()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                verdict = judge(await vehicle.state(), policy)
                found = {one.code for one in verdict.causes} if isinstance(verdict, Forbidden) else set()
                if fits(found):
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"last seen: {sorted(found)}") from None


STATE_CODES = {
    "driving": {"moves", "brake_not_set", "engine_runs", "gear_engaged"},
    "rolling": {"moves", "brake_not_set"},
    "engine_running": {"engine_runs"},
    "brake_released": {"brake_not_set"},
    "brake_error": {"brake_unknown"},
    "not_available": {"speed_unknown", "brake_unknown", "rpm_unknown", "gear_unknown"},
    "contradicting": {"moves", "contradiction"},
    "low_battery": {"battery_low"},
    "key_off": {"key_off", "rpm_unknown", "gear_unknown"},
    "stale": {
        "speed_unknown",
        "brake_unknown",
        "rpm_unknown",
        "gear_unknown",
        "battery_unknown",
        "key_unknown",
    },
}


async def test_each_state_of_the_vehicle_is_heard(hub: Any) -> None:
    assert set(STATE_CODES) == set(STATES) - {"parked"}
    with reader(hub[1]) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus) as sim:
        for word, expected in STATE_CODES.items():
            sim.show(PARKED)
            await until(vehicle, lambda found: not found)
            sim.show(STATES[word])
            await until(vehicle, lambda found, wanted=expected: wanted <= found)  # type: ignore[misc]


async def test_signals_that_stop_are_unknown(hub: Any) -> None:
    with reader(hub[1]) as vehicle, closing(HubBus(hub[1])) as bus:
        with SimVehicle(bus):
            await until(vehicle, lambda found: not found)
        await until(vehicle, lambda found: "speed_unknown" in found and "battery_unknown" in found)


async def test_a_sender_of_another_address_is_not_believed(hub: Any) -> None:
    pinned = {**SENDERS, EEC1.pgn: (0x55,)}
    with reader(hub[1], senders=pinned) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus):
        await until(vehicle, lambda found: found == {"rpm_unknown"})


async def test_a_priority_is_nobodys_business(hub: Any) -> None:
    """Who sends with another priority is heard: an attacker must not hide behind it, nor a tool be deaf."""
    with reader(hub[1]) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus):
        await until(vehicle, lambda found: not found)
        moving = next(data for _, number, data in frames(STATES["driving"]) if number & 0xFFFF00 == 0xFEF100)

        def send() -> None:
            bus.send(
                can.Message(arbitration_id=0x0CFEF100 | BRAKE_CONTROLLER, data=moving, is_extended_id=True)
            )

        await until(vehicle, lambda found: (send(), "moves" in found)[1])  # type: ignore[func-returns-value]


STRANGERS = {
    "functional": (0x7DF, False),
    "physical": (0x7E2, False),
    "an ECU that answers one": (0x7EA, False),
    "29 bits": (0x18DA0BF9, True),
    "29 bits, functional": (0x18DB33F1, True),
}


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_foreign_tester_is_not_safe(hub: Any, who: str) -> None:
    number, extended = STRANGERS[who]
    with reader(hub[1]) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus):
        await until(vehicle, lambda found: not found)
        bus.send(can.Message(arbitration_id=number, data=b"\x02\x3e\x00", is_extended_id=extended))
        await until(vehicle, lambda found: found == {"foreign_tester"})


async def test_our_own_conversation_is_not_foreign(hub: Any) -> None:
    own = {"own_tx": frozenset({0x7E0, 0x18DA0BF1}), "own_rx": frozenset({0x7E8, 0x18DAF10B})}
    with reader(hub[1], **own) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus) as sim:
        await until(vehicle, lambda found: not found)
        for number in (0x7E0, 0x7E8, 0x18DA0BF1, 0x18DAF10B):
            bus.send(can.Message(arbitration_id=number, data=b"\x02\x3e\x00", is_extended_id=number > 0x7FF))
        # The bus keeps the order: when the news has come, so have those frames.
        sim.show(STATES["brake_released"])
        found = await until(vehicle, lambda found: "brake_not_set" in found)
        assert "foreign_tester" not in found


async def test_a_bus_that_goes_is_unknown_and_one_that_comes_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with reader(path) as vehicle:
        await until(vehicle, lambda found: found == {"bus_unknown"})
        for _ in range(2):
            with hub_in_thread(path), closing(HubBus(path)) as bus, SimVehicle(bus):
                await until(vehicle, lambda found: not found)
            await until(vehicle, lambda found: found == {"bus_unknown"})


async def test_the_virtual_interface_works_alike() -> None:
    with (
        reader(Path("quarry-interlocks"), interface="virtual", channel="quarry-interlocks") as vehicle,
        closing(can.Bus("quarry-interlocks", interface="virtual", ignore_config=True)) as bus,
        SimVehicle(bus) as sim,
    ):
        await until(vehicle, lambda found: not found)
        sim.show(STATES["driving"])
        await until(vehicle, lambda found: "moves" in found)


async def test_a_bus_that_nobody_can_follow_is_unknown() -> None:
    channel = "quarry-flood"
    with closing(can.Bus(channel, interface="virtual", ignore_config=True)) as bus:
        stop = asyncio.Event()

        def flood() -> None:
            message = can.Message(arbitration_id=0x18FE1021, data=bytes(8), is_extended_id=True)
            while not stop.is_set():
                for _ in range(500):
                    bus.send(message)

        with reader(Path(channel), interface="virtual", channel=channel, senders=SENDERS) as vehicle:
            await until(vehicle, lambda found: "speed_unknown" in found)
            flooding = asyncio.create_task(asyncio.to_thread(flood))
            try:
                await until(vehicle, lambda found: found == {"bus_unknown"})
            finally:
                stop.set()
                await flooding


# --- the whole way --------------------------------------------------------------------------------


@pytest.fixture
async def yard(truck: Any, hub: Any) -> AsyncIterator[Any]:
    """The truck of the other tests with the real reader and a vehicle around it; `yard.show(state)`."""
    with reader(hub[1]) as vehicle, closing(HubBus(hub[1])) as bus, SimVehicle(bus) as sim:
        gates = Gates(data_dir=truck.downloads.folder, clock=truck.clock)

        def rig(**other: Any) -> None:
            words = {"vehicle": vehicle, "policy": POLICY, "gates": gates, "limits": Limits(watch_s=0.02)}
            truck.updater = truck.make_updater(**(words | other))

        truck.rig, truck.gates, truck.sim, truck.reader = rig, gates, sim, vehicle
        rig()
        yield truck


def show(yard: Any, sends: Sends) -> None:
    yard.sim.show(sends)


async def told_why(yard: Any, word: str, status: TruckStatus, *, without: str = "\0") -> Any:
    """The next wait with that status whose reason has `word` in it, and not `without`.

    Others may come between: a machine that is busy makes signals stale.
    """
    while True:
        waiting = await yard.told(step="waiting", status=status)
        if word in waiting.reason and without not in waiting.reason:
            return waiting


async def test_a_job_waits_for_the_parking_brake_and_goes_on(yard: Any) -> None:
    show(yard, STATES["brake_released"])
    await until(yard.reader, lambda found: found == {"brake_not_set"})
    await yard.store.take_command(yard.command())
    async with yard.run():
        waiting = await yard.told(
            step="waiting", reason="the vehicle is not ready: the parking brake is not set"
        )
        assert (waiting.status, waiting.error) == (TruckStatus.DOWNLOADING, None)
        assert [one.to_obj() for one in waiting.causes] == [{"code": "brake_not_set"}]
        # The download did not wait.
        assert len(yard.downloads.asked) == 1
        assert "stage" not in yard.ecu.calls
        show(yard, PARKED)
        await yard.told(status=TruckStatus.DONE)
    reasons = [one.reason for one in yard.seen if one.step == "waiting"]
    assert all(one != other for one, other in pairwise(reasons))
    assert yard.ecu.version == "2.0.0"


async def test_a_brake_released_between_stage_and_reset_delays_the_reset(yard: Any) -> None:
    yard.ecu.may_stage.clear()
    await yard.store.take_command(yard.command())
    async with yard.run():
        await yard.ecu.staging.wait()
        show(yard, STATES["brake_released"])
        await until(yard.reader, lambda found: "brake_not_set" in found)
        yard.ecu.may_stage.set()
        await told_why(yard, "the parking brake is not set", TruckStatus.FLASHING)
        await yard.store.take_command(yard.command(kind="cancel", revision=2))
        await yard.told(step="too_late")
        assert "activate" not in yard.ecu.calls
        show(yard, PARKED)
        await yard.told(status=TruckStatus.DONE)
    # An erased ECU was written to its end, once.
    assert yard.ecu.calls.count("stage") == 1
    assert yard.ecu.calls.count("activate") == 1


async def test_a_second_slot_is_left_alone_when_the_truck_drives_off(yard: Any) -> None:
    """The application runs on meanwhile; nothing was touched that it needs, so a cancel is honoured."""
    ecu = yard.ecu
    two = Capabilities(
        slots=2, self_reverting=True, anti_rollback=False, trust_class=TrustClass.VERIFIES, isolated_bus=False
    )
    stopped = asyncio.Event()

    async def stage(image: Any, *, progress: Any = None) -> None:
        ecu.calls.append("stage")
        if ecu.calls.count("stage") == 1:
            ecu.staging.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        ecu.version, ecu.sha256 = image.spec.version, image.spec.sha256

    type(ecu).capabilities, before = property(lambda _: two), type(ecu).capabilities
    ecu.stage = stage
    try:
        await yard.store.take_command(yard.command())
        async with yard.run():
            await ecu.staging.wait()
            show(yard, STATES["driving"])
            await told_why(yard, "it moves", TruckStatus.DOWNLOADING)
            assert stopped.is_set()
            assert ecu.version == "1.0.0"
            show(yard, PARKED)
            await yard.told(status=TruckStatus.DONE)
    finally:
        type(ecu).capabilities = before
    assert ecu.calls.count("stage") == 2


async def test_a_look_that_fails_does_not_cut_a_flash_short(truck: Any) -> None:
    class Broken:
        def __init__(self) -> None:
            self.broken = asyncio.Event()

        async def state(self) -> VehicleState:
            if truck.ecu.staging.is_set() and not truck.ecu.may_stage.is_set():
                self.broken.set()
                raise RuntimeError("a fault of the agent itself")
            return VehicleState(parked=True, engine_off=True, voltage_v=26.0, age_s=0.0)

    vehicle = Broken()
    truck.updater = truck.make_updater(vehicle=vehicle, limits=Limits(watch_s=0.01))
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await vehicle.broken.wait()
        truck.ecu.may_stage.set()
        await truck.told(status=TruckStatus.DONE)
    assert truck.ecu.calls.count("stage") == 1


async def test_an_interlock_that_is_lost_while_one_slot_is_written_is_told_once(truck: Any) -> None:
    class Looked:
        looks = 0

        async def state(self) -> VehicleState:
            self.looks += 1
            known: VehicleState = truck.vehicle.known
            return known

    vehicle = Looked()
    truck.updater = truck.make_updater(vehicle=vehicle, limits=Limits(watch_s=0.01))
    truck.ecu.may_stage.clear()
    await truck.store.take_command(truck.command())
    async with truck.run():
        await truck.told(step="erasing")
        truck.drive()
        while not (against := await truck.told(step="erasing")).causes:
            pass
        assert (against.status, against.progress) == (TruckStatus.FLASHING, 0)
        assert [one.code for one in against.causes] == ["not_parked", "written_on"]
        assert against.reason == (
            "the vehicle is not ready: it is not parked, "
            "what was begun is written to its end, and its start waits"
        )
        before = vehicle.looks
        async with asyncio.timeout(PATIENCE_S):
            while vehicle.looks < before + 20:
                await asyncio.sleep(0.01)
        await truck.store.flush()
        assert await truck.store.next_statuses() == [], "told with every look"
        truck.park()
        while (again := await truck.told(step="erasing")).causes:
            pass
        assert again.reason is None
        truck.ecu.may_stage.set()
        await truck.told(status=TruckStatus.DONE)
    assert truck.ecu.calls.count("stage") == 1


async def test_hold_and_consent_are_waited_for_and_each_is_told(yard: Any) -> None:
    yard.rig(policy=replace(POLICY, rules=msgspec.structs.replace(POLICY.rules, need_consent=True)))
    set_hold(yard.gates.data_dir, Hold(by="anna", why="blasting"))
    await until(yard.reader, lambda found: not found)
    await yard.store.take_command(yard.command())
    async with yard.run():
        one = await told_why(yard, "held here: anna, blasting", TruckStatus.DOWNLOADING)
        assert "has not consented" in one.reason
        release_hold(yard.gates.data_dir)
        await told_why(yard, "has not consented", TruckStatus.DOWNLOADING, without="held")
        yard.gates.consent_to(by="anna", seconds=60, job_id="another job")
        yard.gates.consent_to(by="anna", seconds=60, job_id="job-1")
        await yard.told(status=TruckStatus.DONE)


async def test_the_commands_window_holds_with_a_safe_vehicle_too(yard: Any) -> None:
    window = Window(opens_at=yard.later(hours=1), closes_at=yard.later(hours=2))
    await until(yard.reader, lambda found: not found)
    await yard.store.take_command(yard.command(window=window))
    async with yard.run():
        waiting = await told_why(yard, "opens at", TruckStatus.DOWNLOADING)
        assert [one.code for one in waiting.causes] == ["window_opens"]
        yard.wall = yard.later(hours=1)
        await yard.told(status=TruckStatus.DONE)
