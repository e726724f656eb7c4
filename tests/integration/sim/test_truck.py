"""A simulated truck with several ECUs and a vehicle, asked by the agent's own parts and by nothing else."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.clock import Clock
from edge_agent.config import AgentConfig, load_config
from edge_agent.interlocks.j1939_vehicle import J1939Vehicle
from edge_agent.interlocks.safety import Forbidden, judge
from firmware_flashers.registry import open_component
from shared.errors import ConfigError
from sim.mcu.esp32_mcu import Esp32Mcu
from sim.mcu.server import Stm32Mcu
from sim.scenarios.desk import Desk
from sim.scenarios.truck import BODY, BRAKE
from sim.truck import VEHICLE_FILE, Bench, powered
from sim.truck_config import BODY_ECU, BRAKE_ECU, TruckEcu, TruckSettings, TruckTrust, write_agent_config

IMAGE_BYTES = 8 * 1024
PATIENCE_S = 40


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk([BRAKE, BODY])


@pytest.fixture
def settings(tmp_path: Path, desk: Desk) -> TruckSettings:
    """A truck with both kinds of ECU, fresh from the factory, in a yard with its brake released."""
    key = tmp_path / "key.pub"
    key.write_bytes(desk.firmware_key)
    ecus = []
    for product, ecu in ((BRAKE, BRAKE_ECU), (BODY, BODY_ECU)):
        made = desk.firmware(product, "1.0.0", counter=1, nbytes=IMAGE_BYTES)
        image, document = tmp_path / f"{product.component}.bin", tmp_path / f"{product.component}.json"
        image.write_bytes(made.image)
        document.write_bytes(made.document)
        ecus.append(
            TruckEcu(
                component=ecu.component,
                kind=ecu.kind,
                hardware=ecu.hardware,
                flasher=ecu.flasher,
                image=image,
                document=document,
            )
        )
    director, image_root = tmp_path / "director.root.json", tmp_path / "image.root.json"
    director.write_bytes(desk.roots[0])
    image_root.write_bytes(desk.roots[1])
    return TruckSettings(
        folder=tmp_path / "truck",
        office_url="http://127.0.0.1:9",
        firmware_keys=(key,),
        ecus=tuple(ecus),
        vehicle="brake_released",
        trust=TruckTrust(director_root=director, image_root=image_root),
    )


@pytest.fixture
def bench(settings: TruckSettings) -> Iterator[Bench]:
    with powered(settings) as bench:
        yield bench


@pytest.fixture
def config(settings: TruckSettings, bench: Bench) -> AgentConfig:
    return load_config(write_agent_config(settings, bench.channel, bench.vehicle_channel))


async def test_both_ecus_say_who_they_are_to_the_agents_flashers(config: AgentConfig, bench: Bench) -> None:
    assert isinstance(bench.mcus["brake"], Stm32Mcu)
    assert isinstance(bench.mcus["body"], Esp32Mcu)
    said = {}
    for component in config.components:
        async with open_component(component) as flasher:
            identity = await flasher.identify()
            said[component.component] = (
                identity.kind,
                identity.hardware,
                identity.version,
                flasher.capabilities.slots,
            )
    assert said == {
        "brake": ("brake-controller", "rev-b", "1.0.0", 1),
        "body": ("body-controller", "rev-c", "1.0.0", 2),
    }
    for name in said:
        assert len(bench.running_content(IMAGE_BYTES, name)) == IMAGE_BYTES


def test_the_agent_is_configured_with_the_trust_chain_and_the_vehicles_senders(config: AgentConfig) -> None:
    trust = config.trust.uptane
    assert trust is not None
    assert {name: trust.serial_of(name) for name in ("brake", "body")} == {
        "brake": "brake",
        "body": "body",
    }
    assert config.vehicle.bus is not None
    assert len(config.vehicle.bus.senders) == 4
    # Nothing is narrowed here: the signed policy of a release is all that counts.
    source = tomllib.loads(config.source.read_text())
    assert "safety" not in source


async def test_a_person_drives_it_by_a_file(config: AgentConfig, settings: TruckSettings) -> None:
    file = settings.folder / VEHICLE_FILE
    assert file.read_text() == "brake_released\n"
    assert config.vehicle.bus is not None
    with J1939Vehicle(config.vehicle.bus, Clock()) as vehicle:

        async def until(fits: Callable[[set[str]], bool]) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    verdict = judge(await vehicle.state(), config.policy)
                    if fits(
                        {one.code for one in verdict.causes} if isinstance(verdict, Forbidden) else set()
                    ):
                        return
                    await asyncio.sleep(0.02)

        await until(lambda causes: causes == {"brake_not_set"})
        file.write_text("parked engine_rpm=650")
        await until(lambda causes: causes == {"engine_runs"})
        file.write_text("driving")
        await until(lambda causes: "moves" in causes)


def test_what_was_written_of_the_vehicle_outlives_a_restart(settings: TruckSettings) -> None:
    settings.folder.mkdir()
    (settings.folder / VEHICLE_FILE).write_text("key_off")
    with powered(settings):
        pass
    assert (settings.folder / VEHICLE_FILE).read_text() == "key_off"
    (settings.folder / VEHICLE_FILE).write_text("flying")
    with pytest.raises(ConfigError, match="there is no state 'flying'"), powered(settings):
        pass


def test_a_truck_without_a_vehicle_is_a_bench(tmp_path: Path, settings: TruckSettings) -> None:
    plain = TruckSettings(
        folder=tmp_path / "plain", office_url="http://127.0.0.1:9", firmware_keys=settings.firmware_keys
    )
    with powered(plain) as bench:
        assert bench.vehicle is None
        config = load_config(write_agent_config(plain, bench.channel, bench.vehicle_channel))
    assert config.vehicle.source == "bench"
    assert config.trust.uptane is None
    assert [one.component for one in config.components] == ["brake"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no ECU": ({"ecus": ()}, "1 to 8 ECUs"),
    "nine ECUs": ({"ecus": tuple(TruckEcu(component=f"e{n}") for n in range(9))}, "1 to 8 ECUs"),
    "one name twice": ({"ecus": (BRAKE_ECU, BRAKE_ECU)}, "two ECUs have one name: brake, brake"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_truck_that_can_not_be(tmp_path: Path, case: str) -> None:
    words, sentence = WRONG[case]
    with pytest.raises(ConfigError, match=sentence):
        TruckSettings(folder=tmp_path, office_url="http://127.0.0.1:9", firmware_keys=(), **words)


def test_an_ecu_that_nobody_can_flash() -> None:
    with pytest.raises(ConfigError, match="'paper' is not one of stm32-uds, esp32-uds"):
        TruckEcu(flasher="paper")
