"""From a component's settings to its flasher: the one place that knows which words there are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from can.interfaces import VALID_INTERFACES

from firmware_flashers.base import Flasher
from firmware_flashers.can_link import MOST_11_BITS, MOST_29_BITS, Link, open_link
from firmware_flashers.isotp import IsoTpAddress
from firmware_flashers.security import read_secret
from firmware_flashers.uds_flash import UdsFlasher
from firmware_flashers.uds_profile import UdsProfile
from shared.errors import ConfigError

STM32_UDS = "stm32-uds"
FLASHERS = (STM32_UDS,)
MOST_BITRATE = 1_000_000
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class EcuSettings:
    """How one component is reached and what it must say of itself.

    `flasher` is a word of FLASHERS, `interface` one of python-can's; `bitrate` (bit/s) is given where
    the interface sets it itself. Identifiers above 0x7FF are 29-bit ones; both are of one kind.
    """

    component: str
    flasher: str
    interface: str
    channel: str
    bitrate: int | None = None
    tx_id: int
    rx_id: int
    kind: str
    hardware: str
    security_secret_file: Path
    profile: UdsProfile = field(default_factory=UdsProfile)

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
        if self.bitrate is not None and not 10_000 <= self.bitrate <= MOST_BITRATE:
            raise ConfigError(f"bitrate {self.bitrate} is not 10000 to {MOST_BITRATE} bit/s")
        for key in ("tx_id", "rx_id"):
            if not 0 <= getattr(self, key) <= MOST_29_BITS:
                raise ConfigError(f"{key} {getattr(self, key):#x} is no CAN identifier")
        if self.tx_id == self.rx_id:
            raise ConfigError(f"rx_id {self.rx_id:#x} is tx_id too")
        if (self.tx_id > MOST_11_BITS) != (self.rx_id > MOST_11_BITS):
            raise ConfigError(f"rx_id {self.rx_id:#x} and tx_id {self.tx_id:#x}: one has 11 bits, one 29")
        # Read now and again when it is opened: a wrong mode must not wait for the first flash.
        read_secret(self.security_secret_file)


@asynccontextmanager
async def open_flasher(settings: EcuSettings, *, holder: str | None = None) -> AsyncIterator[Flasher]:
    """The flasher of one component; entering it opens and locks the CAN interface.

    `holder` is what another program is told that wants the interface meanwhile. Raises ConfigError
    and FlashError (BusDown, InterfaceBusy).
    """
    async with (
        open_link(
            interface=settings.interface,
            channel=settings.channel,
            bitrate=settings.bitrate,
            holder=holder or f"quarry, flashing {settings.component}",
        ) as link,
        flasher_on(link, settings) as flasher,
    ):
        yield flasher


def flasher_on(link: Link, settings: EcuSettings) -> UdsFlasher:
    """A component's flasher on a link that is open already (several ECUs of one bus share it).

    An async context manager. Raises ConfigError.
    """
    return UdsFlasher(
        component=settings.component,
        kind=settings.kind,
        hardware=settings.hardware,
        profile=settings.profile,
        address=IsoTpAddress(tx_id=settings.tx_id, rx_id=settings.rx_id),
        secret=read_secret(settings.security_secret_file),
        link=link,
    )
