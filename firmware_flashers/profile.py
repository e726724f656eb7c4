"""A profile file: everything about one kind of ECU that an engineer writes down once, in TOML.

    protocol = "stm32-uds"          # stm32-uds, esp32-uds, stm32-rom or stm32-rom-fd
    kind = "brake-controller"       # what the ECU says it is, and what its images are for
    hardware = "rev-b"

    [can]                           # identifiers and the kind of bus
    tx_id = 0x7E0
    rx_id = 0x7E8

    [profile.timing]                # what differs from the protocol's own defaults
    boot_s = 30.0

It holds no secret and no channel of one machine. Examples are in `profiles/`, and are found by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_flashers.registry import FLASHERS, ROM, EcuSettings, profile_of
from firmware_flashers.registry import Profile as ProtocolProfile
from shared.errors import ConfigError
from shared.since_310 import tomllib

EXAMPLES = Path(__file__).with_name("profiles")
MOST_BYTES = 64 * 1024
_TOP = {"protocol": str, "description": str, "kind": str, "hardware": str, "can": dict, "profile": dict}
_CAN = {
    "tx_id": int,
    "rx_id": int,
    "functional_id": int,
    "bitrate": int,
    "fd": bool,
    "data_bitrate": int,
    "isotp": str,
}
_WORDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "a table"}


@dataclass(frozen=True, kw_only=True)
class EcuProfile:
    """One profile file. `can` holds those keys of EcuSettings that the file gives, by their names."""

    protocol: str
    description: str
    kind: str | None
    hardware: str | None
    can: Mapping[str, Any]
    values: ProtocolProfile

    def settings(self, *, component: str, interface: str, channel: str, **more: Any) -> EcuSettings:
        """One component of this kind; `more` are further settings, and win over the profile's.

        `kind` and `hardware` must be in the profile or be given. Raises ConfigError that names the key.
        """
        named = {key: getattr(self, key) for key in ("kind", "hardware")} | dict(self.can)
        given = named | {key: value for key, value in more.items() if value is not None}
        for key in ("kind", "hardware"):
            if given[key] is None:
                raise ConfigError(
                    f"the ECU's {key} is not named",
                    advice=f"Write {key} into the profile, or give it with the component.",
                )
        return EcuSettings(
            component=component,
            flasher=self.protocol,
            interface=interface,
            channel=channel,
            profile=self.values,
            **given,
        )


def examples() -> list[str]:
    """Names of the profiles that come with the program."""
    return sorted(one.stem for one in EXAMPLES.glob("*.toml"))


def read_profile(name_or_path: str) -> EcuProfile:
    """A profile from a file, or from the examples by name. Raises ConfigError that names file and key."""
    path = Path(name_or_path)
    if name_or_path in examples():
        path = EXAMPLES / f"{name_or_path}.toml"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"profile {name_or_path} can't be read: {error.strerror or error}",
            advice=f"Give a TOML file, or one of the examples: {', '.join(examples())}.",
        ) from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"profile {path} is over {MOST_BYTES} bytes")
    try:
        return parse_profile(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} is no TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"profile {path}: {error.message}", advice=error.advice) from error


def parse_profile(top: Mapping[str, Any]) -> EcuProfile:
    """A profile from TOML's top table. Raises ConfigError that names the key."""
    _check(top, _TOP, "")
    protocol = top.get("protocol")
    if protocol not in FLASHERS:
        raise ConfigError(f"protocol {protocol!r} is not one of {', '.join(FLASHERS)}")
    can = top.get("can", {})
    _check(can, _CAN, "can.")
    if protocol in ROM:
        for key in ("tx_id", "rx_id", "functional_id", "isotp"):
            if key in can:
                raise ConfigError(
                    f"can.{key} is given, but {protocol} has none: its commands are identifiers"
                )
    return EcuProfile(
        protocol=protocol,
        description=top.get("description", ""),
        kind=top.get("kind"),
        hardware=top.get("hardware"),
        can=can,
        values=profile_of(protocol, top.get("profile", {})),
    )


def _check(table: Mapping[str, Any], known: Mapping[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}{key} is not a known key; known are {', '.join(known)}")
        # TOML's true is a Python int too.
        if not isinstance(value, known[key]) or (known[key] is int and isinstance(value, bool)):
            raise ConfigError(f"{where}{key} is not {_WORDS[known[key]]}")
