"""What every flasher can do, whatever the chip: the six steps of bringing firmware to an ECU.

The caller (the agent's updater, the command line, an engineer's script) writes down what it is
about to do and then calls one step; each step may be repeated after a crash at any moment and
either finishes or raises a `FlashError` that says whether a repeat can help.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shared.errors import OtaError
from shared.release import FirmwareSpec
from shared.since_310 import StrEnum


class FlashError(OtaError):
    """An ECU could not be brought further; nothing is claimed about it.

    `touched` says whether the step may have begun to erase or write: a flasher sets it to False only
    when it surely has not, and then what the ECU ran before still runs.
    """

    code = "flash_failed"
    retryable = True
    advice = "Check the wiring, power and termination of the bus, then try again."

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        advice: str | None = None,
        touched: bool = True,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, advice=advice)
        self.touched = touched


class NoAnswer(FlashError):
    """The ECU did not answer in time."""

    code = "no_answer"


class BusDown(FlashError):
    """The CAN interface itself fails: down, bus-off, gone."""

    code = "bus_down"
    advice = "Bring the CAN interface up and check the wiring; then try again."


class NotNow(FlashError):
    """The ECU itself refuses for the moment: speed, voltage, engine running (NRC 22, 81..93)."""

    code = "conditions_not_correct"
    advice = "Bring the vehicle to standstill with the engine off and enough voltage."


class AccessDenied(FlashError):
    """Security access failed: never repeated by itself, since ECUs lock after a few tries."""

    code = "access_denied"
    retryable = False
    advice = "Give the security key of this ECU family; wait out the ECU's delay before another try."


class WrongEcu(FlashError):
    """Another kind or hardware revision answers than the image is for."""

    code = "wrong_ecu"
    retryable = False
    advice = "Check the component's entry in the agent's configuration and the image's hardware list."


class BadImage(FlashError):
    """The image can't be for this ECU; found before a byte was sent."""

    code = "bad_image"
    retryable = False
    advice = "Build the image for this part and its flash layout."


class NotProved(FlashError):
    """The ECU's own content or version is not what was written."""

    code = "not_proved"
    advice = "Flash it again; if it repeats, the part's flash is worn or the image is not for it."


class TrustClass(StrEnum):
    """What protects the ECU itself from unauthorised code."""

    VERIFIES = "verifies"  # its bootloader checks an offline signature before every boot
    GATEWAY_ONLY = "gateway-only"  # read-back proves transport, not authority


@dataclass(frozen=True, kw_only=True)
class MemoryRange:
    """Addresses from `start` up to, not including, `end`."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What the way of flashing guarantees; the agent's recovery depends on it."""

    slots: int  # 1: erasing destroys what runs; 2: the other slot keeps running
    self_reverting: bool  # boots the old image again unless it is confirmed
    anti_rollback: bool  # has a counter that only rises
    trust_class: TrustClass
    isolated_bus: bool  # must be alone on the bus (ROM loaders)
    never_erased: tuple[MemoryRange, ...] = ()
    image_start: int | None = None  # the address that an image's first byte goes to, where it is fixed


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the ECU says of itself. `version` and `sha256` are of the image that it holds, None
    when it holds no whole one; `in_bootloader` says that the application does not run.
    """

    kind: str
    hardware: str
    version: str | None
    sha256: str | None
    in_bootloader: bool


@dataclass(frozen=True, kw_only=True)
class FirmwareImage:
    """Verified bytes with what was signed about them.

    `document` is the signed document, which an ECU of trust class `verifies` checks itself.
    """

    spec: FirmwareSpec
    data: bytes
    document: bytes

    @classmethod
    def unsigned(cls, data: bytes, *, kind: str, hardware: str, version: str) -> FirmwareImage:
        """A build of the bench, for parts that check no signature. Raises BadRelease."""
        spec = FirmwareSpec(
            kind=kind,
            hardware=(hardware,),
            version=version,
            release_counter=0,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        return cls(spec=spec, data=data, document=b"")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a step is: its name (shared.states.Step) and bytes of the image."""

    step: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[Progress], None]


def no_progress(_: Progress) -> None:
    """Take no notice."""


class Flasher(Protocol):
    """One ECU on one bus. All steps raise FlashError (see its kinds) and nothing else."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def identify(self) -> Identity:
        """Ask the ECU who it is and what it holds; changes nothing."""
        ...

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        """Judge the image, erase where it goes, write it, and prove the content by the ECU.

        WrongEcu, BadImage, AccessDenied and NotNow are raised before anything is erased.
        """
        ...

    async def activate(self) -> None:
        """Make the staged image the one that runs (reset), and wait until the ECU answers."""
        ...

    async def verify(self, image: FirmwareImage) -> Identity:
        """Read back from the running ECU that it runs exactly `image`; raises NotProved."""
        ...

    async def confirm(self) -> None:
        """Make the running image permanent; nothing to do where it already is."""
        ...

    async def revert(self) -> None:
        """Return to the image before `stage`. Raises FlashError where there is no second slot."""
        ...


@dataclass(frozen=True, kw_only=True)
class TroubleCode:
    """One that an ECU stores: three bytes as a number, and its status byte (ISO 14229-1, annex D.2)."""

    code: int
    status: int


@runtime_checkable
class ReadsFaults(Protocol):
    """What a flasher can do besides where its ECU tells its trouble codes; a ROM loader does not."""

    async def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        """Those with a bit of `status_mask`, as the running application stores them. Raises FlashError."""
        ...


class BenchFlasher(Flasher, Protocol):
    """A flasher with the tools of an engineer's bench beside the steps; the agent never uses these."""

    async def read(self, start: int, length: int, *, progress: OnProgress = no_progress) -> bytes:
        """`length` bytes of the ECU's memory from address `start` on. Raises FlashError."""
        ...

    async def erase(self, start: int, length: int, *, progress: OnProgress = no_progress) -> None:
        """Erase whole sectors and prove it by a blank check; never what the profile protects."""
        ...

    async def reset(self) -> None:
        """Reset the ECU (a ROM loader: start what the vector table at the slot's start says)."""
        ...
