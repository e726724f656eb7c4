"""From a component's settings to its flasher: the one place that knows which protocols there are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from can.interfaces import VALID_INTERFACES

from firmware_flashers.base import BenchFlasher, Flasher
from firmware_flashers.can_link import MOST_11_BITS, MOST_29_BITS, Link, open_link
from firmware_flashers.credentials import Credentials, read_credentials
from firmware_flashers.isotp import IsoTpAddress
from firmware_flashers.isotp_kernel import Prefer
from firmware_flashers.jetson_settings import JetsonSettings
from firmware_flashers.rom_profile import DIALECTS, RomProfile
from firmware_flashers.uds_profile import PROFILES, UdsProfile
from shared.errors import ConfigError

if TYPE_CHECKING:
    from firmware_flashers.stm32_rom_flash import RomFlasher
    from firmware_flashers.uds_flash import UdsFlasher

UDS = tuple(PROFILES)
ROM = tuple(DIALECTS)
FLASHERS = (*UDS, *ROM)
GATEWAY = "jetson-ab"
"""The gateway itself: no ECU on a bus, and settings of its own (JetsonSettings)."""
ISOTP = ("auto", "kernel", "python")
MOST_BITRATE = 1_000_000
MOST_DATA_BITRATE = 8_000_000
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_IDS = ("tx_id", "rx_id", "functional_id")
_OPENERS = (
    "security_secret_file",
    "security_command",
    "security_certificate_file",
    "security_key_file",
)

Profile = UdsProfile | RomProfile


def profile_of(flasher: str, table: Mapping[str, Any]) -> Profile:
    """A protocol's own values, changed by what a TOML table names. Raises ConfigError that names the key."""
    if flasher in ROM:
        return RomProfile.from_mapping(table, protocol=flasher)
    return UdsProfile.from_mapping(table, base=PROFILES[flasher])


@dataclass(frozen=True, kw_only=True)
class EcuSettings:
    """How one component is reached, what it must say of itself, and what opens it.

    `flasher` is a word of FLASHERS, `interface` one of python-can's; the bit rates (bit/s) are given where
    the interface sets them itself, `fd` where the bus carries CAN FD. Identifiers above 0x7FF are 29-bit
    ones; a UDS flasher needs `tx_id` and `rx_id`, of one kind, and sends functional requests to
    `functional_id`. `isotp` chooses who makes frames of messages: the kernel, Python, or the best one.
    The `security_` settings are those that the profile's security needs; without any the ECU can only be
    asked. `enter_command` is a program that brings a part into its ROM loader.
    """

    component: str
    flasher: str
    interface: str
    channel: str
    kind: str
    hardware: str
    bitrate: int | None = None
    fd: bool = False
    data_bitrate: int | None = None
    tx_id: int | None = None
    rx_id: int | None = None
    functional_id: int | None = None
    isotp: Prefer = "auto"
    security_secret_file: Path | None = None
    security_command: tuple[str, ...] | None = None
    security_certificate_file: Path | None = None
    security_key_file: Path | None = None
    enter_command: tuple[str, ...] | None = None
    profile: Profile = field(default_factory=UdsProfile)

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if self.flasher not in FLASHERS:
            raise ConfigError(f"flasher {self.flasher!r} is not known; known are {', '.join(FLASHERS)}")
        if self.interface not in VALID_INTERFACES:
            known = ", ".join(sorted(VALID_INTERFACES))
            raise ConfigError(f"interface {self.interface!r} is not one of python-can: {known}")
        if not self.channel:
            raise ConfigError("channel is empty")
        for key in ("component", "kind", "hardware"):
            if not _WORD.fullmatch(getattr(self, key)):
                raise ConfigError(
                    f"{key} {getattr(self, key)[:80]!r} is not 1 to 64 of letters, digits, . _ -"
                )
        for key, most in (("bitrate", MOST_BITRATE), ("data_bitrate", MOST_DATA_BITRATE)):
            rate = getattr(self, key)
            if rate is not None and not 10_000 <= rate <= most:
                raise ConfigError(f"{key} {rate} is not 10000 to {most} bit/s")
        if self.data_bitrate is not None and not self.fd:
            raise ConfigError("data_bitrate is given, but fd is false: only CAN FD has a second rate")
        if self.isotp not in ISOTP:
            raise ConfigError(f"isotp {self.isotp!r} is not one of {', '.join(ISOTP)}")
        if self.flasher in ROM:
            self._check_rom()
        else:
            self._check_uds()
        # Read now and again when it is opened: a wrong mode must not wait for the first flash.
        self.credentials()

    def _check_rom(self) -> None:
        if not isinstance(self.profile, RomProfile) or self.profile.protocol != self.flasher:
            raise ConfigError(f"profile is not one of {self.flasher}")
        # A ROM loader's identifiers are the codes of its commands (AN3154, AN5405), and it knows no secret.
        for key in (*_IDS, *_OPENERS):
            if getattr(self, key) is not None:
                raise ConfigError(f"{key} is given, but {self.flasher} has no use for it")
        if self.profile.is_fd != self.fd:
            raise ConfigError(
                f"fd is {str(self.fd).lower()}, but {self.flasher} speaks "
                f"{'CAN FD' if self.profile.is_fd else 'classic CAN'} only"
            )

    def _check_uds(self) -> None:
        if not isinstance(self.profile, UdsProfile):
            raise ConfigError(f"profile is not one of {self.flasher}")
        if self.enter_command is not None:
            raise ConfigError(f"enter_command is given, but {self.flasher} enters its bootloader by UDS")
        seen: dict[int, str] = {}
        for key in _IDS:
            one = getattr(self, key)
            if one is None:
                if key == "functional_id":
                    continue
                raise ConfigError(f"{key} is missing: {self.flasher} needs the ECU's two identifiers")
            if not 0 <= one <= MOST_29_BITS:
                raise ConfigError(f"{key} {one:#x} is no CAN identifier")
            if one in seen:
                raise ConfigError(f"{key} {one:#x} is {seen[one]} too")
            if any((one > MOST_11_BITS) != (other > MOST_11_BITS) for other in seen):
                raise ConfigError(f"{key} {one:#x} and tx_id {self.tx_id:#x}: one has 11 bits, one 29")
            seen[one] = key

    def credentials(self) -> Credentials:
        """What opens the ECU; None without any. Raises ConfigError that names the setting."""
        if not isinstance(self.profile, UdsProfile) or all(getattr(self, key) is None for key in _OPENERS):
            return None
        return read_credentials(
            self.profile.security,
            secret_file=self.security_secret_file,
            command=self.security_command,
            certificate_file=self.security_certificate_file,
            key_file=self.security_key_file,
        )


Component = EcuSettings | JetsonSettings


@asynccontextmanager
async def open_flasher(settings: EcuSettings, *, holder: str | None = None) -> AsyncIterator[BenchFlasher]:
    """The flasher of one ECU; entering it opens and locks the CAN interface.

    `holder` is what another program is told that wants the interface meanwhile. Raises ConfigError
    and FlashError (BusDown, InterfaceBusy).
    """
    async with (
        open_link(
            interface=settings.interface,
            channel=settings.channel,
            bitrate=settings.bitrate,
            fd=settings.fd,
            data_bitrate=settings.data_bitrate,
            holder=holder or f"quarry, flashing {settings.component}",
        ) as link,
        flasher_on(link, settings) as flasher,
    ):
        yield flasher


@asynccontextmanager
async def open_component(settings: Component, *, holder: str | None = None) -> AsyncIterator[Flasher]:
    """The flasher of any component of a truck, the gateway too; see open_flasher."""
    if isinstance(settings, JetsonSettings):
        from firmware_flashers.jetson import JetsonFlasher

        yield JetsonFlasher(settings)
        return
    async with open_flasher(settings, holder=holder) as flasher:
        yield flasher


def flasher_on(link: Link, settings: EcuSettings) -> UdsFlasher | RomFlasher:
    """A component's flasher on a link that is open already (several ECUs of one bus share it).

    An async context manager. Raises ConfigError.
    """
    # A protocol is loaded when an ECU speaks it: a gateway rarely has all of them.
    profile = settings.profile
    if isinstance(profile, RomProfile):
        from firmware_flashers.stm32_rom_flash import RomFlasher

        return RomFlasher(
            component=settings.component,
            kind=settings.kind,
            hardware=settings.hardware,
            profile=profile,
            link=link,
            enter=settings.enter_command or (),
        )
    from firmware_flashers.uds_flash import UdsFlasher

    # Checked when the settings were made.
    assert settings.tx_id is not None
    assert settings.rx_id is not None
    return UdsFlasher(
        component=settings.component,
        kind=settings.kind,
        hardware=settings.hardware,
        profile=profile,
        address=IsoTpAddress(
            tx_id=settings.tx_id, rx_id=settings.rx_id, functional_id=settings.functional_id
        ),
        secret=settings.credentials(),
        link=link,
        fd=settings.fd,
        isotp=settings.isotp,
    )
