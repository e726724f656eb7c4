"""Puts a part together from its settings: flash, bootloader, access, protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from shared.errors import ConfigError
from shared.trust.keys import key_ring
from sim.mcu.authentication import CertificateAccess, load_ca
from sim.mcu.boot import Bootloader, Judge
from sim.mcu.flash import Flash
from sim.mcu.isotp import Transport
from sim.mcu.memory import DEFAULT_MAP, Area, MemoryMap
from sim.mcu.pending import Pending
from sim.mcu.profile import Access, Downloads, EcuIdentity, Timing
from sim.mcu.programming import Programmer, Regions
from sim.mcu.security import SECRET_BYTES, SecurityAccess
from sim.mcu.stm32_uds import Stm32Uds
from sim.mcu.trouble_codes import TroubleCodes
from sim.mcu.uds_server import Surroundings, UdsServer

U_co = TypeVar("U_co", bound=UdsServer, covariant=True)
MOST_STANDARD_ID = 0x7FF
MOST_EXTENDED_ID = 0x1FFF_FFFF


@dataclass(frozen=True, kw_only=True)
class UdsSettings:
    """One simulated part that speaks UDS. `public_keys` (PEM) sign firmware for it.

    A tester gets in by the 32 bytes of `security_secret` (0x27) or by a certificate of `security_ca`
    (PEM or DER, 0x29); `revoked` serial numbers don't. Identifiers are 29-bit ones when they are over
    0x7FF. With `fd` it answers in CAN FD frames, and hears classic ones too; without it is deaf to FD.
    Raises ConfigError and BadKey.
    """

    flash_file: Path
    identity: EcuIdentity
    public_keys: tuple[bytes, ...]
    security_secret: bytes | None = field(default=None, repr=False)
    security_ca: bytes | None = None
    revoked: frozenset[int] = frozenset()
    request_id: int = 0x7E0
    response_id: int = 0x7E8
    functional_id: int = 0x7DF
    fd: bool = False
    transport: Transport = field(default_factory=Transport)
    timing: Timing = field(default_factory=Timing)
    downloads: Downloads = field(default_factory=Downloads)
    trouble: TroubleCodes = field(default_factory=TroubleCodes)

    def __post_init__(self) -> None:
        if (self.security_secret is None) == (self.security_ca is None):
            raise ConfigError("give security_secret or security_ca, the one or the other")
        if self.security_secret is not None and len(self.security_secret) != SECRET_BYTES:
            raise ConfigError(f"security_secret has {len(self.security_secret)} bytes, not {SECRET_BYTES}")
        if self.security_ca is not None:
            load_ca(self.security_ca)
        if not self.public_keys:
            raise ConfigError("public_keys is empty: this MCU would boot nothing")
        key_ring(list(self.public_keys))
        ids = (self.request_id, self.response_id, self.functional_id)
        most = MOST_EXTENDED_ID if self.extended_ids else MOST_STANDARD_ID
        least = MOST_STANDARD_ID + 1 if self.extended_ids else 0
        if len(set(ids)) != len(ids) or not all(least <= one <= most for one in ids):
            raise ConfigError(
                f"CAN ids {', '.join(map(hex, ids))}: give three different ones, all of 11 or all of 29 bits"
            )

    @property
    def extended_ids(self) -> bool:
        """Whether its identifiers have 29 bits."""
        return self.request_id > MOST_STANDARD_ID

    @property
    def judge(self) -> Judge:
        """Whose firmware it takes."""
        return Judge(
            keys=key_ring(list(self.public_keys)), kind=self.identity.kind, hardware=self.identity.hardware
        )


@dataclass(frozen=True, kw_only=True)
class McuSettings(UdsSettings):
    """One simulated STM32."""

    memory: MemoryMap = DEFAULT_MAP


@dataclass(frozen=True, kw_only=True)
class Part(Generic[U_co]):
    """What lives from power-on to power-off."""

    uds: U_co
    programmer: Programmer


def bootloader_of(settings: McuSettings, flash: Flash) -> Bootloader:
    """The judge of this part's flash."""
    return Bootloader(flash, settings.memory, settings.judge)


def access_of(settings: UdsSettings, flash: Flash, state: Area, clock: Callable[[], float]) -> Access:
    """What lets a tester in; `state` is where wrong keys are counted."""
    if settings.security_ca is not None:
        return CertificateAccess(load_ca(settings.security_ca), revoked=settings.revoked)
    assert settings.security_secret is not None
    delay_s = settings.timing.security_delay_s
    return SecurityAccess(flash, state, settings.security_secret, delay_s=delay_s, clock=clock)


def assemble(settings: McuSettings, flash: Flash, around: Surroundings) -> Part[Stm32Uds]:
    """An STM32 at power-on."""
    memory, timing = settings.memory, settings.timing
    pending = Pending(around.wait, every_s=timing.pending_every_s)
    regions = Regions(slot=memory.slot, document=memory.document)
    programmer = Programmer(
        flash, pending, timing, settings.downloads, regions=lambda: regions, clock=around.clock
    )
    uds = Stm32Uds(
        bootloader=bootloader_of(settings, flash),
        access=access_of(settings, flash, memory.state, around.clock),
        programmer=programmer,
        pending=pending,
        identity=settings.identity,
        timing=timing,
        around=around,
        trouble=settings.trouble,
    )
    return Part(uds=uds, programmer=programmer)
