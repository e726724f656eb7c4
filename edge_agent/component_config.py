"""The `[[component]]` sections of the agent's configuration: which ECUs there are, and how each is flashed.

A component names its protocol by `flasher`, or a profile file (see firmware_flashers.profile) by
`profile_file`, whose values its own keys override. What an engineer's bench allows and a truck must not is
refused here: an ECU without what opens it, a ROM loader that is not said to be alone on its bus. The gateway
itself is a component too, with `flasher = "jetson-ab"` and its slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edge_agent.sections import Section
from firmware_flashers.can_link import MOST_29_BITS
from firmware_flashers.jetson_settings import JetsonSettings, Slot
from firmware_flashers.profile import EcuProfile, parse_profile, read_profile
from firmware_flashers.registry import (
    FLASHERS,
    GATEWAY,
    MOST_BITRATE,
    MOST_DATA_BITRATE,
    Component,
    EcuSettings,
)
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.security import NONE
from shared.errors import ConfigError

MOST_COMPONENTS = 64


def read_components(top: Section) -> tuple[Component, ...]:
    """Every component. Raises ConfigError that names file and key."""
    components: list[Component] = []
    for section in top.sections("component", MOST_COMPONENTS):
        name = section.text("name")
        if any(name == other.component for other in components):
            raise section.wrong("name", f"there are two components {name}")
        with _named(section):
            flasher = section.maybe_text("flasher")
            if flasher == GATEWAY:
                if any(isinstance(other, JetsonSettings) for other in components):
                    raise section.wrong("flasher", "there is one gateway only")
                components.append(_gateway(section, name))
                continue
            ecu = _ecu(section, name, flasher)
        _check_beside(section, ecu, [one for one in components if isinstance(one, EcuSettings)])
        components.append(ecu)
    return tuple(components)


@contextmanager
def _named(section: Section) -> Iterator[None]:
    """What a value says is wrong with it, with the file and the section."""
    try:
        yield
    except ConfigError as error:
        if error.message.startswith(str(section.file)):
            raise
        # The value's own word for the component's name is `component`; the file's is `name`.
        why = error.message.replace("component ", "name ", 1)
        raise ConfigError(f"{section.file}: {section.key('')}{why}", advice=error.advice) from error


def _check_beside(section: Section, ecu: EcuSettings, others: Sequence[EcuSettings]) -> None:
    for other in others:
        if (ecu.interface, ecu.channel) != (other.interface, other.channel):
            continue
        for one in (ecu, other):
            if isinstance(one.profile, RomProfile):
                raise section.wrong(
                    "channel", f"{one.component} has a ROM loader: it must be alone on {ecu.channel}"
                )
        if ecu.tx_id == other.tx_id:
            raise section.wrong("tx_id", f"two components on {ecu.channel} are asked by {ecu.tx_id:#x}")


def _ecu(section: Section, name: str, flasher: str | None) -> EcuSettings:
    profile = _profile(section, flasher)
    given: dict[str, Any] = {
        "kind": section.maybe_text("kind"),
        "hardware": section.maybe_text("hardware"),
        "bitrate": section.maybe_whole("bitrate", 10_000, MOST_BITRATE),
        "fd": section.maybe_yes("fd"),
        "data_bitrate": section.maybe_whole("data_bitrate", 10_000, MOST_DATA_BITRATE),
        "tx_id": section.maybe_whole("tx_id", 0, MOST_29_BITS),
        "rx_id": section.maybe_whole("rx_id", 0, MOST_29_BITS),
        "functional_id": section.maybe_whole("functional_id", 0, MOST_29_BITS),
        "isotp": section.maybe_text("isotp"),
        "security_secret_file": section.maybe_path("security_secret_file"),
        "security_certificate_file": section.maybe_path("security_certificate_file"),
        "security_key_file": section.maybe_path("security_key_file"),
        "security_command": section.maybe_words("security_command"),
        "enter_command": section.maybe_words("enter_command"),
    }
    interface, channel = section.text("interface"), section.text("channel")
    section.done()
    ecu = profile.settings(component=name, interface=interface, channel=channel, **given)
    _check_for_a_truck(ecu)
    return ecu


def _gateway(section: Section, name: str) -> JetsonSettings:
    """The gateway's own A/B slots; see firmware_flashers.jetson_settings for the commands of boot loaders."""
    words: dict[str, Any] = {
        key: section.maybe_words(key)
        for key in ("version_command", "confirm_command", "unbootable_command", "reboot_command")
    }
    pattern = section.maybe_text("current_slot_pattern")
    more: dict[str, Any] = {} if pattern is None else {"current_slot_pattern": pattern}
    slots = section.sections("slot", 2)
    if len(slots) != 2:
        raise section.wrong("slot", "must be 2 sections [[component.slot]]")
    settings = JetsonSettings(
        component=name,
        kind=section.text("kind"),
        hardware=section.text("hardware"),
        slots=(_slot(slots[0]), _slot(slots[1])),
        note_file=section.path("note_file"),
        current_slot_command=_needed_words(section, "current_slot_command"),
        switch_command=_needed_words(section, "switch_command"),
        version_file=section.maybe_path("version_file"),
        reboot_s=section.number("reboot_s", 1, 3600, 300),
        **words,
        **more,
    )
    section.done()
    return settings


def _slot(section: Section) -> Slot:
    slot = Slot(name=section.text("name"), path=section.path("path"), word=section.maybe_text("word"))
    section.done()
    return slot


def _needed_words(section: Section, key: str) -> tuple[str, ...]:
    words = section.maybe_words(key)
    if words is None:
        raise section.wrong(key, "is missing")
    return words


def _profile(section: Section, flasher: str | None) -> EcuProfile:
    file = section.maybe_path("profile_file")
    table = section.maybe_section("profile").rest()
    if file is not None:
        if flasher is not None or table:
            raise section.wrong("profile_file", "stands alone: the file says flasher and profile")
        return read_profile(str(file))
    if flasher is None:
        raise section.wrong("flasher", "is missing, and so is profile_file")
    if flasher not in FLASHERS:
        raise ConfigError(f"flasher {flasher!r} is not known; known are {', '.join(FLASHERS)}, {GATEWAY}")
    return parse_profile({"protocol": flasher, "profile": table})


def _check_for_a_truck(ecu: EcuSettings) -> None:
    profile = ecu.profile
    if isinstance(profile, RomProfile):
        if not profile.isolated_bus:
            raise ConfigError(
                "profile.isolated_bus is not true: a ROM loader takes every frame on its bus for a command",
                advice="Put the part on a bus of its own and say so, or use a bootloader that speaks UDS.",
            )
    elif profile.security != NONE and ecu.credentials() is None:
        raise ConfigError(
            f'security_secret_file (or what else "{profile.security}" needs) is missing: this ECU could be '
            "asked, but never flashed"
        )
