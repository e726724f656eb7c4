"""What a simulated truck is made of, and the configuration that its agent gets for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from sim.vehicle_bus import BRAKE_CONTROLLER, COMPUTER, ENGINE, TRANSMISSION

COMPONENT = "brake"
KIND = "brake-controller"
HARDWARE = "rev-b"
BITRATE = 500_000

STM32_UDS, ESP32_UDS = "stm32-uds", "esp32-uds"
FLASHERS = (STM32_UDS, ESP32_UDS)
"""What a simulated ECU may be: one slot with a bootloader, or two OTA slots."""
MOST_ECUS = 8
"""So many pairs of physical identifiers has ISO 15765-4 (0x7E0 to 0x7E7, answers 8 above)."""
FIRST_TX_ID, FIRST_RX_ID = 0x7E0, 0x7E8

GATEWAY_SERIAL = "gateway"
CONFIG_FILE = "agent.toml"


@dataclass(frozen=True, kw_only=True)
class TruckEcu:
    """One ECU. `image` and `document` are what the factory puts into it, if anything.

    `serial` is how the office's inventory knows it; its name unless it is said.
    """

    component: str = COMPONENT
    kind: str = KIND
    hardware: str = HARDWARE
    flasher: str = STM32_UDS
    serial: str = ""
    image: Path | None = None
    document: Path | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.flasher not in FLASHERS:
            raise ConfigError(f"flasher {self.flasher[:80]!r} is not one of {', '.join(FLASHERS)}")

    @property
    def serial_number(self) -> str:
        """What it says, and what is configured."""
        return self.serial or self.component

    @property
    def flash_file(self) -> str:
        """Where its flash is kept, in the truck's folder."""
        return f"{self.component}.flash"

    @property
    def secret_file(self) -> str:
        """The secret of its family, beside it."""
        return f"{self.component}.secret"


BRAKE_ECU = TruckEcu()
BODY_ECU = TruckEcu(component="body", kind="body-controller", hardware="rev-c", flasher=ESP32_UDS)


@dataclass(frozen=True, kw_only=True)
class TruckTrust:
    """The two root files that the truck is provisioned with; `time_url` where it may ask for the time."""

    director_root: Path
    image_root: Path
    time_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class TruckSettings:
    """One truck. `firmware_keys` sign what its ECUs boot.

    `vehicle`: the state (see sim.vehicle_bus) in which its vehicle begins; None: a bench, with no vehicle
    around. `trust` switches the trust chain on. `mqtt_port`: reach the broker through this port of loopback
    instead of where the office says, and images through `office_url`, as behind a relay.
    """

    folder: Path
    office_url: str
    firmware_keys: tuple[Path, ...]
    ecus: tuple[TruckEcu, ...] = (BRAKE_ECU,)
    bitrate: int | None = BITRATE
    vehicle: str | None = None
    trust: TruckTrust | None = None
    mqtt_port: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        names = [ecu.component for ecu in self.ecus]
        if not 1 <= len(names) <= MOST_ECUS:
            raise ConfigError(f"a truck has 1 to {MOST_ECUS} ECUs, not {len(names)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"two ECUs have one name: {', '.join(names)}")

    def ids_of(self, component: str) -> tuple[int, int]:
        """The identifiers by which an ECU is asked and answers."""
        place = [ecu.component for ecu in self.ecus].index(component)
        return FIRST_TX_ID + place, FIRST_RX_ID + place


def write_agent_config(settings: TruckSettings, channel: Path, vehicle_channel: Path | None = None) -> Path:
    """Write the agent's configuration for this truck; returns its path. `channel` is the hub of its ECUs."""
    sections = ["# Written anew at each start of the simulated truck.", 'data_dir = "agent"']
    sections += ["", *_office(settings), "", *_trust(settings), "", *_vehicle(vehicle_channel)]
    for ecu in settings.ecus:
        sections += ["", *_component(settings, ecu, channel)]
    path = settings.folder / CONFIG_FILE
    part = path.with_suffix(".part")
    part.write_text("\n".join(sections) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _text(value: object) -> str:
    # A JSON text without control characters is a TOML basic string.
    return json.dumps(str(value))


def _office(settings: TruckSettings) -> list[str]:
    lines = ["[office]", f"url = {_text(settings.office_url)}"]
    if settings.mqtt_port is not None:
        lines += ['mqtt_host = "127.0.0.1"', f"mqtt_port = {settings.mqtt_port}", "images_through_url = true"]
    return lines


def _trust(settings: TruckSettings) -> list[str]:
    keys = ", ".join(_text(one.resolve()) for one in settings.firmware_keys)
    lines = ["[trust]", f"firmware_keys = [{keys}]", "threshold = 1"]
    trust = settings.trust
    if trust is None:
        return lines
    lines += [
        f"director_root = {_text(trust.director_root.resolve())}",
        f"image_root = {_text(trust.image_root.resolve())}",
        f"gateway_serial = {_text(GATEWAY_SERIAL)}",
    ]
    if trust.time_url is not None:
        lines.append(f"time_url = {_text(trust.time_url)}")
    serials = [f"{_text(ecu.component)} = {_text(ecu.serial_number)}" for ecu in settings.ecus]
    return [*lines, "", "[trust.serials]", *serials]


def _vehicle(channel: Path | None) -> list[str]:
    if channel is None:
        return ["[vehicle]", 'source = "bench"']
    return [
        *("[vehicle]", 'source = "j1939"', 'interface = "quarry-hub"', f"channel = {_text(channel)}"),
        *("", "[vehicle.senders]", f"ccvs1 = [{BRAKE_CONTROLLER}]", f"eec1 = [{ENGINE}]"),
        *(f"etc2 = [{TRANSMISSION}]", f"vep1 = [{COMPUTER}]"),
    ]


def _component(settings: TruckSettings, ecu: TruckEcu, channel: Path) -> list[str]:
    tx_id, rx_id = settings.ids_of(ecu.component)
    return [
        *("[[component]]", f"name = {_text(ecu.component)}", f"kind = {_text(ecu.kind)}"),
        *(f"hardware = {_text(ecu.hardware)}", f"flasher = {_text(ecu.flasher)}"),
        *('interface = "quarry-hub"', f"channel = {_text(channel)}"),
        *(f"tx_id = {tx_id:#x}", f"rx_id = {rx_id:#x}"),
        f"security_secret_file = {_text(ecu.secret_file)}",
    ]
