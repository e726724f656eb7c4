"""The agent's configuration: one TOML file, read once into one frozen value.

An unknown key, a bad or a missing value refuses to start and names the file and the key. There are no
default secrets, no default vehicle source and no default keys: what decides about a flash must be
said. Relative paths count from the folder of the file. `packaging/agent.toml` is the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Key

from edge_agent.addresses import UnsafeAddress, check_safe, is_loopback
from edge_agent.component_config import read_components
from edge_agent.safety import Policy
from edge_agent.sections import Section
from firmware_flashers.registry import Component
from shared.errors import ConfigError
from shared.ids import BadId, check_id
from shared.trust.document import TrustError
from shared.trust.keys import key_ring

MOST_KEY_BYTES = 16 * 1024
MIB = 1024 * 1024
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class Office:
    """How to reach the office. `mqtt_*` stand above what the enrolment answered.

    `images_through_url`: fetch images at `url`'s scheme, host and port whatever a command says, for a
    truck that reaches its office through a relay.
    """

    url: str
    mqtt_host: str | None = None
    mqtt_port: int | None = None
    mqtt_tls: bool | None = None
    ca_file: Path | None = None
    allow_plain: bool = False
    images_through_url: bool = False

    def wants_tls(self, host: str) -> bool:
        """Whether the broker at `host` is spoken to over TLS. Raises ConfigError where it must be and is
        switched off.
        """
        local = is_loopback(host)
        tls = self.mqtt_tls if self.mqtt_tls is not None else not (local or self.allow_plain)
        if not tls and not local and not self.allow_plain:
            raise ConfigError(
                f"office.mqtt_tls: the broker {host} is beyond loopback and the connection is not encrypted",
                advice="Remove mqtt_tls = false, or set office.allow_plain = true.",
            )
        return tls


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signature counts: the provisioned public keys by id, and how many must have signed."""

    keys: Mapping[str, Key]
    threshold: int


@dataclass(frozen=True, kw_only=True)
class VehicleSource:
    """Where the vehicle's state comes from: `bench` (no vehicle around the ECU) or a file."""

    source: str
    path: Path | None


@dataclass(frozen=True, kw_only=True)
class Downloads:
    """Bounds of the image folder (bytes) and of a silent link (seconds)."""

    most_stored_bytes: int
    free_margin_bytes: int
    idle_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Everything that one agent needs to know. `device_id` is None when the enrolment alone decides."""

    source: Path
    data_dir: Path
    device_id: str | None
    log_level: str
    office: Office
    trust: Trust
    vehicle: VehicleSource
    policy: Policy
    downloads: Downloads
    components: tuple[Component, ...]


def load_config(file: Path) -> AgentConfig:
    """Read and check a configuration file. Blocks. Raises ConfigError that names file and key."""
    top = Section.of_file(file)
    config = AgentConfig(
        source=file,
        data_dir=top.path("data_dir"),
        device_id=_device_id(top),
        log_level=top.one_of("log_level", LOG_LEVELS) if top.has("log_level") else "info",
        office=_office(top.section("office")),
        trust=_trust(top.section("trust")),
        vehicle=_vehicle(top.section("vehicle")),
        policy=_policy(top.maybe_section("safety")),
        downloads=_downloads(top.maybe_section("downloads")),
        components=read_components(top),
    )
    top.done()
    return config


def _device_id(top: Section) -> str | None:
    value = top.maybe_text("device_id")
    if value is None:
        return None
    try:
        return check_id(value, "device_id")
    except BadId as error:
        raise top.wrong("device_id", error.message) from error


def _office(section: Section) -> Office:
    office = Office(
        url=section.text("url"),
        mqtt_host=section.maybe_text("mqtt_host"),
        mqtt_port=section.maybe_whole("mqtt_port", 1, 65535),
        mqtt_tls=section.maybe_yes("mqtt_tls"),
        ca_file=section.maybe_path("ca_file"),
        allow_plain=section.yes("allow_plain", default=False),
        images_through_url=section.yes("images_through_url", default=False),
    )
    section.done()
    try:
        url = check_safe(office.url, allow_plain=office.allow_plain, what="the office")
    except UnsafeAddress as error:
        raise section.wrong("url", f"{error.message}. {error.advice}") from error
    if url.query or url.fragment or url.userinfo:
        raise section.wrong("url", "must be scheme, host, port and path only")
    if office.ca_file is not None and not office.ca_file.is_file():
        raise section.wrong("ca_file", f"{office.ca_file} is no file")
    if office.mqtt_host is not None:
        try:
            office.wants_tls(office.mqtt_host)
        except ConfigError as error:
            raise section.wrong("mqtt_tls", f"{error.message}. {error.advice}") from error
    return office


def _trust(section: Section) -> Trust:
    files = section.paths("firmware_keys")
    pems = []
    for path in files:
        try:
            with path.open("rb") as file:
                pems.append(file.read(MOST_KEY_BYTES))
        except OSError as error:
            raise section.wrong("firmware_keys", f"{path} can't be read: {error.strerror}") from error
    try:
        keys = key_ring(pems)
    except TrustError as error:
        raise section.wrong("firmware_keys", f"{error.message}. {error.advice}") from error
    if len(keys) < len(files):
        raise section.wrong("firmware_keys", "names the same key twice")
    threshold = section.whole("threshold", 1, len(keys))
    section.done()
    return Trust(keys=keys, threshold=threshold)


def _vehicle(section: Section) -> VehicleSource:
    source = section.one_of("source", ("bench", "file"))
    vehicle = VehicleSource(source=source, path=section.path("path") if source == "file" else None)
    section.done()
    return vehicle


def _policy(section: Section) -> Policy:
    usual = Policy()
    least_voltage_v = section.number("least_voltage_v", 0, 60, usual.least_voltage_v or 0)
    policy = Policy(
        need_parked=section.yes("need_parked", default=usual.need_parked),
        need_engine_off=section.yes("need_engine_off", default=usual.need_engine_off),
        least_voltage_v=least_voltage_v or None,
        oldest_s=section.number("oldest_s", 0.1, 60, usual.oldest_s),
    )
    section.done()
    return policy


def _downloads(section: Section) -> Downloads:
    downloads = Downloads(
        most_stored_bytes=section.whole("most_stored_mib", 64, 1024 * 1024, 512) * MIB,
        free_margin_bytes=section.whole("free_margin_mib", 1, 1024 * 1024, 16) * MIB,
        idle_timeout_s=section.number("idle_timeout_s", 1, 3600, 60),
    )
    section.done()
    return downloads
