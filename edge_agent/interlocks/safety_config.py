"""The `[vehicle]` and `[safety]` sections: where the vehicle's state comes from, and what must hold.

A key of `[safety]` that is given counts as it is for firmware without a signed policy, and narrows one that
is signed; a key that is not given stands for the strict default in the first case and for nothing in the
second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from edge_agent.interlocks.j1939 import EEC1, GROUPS
from edge_agent.interlocks.j1939_vehicle import BusSource, address_of
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.signals import FASTEST_RPM
from edge_agent.sections import Section
from firmware_flashers.registry import MOST_BITRATE, Component, EcuSettings
from firmware_flashers.uds_profile import UdsProfile
from shared.trust.uptane.safety_policy import LOOSEST, Period, SafetyPolicy

MOST_ADDRESS = 0xFD
"""0xFE is nobody's and 0xFF everybody's (SAE J1939-81)."""
MOST_SENDERS = 4
MOST_HOURS = 16
DAY = 24 * 60
_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, kw_only=True)
class VehicleSource:
    """Where the vehicle's state comes from: `bench` (no vehicle around the ECU), a file, or its bus.

    `addresses` are the J1939 source addresses of components that have one.
    """

    source: str
    path: Path | None = None
    bus: BusSource | None = None
    addresses: Mapping[str, int] = field(default_factory=dict)


def read_vehicle(section: Section) -> VehicleSource:
    """`[vehicle]`. Raises ConfigError that names file and key."""
    source = section.one_of("source", ("bench", "file", "j1939"))
    vehicle = VehicleSource(
        source=source,
        path=section.path("path") if source == "file" else None,
        bus=_bus(section) if source == "j1939" else None,
        addresses=_addresses(section) if source == "j1939" else {},
    )
    section.done()
    return vehicle


def _bus(section: Section) -> BusSource:
    bus = BusSource(
        interface=section.text("interface"),
        channel=section.text("channel"),
        bitrate=section.maybe_whole("bitrate", 10_000, MOST_BITRATE),
        fd=section.yes("fd", default=False),
        senders=_senders(section.section("senders")),
    )
    if bus.interface == "socketcan" and bus.bitrate is not None:
        raise section.wrong("bitrate", "is set by the system for socketcan: leave it out")
    return bus


def _senders(section: Section) -> Mapping[int, tuple[int, ...]]:
    senders = {
        pgn: section.wholes(group.name.lower(), 0, MOST_ADDRESS, MOST_SENDERS)
        for pgn, group in GROUPS.items()
        if section.has(group.name.lower())
    }
    section.done()
    if not senders:
        raise section.wrong("ccvs1", "is missing, and so is every other sender")
    return senders


def _addresses(section: Section) -> Mapping[str, int]:
    table = section.maybe_section("component_address")
    return {name: table.whole(name, 0, MOST_ADDRESS) for name in table.names()}


def read_policy(section: Section) -> tuple[Policy, Path | None]:
    """`[safety]`, and the folder where other programs lay holds.

    Raises ConfigError that names file and key.
    """
    usual = Policy()
    given: dict[str, Any] = {}
    need_parked, need_engine_off = section.maybe_yes("need_parked"), section.maybe_yes("need_engine_off")
    least_v = section.maybe_number("least_voltage_v", 0, 60)
    oldest_s = section.maybe_number("oldest_s", 0.1, 60)
    _give(given, "need_parking_brake", need_parked)
    if need_engine_off is not None:
        given["engine_speed_at_most_rpm"] = 0 if need_engine_off else FASTEST_RPM
    _give(given, "battery_at_least", _thousandths(least_v))
    _give(given, "stale_after", _thousandths(oldest_s))
    _give(given, "speed_at_most", _thousandths(section.maybe_number("speed_at_most_km_h", 0, 5)))
    _give(given, "standstill_signals", section.maybe_whole("standstill_signals", 2, 3))
    _give(given, "need_neutral", section.maybe_yes("need_neutral"))
    _give(given, "need_key_switch_on", section.maybe_yes("need_key_switch_on"))
    _give(given, "need_consent", section.maybe_yes("need_consent"))
    _give(given, "steady_for", _thousandths(section.maybe_number("steady_for_s", 0, 60)))
    _give(given, "may_take_silent_engine_as_off", section.maybe_yes("silent_engine_is_off"))
    _give(given, "may_flash_gateway_only", section.maybe_yes("flash_gateway_only"))
    _give(given, "may_go_without_way_back", section.maybe_yes("go_without_way_back"))
    forbidden = _periods(section, "quiet_hours")
    allowed = _periods(section, "maintenance_hours")
    if allowed:
        forbidden = [*forbidden, *_beyond(allowed)]
    zone = _zone(section)
    if forbidden:
        given["forbidden"] = tuple(sorted(set(forbidden)))
        if zone is None:
            raise section.wrong("time_zone", "is missing: hours are the site's own")
    most_voltage_v = section.maybe_number("most_voltage_v", 1, 60)
    holds_folder = section.maybe_path("holds_folder")
    section.done()
    policy = Policy(
        need_parked=usual.need_parked if need_parked is None else need_parked,
        need_engine_off=usual.need_engine_off if need_engine_off is None else need_engine_off,
        least_voltage_v=usual.least_voltage_v if least_v is None else least_v or None,
        oldest_s=usual.oldest_s if oldest_s is None else oldest_s,
        most_voltage_v=most_voltage_v,
        rules=msgspec.structs.replace(SafetyPolicy(), **given),
        local=msgspec.structs.replace(LOOSEST, **given),
        zone=zone,
    )
    return policy, holds_folder


def _give(given: dict[str, Any], name: str, value: object) -> None:
    if value is not None:
        given[name] = value


def _thousandths(value: float | None) -> int | None:
    return None if value is None else round(value * 1000)


def _zone(section: Section) -> ZoneInfo | None:
    name = section.maybe_text("time_zone")
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise section.wrong(
            "time_zone", f"there is no time zone {name!r} (say, Asia/Yekaterinburg)"
        ) from error


def _periods(section: Section, key: str) -> list[Period]:
    words = section.maybe_words(key) or ()
    if len(words) > MOST_HOURS:
        raise section.wrong(key, f"has over {MOST_HOURS} periods")
    periods = []
    for word in words:
        match = _HOURS.fullmatch(word)
        one, two, three, four = (int(part) for part in match.groups()) if match else (99, 0, 0, 0)
        start, end = one * 60 + two, three * 60 + four
        if max(start, end) > DAY or max(two, four) > 59 or start == end:
            raise section.wrong(key, f"{word!r} is no period like 22:00-06:00")
        periods.append(Period(start=start, end=end))
    return periods


def _beyond(allowed: Iterable[Period]) -> list[Period]:
    """The minutes of the day outside of all these periods."""
    inside = [False] * DAY
    for one in allowed:
        end = one.end if one.start < one.end else one.end + DAY
        for minute in range(one.start, end):
            inside[minute % DAY] = True
    edges = [minute for minute in range(DAY) if inside[minute] != inside[minute - 1]]
    if not edges:
        return []
    return [
        Period(start=start, end=edges[(at + 1) % len(edges)])
        for at, start in enumerate(edges)
        if not inside[start]
    ]


def of_components(
    section: Section, vehicle: VehicleSource, components: Iterable[Component], policy: Policy
) -> VehicleSource:
    """The same source, which knows the agent's own components: their identifiers and addresses.

    Raises ConfigError for a component that is the only witness of its own flash, and for a witness that
    is to be silenced meanwhile.
    """
    bus = vehicle.bus
    if bus is None:
        return vehicle
    ecus = {one.component: one for one in components if isinstance(one, EcuSettings)}
    for name in vehicle.addresses:
        if name not in ecus:
            raise section.wrong(f"component_address.{name}", "there is no such component")
    addresses = dict(vehicle.addresses)
    for name, ecu in ecus.items():
        known = None if ecu.tx_id is None else address_of(ecu.tx_id)
        if known is not None:
            addresses.setdefault(name, known)
        if name in addresses:
            _check_witnesses(section, bus, name, addresses[name], policy)
        _check_quiet(section, bus, ecu)
    here = [one for one in ecus.values() if (one.interface, one.channel) == (bus.interface, bus.channel)]
    return replace(
        vehicle,
        addresses=addresses,
        bus=replace(
            bus,
            own_tx=frozenset(one for ecu in here for one in _ids(ecu, "tx_id", "functional_id")),
            own_rx=frozenset(one for ecu in here for one in _ids(ecu, "rx_id")),
        ),
    )


def _check_witnesses(section: Section, bus: BusSource, name: str, address: int, policy: Policy) -> None:
    for pgn, senders in bus.senders.items():
        if pgn == EEC1.pgn and policy.rules.may_take_silent_engine_as_off:
            continue
        if set(senders) == {address}:
            raise section.wrong(
                f"senders.{GROUPS[pgn].name.lower()}",
                f"{name} is its only sender and can't be a witness of its own flash: name a second one",
            )


def _check_quiet(section: Section, bus: BusSource, ecu: EcuSettings) -> None:
    pinned = {sender for senders in bus.senders.values() for sender in senders}
    for node in _quiet_nodes(ecu):
        if address_of(node) in pinned:
            raise section.wrong(
                "senders", f"{address_of(node):#04x} is to be silent while {ecu.component} is flashed"
            )


def _quiet_nodes(ecu: EcuSettings) -> list[int]:
    return [one.tx_id for one in ecu.profile.quiet_nodes] if isinstance(ecu.profile, UdsProfile) else []


def _ids(ecu: EcuSettings, *names: str) -> list[int]:
    ids = [getattr(ecu, name) for name in names]
    if isinstance(ecu.profile, UdsProfile):
        kind = "tx_id" if "tx_id" in names else "rx_id"
        ids += [getattr(one, kind) for one in ecu.profile.quiet_nodes]
    return [one for one in ids if one is not None]
