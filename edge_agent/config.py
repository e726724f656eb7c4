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
from edge_agent.delivery.delivery_config import Downloads, read_downloads, read_queue
from edge_agent.gateway.log_files import LogFiles
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.safety_config import VehicleSource, of_components, read_policy, read_vehicle
from edge_agent.sections import Section
from edge_agent.store.queue_bounds import QueueLimits
from edge_agent.trust.trust_config import UptaneTrust, check_serials, read_uptane
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
    """Whose signature counts: the provisioned public keys by id, and how many must have signed.

    `uptane` is None where the trust chain is not switched on.
    """

    keys: Mapping[str, Key]
    threshold: int
    uptane: UptaneTrust | None = None


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Everything that one agent needs to know. `device_id` is None when the enrolment alone decides."""

    source: Path
    data_dir: Path
    device_id: str | None
    log_level: str
    log_files: LogFiles
    office: Office
    trust: Trust
    vehicle: VehicleSource
    policy: Policy
    holds_folder: Path | None
    downloads: Downloads
    queue: QueueLimits
    components: tuple[Component, ...]


def load_config(file: Path) -> AgentConfig:
    """Read and check a configuration file. Blocks. Raises ConfigError that names file and key."""
    top = Section.of_file(file)
    vehicle_section = top.section("vehicle")
    vehicle = read_vehicle(vehicle_section)
    policy, holds_folder = read_policy(top.maybe_section("safety"))
    components = read_components(top)
    config = AgentConfig(
        source=file,
        data_dir=top.path("data_dir"),
        device_id=_device_id(top),
        log_level=top.one_of("log_level", LOG_LEVELS) if top.has("log_level") else "info",
        log_files=_log_files(top.maybe_section("log_files")),
        office=_office(top.section("office")),
        trust=_trust(top.section("trust")),
        vehicle=of_components(vehicle_section, vehicle, components, policy),
        policy=policy,
        holds_folder=holds_folder,
        downloads=read_downloads(top.maybe_section("downloads")),
        queue=read_queue(top.maybe_section("queue")),
        components=components,
    )
    top.done()
    if config.trust.uptane is not None:
        check_serials(top, config.trust.uptane, components)
    return config


def _device_id(top: Section) -> str | None:
    value = top.maybe_text("device_id")
    if value is None:
        return None
    try:
        return check_id(value, "device_id")
    except BadId as error:
        raise top.wrong("device_id", error.message) from error


def _log_files(section: Section) -> LogFiles:
    usual = LogFiles()
    files = LogFiles(
        keep=section.whole("keep", 0, 20, usual.keep),
        each_bytes=section.whole("each_mib", 1, 64, usual.each_bytes // MIB) * MIB,
    )
    section.done()
    return files


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
    uptane = read_uptane(section)
    section.done()
    return Trust(keys=keys, threshold=threshold, uptane=uptane)
