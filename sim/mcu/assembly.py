"""Puts a part together from its settings: flash, bootloader, security, protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError
from shared.trust.keys import key_ring
from sim.mcu.boot import Bootloader
from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.memory import DEFAULT_MAP, MemoryMap
from sim.mcu.pending import Pending
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.programming import Programmer
from sim.mcu.security import SECRET_BYTES, SecurityAccess
from sim.mcu.stm32_uds import Stm32Uds


@dataclass(frozen=True, kw_only=True)
class McuSettings:
    """One simulated part. `public_keys` (PEM) sign firmware for it; `security_secret` is 32 bytes.

    Identifiers are 11-bit. Raises ConfigError and BadKey.
    """

    flash_file: Path
    identity: EcuIdentity
    public_keys: tuple[bytes, ...]
    security_secret: bytes = field(repr=False)
    request_id: int = 0x7E0
    response_id: int = 0x7E8
    functional_id: int = 0x7DF
    memory: MemoryMap = DEFAULT_MAP
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        if len(self.security_secret) != SECRET_BYTES:
            raise ConfigError(f"security_secret has {len(self.security_secret)} bytes, not {SECRET_BYTES}")
        if not self.public_keys:
            raise ConfigError("public_keys is empty: this MCU would boot nothing")
        key_ring(list(self.public_keys))
        ids = (self.request_id, self.response_id, self.functional_id)
        if len(set(ids)) != len(ids) or not all(0 <= one <= 0x7FF for one in ids):
            raise ConfigError(f"CAN ids {', '.join(map(hex, ids))}: give three different 11-bit ones")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What lives from power-on to power-off."""

    uds: Stm32Uds
    programmer: Programmer


def bootloader_of(settings: McuSettings, flash: Flash) -> Bootloader:
    """The judge of this part's flash. Raises BadKey."""
    keys = key_ring(list(settings.public_keys))
    return Bootloader(flash, keys, kind=settings.identity.kind, hardware=settings.identity.hardware)


def assemble(
    settings: McuSettings,
    flash: Flash,
    *,
    faults: FaultState,
    clock: Callable[[], float],
    wait: Callable[[float], None],
    restart: Callable[[], None],
) -> Part:
    """The part at power-on; see Stm32Uds for `clock` and `restart`, Pending for `wait`."""
    timing = settings.timing
    pending = Pending(wait, every_s=timing.pending_every_s)
    programmer = Programmer(flash, pending, timing)
    uds = Stm32Uds(
        bootloader=bootloader_of(settings, flash),
        security=SecurityAccess(
            flash, settings.security_secret, delay_s=timing.security_delay_s, clock=clock
        ),
        programmer=programmer,
        pending=pending,
        identity=settings.identity,
        timing=timing,
        faults=faults,
        clock=clock,
        restart=restart,
    )
    return Part(uds=uds, programmer=programmer)
