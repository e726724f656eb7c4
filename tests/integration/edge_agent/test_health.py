"""Releases that ask their ECUs to prove more than who they are, on real buses: trouble codes, a heartbeat.

Played is the download alone. The two ECUs are simulated MCUs on one CAN hub, reached by the real flashers;
the vehicle's J1939 bus is a second hub, with the real reader on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import can
import msgspec
import pytest

from edge_agent.clock import Clock
from edge_agent.interlocks.j1939 import CCVS, EEC1, ETC2, VEP1
from edge_agent.interlocks.j1939_vehicle import BusSource, J1939Vehicle
from edge_agent.interlocks.safety import STRICT, Policy
from edge_agent.interlocks.vehicle import BenchVehicle
from edge_agent.store.release_plan import FaultBounds, HealthBounds, HeartbeatBounds, ReleasePlan, plan_of
from edge_agent.update.ecus import Limits
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess
from firmware_flashers.base import Capabilities, FirmwareImage, Flasher, Identity, TroubleCode
from firmware_flashers.registry import EcuSettings, open_component, profile_of
from shared.backoff import Backoff
from shared.messages import Command
from shared.release import FirmwareSpec
from shared.states import TruckStatus, UpdateState
from shared.trust.document import make_document
from sim.can_bus import HubBus, hub_in_thread
from sim.heartbeat import SimHeartbeat
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Stm32Mcu, factory
from sim.mcu.trouble_codes import TroubleCodes
from sim.vehicle_bus import BRAKE_CONTROLLER, COMPUTER, ENGINE, TRANSMISSION, SimVehicle

SECRET = bytes(range(32))
BYTES = 4096
QUICK = {"reset_pause_s": 0.03, "boot_s": 5.0, "tester_present_s": 0.5}
BRAKES = {one: build_image(one, BYTES, DEFAULT_MAP.slot.start) for one in ("1.0.0", "2.0.0")}
DISPLAY = {one: build_esp_image(version=one, nbytes=BYTES) for one in ("4.0.0", "5.0.0")}
OLD, NEW = ("1.0.0", "4.0.0"), ("2.0.0", "5.0.0")
WORN, BAD = 0xC10000, 0x000123
PGN, BRAKES_ADDRESS = 65280, 0x21
SENDERS = {
    CCVS.pgn: (BRAKE_CONTROLLER,),
    EEC1.pgn: (ENGINE,),
    ETC2.pgn: (TRANSMISSION,),
    VEP1.pgn: (COMPUTER,),
}
POLICY = Policy(rules=msgspec.structs.replace(STRICT, steady_for=100))
PATIENCE_S = 60.0

NO_CODES = HealthBounds(within_s=PATIENCE_S, every_s=0.05, faults=FaultBounds(status_mask=0x08, for_s=0.5))
BEATS = HeartbeatBounds(pgn=PGN, every_s=0.5, for_s=0.6)
BEATING = HealthBounds(within_s=PATIENCE_S, every_s=0.05, heartbeat=BEATS)


def hasty(bounds: HealthBounds) -> HealthBounds:
    """For what fails all the same."""
    return replace(bounds, within_s=1.5)


class Meddling:
    """A flasher whose answers about trouble codes a test may change; with `tells` None it gives none."""

    def __init__(self, flasher: Any, tells: Callable[[Any], Any]) -> None:
        self._flasher = flasher
        self._tells = tells

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flasher, name)

    async def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        told: tuple[TroubleCode, ...] = self._tells(await self._flasher.trouble_codes(status_mask))
        return told


class Reduced:
    """The six steps of a flasher and nothing else, as of a ROM loader."""

    def __init__(self, flasher: Flasher) -> None:
        self._flasher = flasher
        self.stage, self.activate, self.verify = flasher.stage, flasher.activate, flasher.verify
        self.confirm, self.revert = flasher.confirm, flasher.revert

    @property
    def capabilities(self) -> Capabilities:
        return self._flasher.capabilities

    async def identify(self) -> Identity:
        return await self._flasher.identify()


@dataclass
class Rig:
    """A truck with two simulated ECUs; `health` is what each of them is to prove."""

    truck: Any
    folder: Path
    stack: ExitStack
    health: dict[str, HealthBounds] = field(default_factory=dict)
    around: Callable[[str, Any], Any] = lambda _, flasher: flasher
    brakes: Any = None
    display: Any = None
    vehicle: J1939Vehicle | None = None
    beating: threading.Event = field(default_factory=threading.Event)

    def power_on(self, **trouble: TroubleCodes) -> None:
        """Both ECUs run their old images."""
        channel = self.folder / "can.sock"
        self.stack.enter_context(hub_in_thread(channel, bitrate=None))
        buses = [self._bus(channel) for _ in range(2)]
        truck = self.truck
        common: dict[str, Any] = {"public_keys": (truck.public,), "security_secret": SECRET}
        old = {
            name: self._image(name, version) for name, version in zip(("brakes", "display"), OLD, strict=True)
        }
        flash = {name: self.folder / f"{name}.flash" for name in old}
        factory(flash["brakes"], old["brakes"].data, old["brakes"].document)
        esp32_factory(flash["display"], old["display"].data, old["display"].document)
        self.brakes = self.stack.enter_context(
            Stm32Mcu(
                McuSettings(
                    flash_file=flash["brakes"],
                    identity=EcuIdentity(kind="brake-controller", hardware="rev-b"),
                    trouble=trouble.get("brakes", TroubleCodes()),
                    **common,
                ),
                buses[0],
            )
        )
        self.display = self.stack.enter_context(
            Esp32Mcu(
                Esp32Settings(
                    flash_file=flash["display"],
                    identity=EcuIdentity(kind="display", hardware="rev-a"),
                    request_id=0x7E1,
                    response_id=0x7E9,
                    trouble=trouble.get("display", TroubleCodes()),
                    **common,
                ),
                buses[1],
            )
        )

    def begin_vehicle(self, runs: Callable[[], bool]) -> None:
        """The vehicle's bus, on which the brakes send their heartbeat while `runs` says so."""
        channel = self.folder / "vehicle.sock"
        self.stack.enter_context(hub_in_thread(channel))
        self.vehicle = J1939Vehicle(
            BusSource(interface="quarry-hub", channel=str(channel), senders=SENDERS),
            Clock(),
            backoff=Backoff(first_s=0.05, most_s=0.1),
        )
        self.stack.enter_context(self.vehicle)
        self.stack.enter_context(SimVehicle(self._bus(channel)))
        self.stack.enter_context(
            SimHeartbeat(self._bus(channel), pgn=PGN, source=BRAKES_ADDRESS, period_s=0.05, runs=runs)
        )

    def _bus(self, channel: Path) -> can.BusABC:
        bus = HubBus(channel)
        self.stack.callback(bus.shutdown)
        return bus

    def brakes_run(self, *versions: str) -> bool:
        uds = self.brakes.uds
        return uds.running_version in versions

    def _image(self, name: str, version: str) -> FirmwareImage:
        data = (BRAKES if name == "brakes" else DISPLAY)[version]
        kind, hardware = ("brake-controller", "rev-b") if name == "brakes" else ("display", "rev-a")
        spec = FirmwareSpec(
            kind=kind,
            hardware=(hardware,),
            version=version,
            release_counter=int(version[0]),
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        document = make_document(spec, self.truck.signer, self.truck.later(days=900))
        self.truck.downloads.images[spec.sha256] = data
        return FirmwareImage(spec=spec, data=data, document=document)

    def access(self, name: str) -> ComponentAccess:
        kind, hardware = ("brake-controller", "rev-b") if name == "brakes" else ("display", "rev-a")
        word = "stm32-uds" if name == "brakes" else "esp32-uds"
        secret = self.folder / "secret"
        secret.write_bytes(SECRET)
        secret.chmod(0o600)
        settings = EcuSettings(
            component=name,
            flasher=word,
            interface="quarry-hub",
            channel=str(self.folder / "can.sock"),
            kind=kind,
            hardware=hardware,
            tx_id=0x7E0 if name == "brakes" else 0x7E1,
            rx_id=0x7E8 if name == "brakes" else 0x7E9,
            security_secret_file=secret,
            profile=profile_of(word, {"timing": QUICK}),
        )

        @asynccontextmanager
        async def opened() -> AsyncIterator[Any]:
            async with open_component(settings) as flasher:
                yield self.around(name, flasher)

        return ComponentAccess(kind=kind, hardware=hardware, open=opened)

    async def ready(self) -> None:
        """The updater, and what it needs to go back."""
        kept = KeptImages(self.folder / "images")
        old = self._image("brakes", "1.0.0")
        path = self.folder / "old-brakes"
        path.write_bytes(old.data)
        command = self.truck.command("job-0", spec=old.spec, document=old.document)
        await kept.keep(command.targets[0], str(path))

        def planner(command: Command, slots: Any) -> ReleasePlan:
            plan = plan_of(command, slots)
            known = HealthBounds(within_s=PATIENCE_S, every_s=0.05)
            return replace(
                plan,
                targets=tuple(
                    replace(one, health=self.health.get(one.component, known)) for one in plan.targets
                ),
            )

        self.truck.updater = self.truck.make_updater(
            components={name: self.access(name) for name in ("brakes", "display")},
            vehicle=self.vehicle or BenchVehicle(),
            policy=POLICY,
            addresses={"brakes": BRAKES_ADDRESS},
            limits=Limits(watch_s=0.05),
            kept=kept,
            planner=planner,
        )
        images = {
            name: self._image(name, version) for name, version in zip(("brakes", "display"), NEW, strict=True)
        }
        commands = [
            self.truck.command("job-1", component=name, spec=one.spec, document=one.document)
            for name, one in images.items()
        ]
        obj = commands[0].to_obj()
        obj["targets"] = [one.to_obj()["targets"][0] for one in commands]
        await self.truck.store.take_command(Command.from_obj(obj))

    @property
    def runs(self) -> tuple[str | None, str | None]:
        return self.brakes.uds.running_version, self.display.uds.running_version

    async def ended(self) -> Any:
        """The final status."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status = await self.truck.told()
                if status.status in {TruckStatus.DONE, TruckStatus.ERROR}:
                    return status


@pytest.fixture
def rig(truck: Any, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(truck=truck, folder=tmp_path, stack=stack)


async def test_a_bad_image_that_raises_a_trouble_code_sends_the_whole_release_back(rig: Rig) -> None:
    # It answers well at first: the code comes some time after the start.
    rig.power_on(brakes=TroubleCodes(of_version={"2.0.0": {BAD: 0x08}}, after_s=0.2))
    rig.health = {"brakes": replace(NO_CODES, within_s=3.0), "display": NO_CODES}
    await rig.ready()
    async with rig.truck.run():
        error = await rig.ended()
    assert (error.status, error.error.code) == (TruckStatus.ERROR, "dtc_after_start")
    assert "000123" in error.error.text
    assert rig.runs == OLD
    back = next(one for one in rig.truck.seen if one.step == "going_back")
    assert back.error.code == "dtc_after_start"
    # Flashed once: a second time would make nothing better.
    assert [one.step for one in rig.truck.seen].count("retrying") == 0


async def test_a_fault_that_was_there_before_sends_nothing_back(rig: Rig) -> None:
    rig.power_on(brakes=TroubleCodes(always={WORN: 0x2F}), display=TroubleCodes(always={WORN: 0x09}))
    rig.health = {"brakes": NO_CODES, "display": NO_CODES}
    await rig.ready()
    async with rig.truck.run():
        assert (await rig.ended()).status == TruckStatus.DONE
    assert rig.runs == NEW


async def test_a_known_fault_that_the_release_does_not_excuse_does(rig: Rig) -> None:
    rig.power_on(display=TroubleCodes(always={WORN: 0x2F}))
    strict = replace(NO_CODES, faults=FaultBounds(status_mask=0x08, known_may_stay=False))
    rig.health = {"display": hasty(strict)}
    await rig.ready()
    async with rig.truck.run():
        error = await rig.ended()
    assert error.error.code == "dtc_after_start"
    assert rig.runs == OLD


async def test_a_fault_that_comes_when_all_are_proved_is_seen_in_the_last_look(rig: Rig) -> None:
    rig.power_on()
    rig.health = {"display": hasty(NO_CODES)}

    def late(told: Any) -> Any:
        # The display is proved first; it takes a fault when the brakes run their new image.
        return (TroubleCode(code=BAD, status=0x08),) if rig.brakes_run("2.0.0") else told

    rig.around = lambda name, flasher: Meddling(flasher, late) if name == "display" else flasher
    await rig.ready()
    async with rig.truck.run():
        error = await rig.ended()
    assert error.error.code == "dtc_after_start"
    assert "display" in error.error.text
    assert rig.runs == OLD


async def test_a_heartbeat_that_does_not_come_sends_the_whole_release_back(rig: Rig) -> None:
    rig.power_on()
    rig.begin_vehicle(lambda: rig.brakes_run("1.0.0"))
    rig.health = {"brakes": hasty(BEATING)}
    await rig.ready()
    async with rig.truck.run():
        error = await rig.ended()
    assert (error.status, error.error.code) == (TruckStatus.ERROR, "no_heartbeat")
    assert "0x21" in error.error.text
    assert rig.runs == OLD


async def test_a_heartbeat_that_comes_late_and_in_bounds_is_waited_for(rig: Rig) -> None:
    rig.power_on()
    rig.begin_vehicle(rig.beating.is_set)
    rig.health = {"brakes": BEATING}
    await rig.ready()
    async with rig.truck.run():
        await rig.truck.told(step="reading_back", reason="brakes (1 of 2)")
        [entry] = await rig.truck.store.live()
        assert entry.state is UpdateState.CHECKING
        rig.beating.set()
        assert (await rig.ended()).status == TruckStatus.DONE
    assert rig.runs == NEW


async def test_one_that_is_stopped_in_the_middle_of_a_check_ends_whole(rig: Rig) -> None:
    rig.power_on(brakes=TroubleCodes(always={WORN: 0x2F}))
    rig.begin_vehicle(rig.beating.is_set)
    rig.health = {"brakes": replace(NO_CODES, heartbeat=BEATS)}
    await rig.ready()
    assert rig.vehicle is not None
    async with rig.truck.run():
        await rig.truck.told(step="reading_back", reason="brakes (1 of 2)")
        async with asyncio.timeout(PATIENCE_S):
            while not rig.vehicle._pulses:
                await asyncio.sleep(0.01)
    assert rig.vehicle._pulses == (), "nobody listens when the check is over"
    [entry] = await rig.truck.store.live()
    assert entry.state is UpdateState.CHECKING
    assert entry.release.state("brakes").former.faults == (WORN,)
    rig.beating.set()
    # A new life: what is known of before comes from the journal alone.
    fresh = rig.truck.updater
    await rig.ready()
    assert rig.truck.updater is not fresh
    async with rig.truck.run():
        assert (await rig.ended()).status == TruckStatus.DONE
    assert rig.runs == NEW


@pytest.mark.parametrize(
    ("name", "health", "around"),
    [
        ("codes of what tells none", NO_CODES, lambda name, one: Reduced(one) if name == "brakes" else one),
        ("a heartbeat without a bus", BEATING, lambda _, one: one),
        (
            "status bits that the ECU does not keep",
            replace(NO_CODES, faults=FaultBounds(status_mask=0x80)),
            lambda _, one: one,
        ),
    ],
)
async def test_what_can_not_be_told_on_this_truck_is_refused_before_the_first_touch(
    rig: Rig, name: str, health: HealthBounds, around: Any
) -> None:
    rig.power_on(brakes=TroubleCodes(kept_bits=0x7F))
    rig.health, rig.around = {"brakes": health}, around
    await rig.ready()
    async with rig.truck.run():
        error = await rig.ended()
    assert (error.status, error.error.code) == (TruckStatus.ERROR, "health_unknown"), name
    assert "preparing" not in [one.step for one in rig.truck.seen]
    assert rig.runs == OLD
