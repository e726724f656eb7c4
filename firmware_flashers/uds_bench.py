"""Tools of an engineer's bench over UDS: read memory, erase sectors, reset. Blocking; for a worker thread."""

from __future__ import annotations

from firmware_flashers.base import FlashError, MemoryRange
from firmware_flashers.threaded import Report
from firmware_flashers.uds_ecu import UdsEcu
from firmware_flashers.uds_memory import overlaps
from firmware_flashers.uds_start import not_booted
from shared.states import Step


def read(ecu: UdsEcu, start: int, length: int, report: Report) -> bytes:
    """`length` bytes from address `start` on; afterwards the ECU runs what it ran before."""
    before = ecu.in_bootloader()
    with ecu.opened(in_bootloader_before=before):
        return ecu.memory.read(start, length, lambda step, done: report(step, done, length))


def erase(ecu: UdsEcu, start: int, length: int, report: Report) -> None:
    """Whole sectors, each proved to be blank; the document before them, so that the rest is never run."""
    memory = ecu.profile.memory
    what = MemoryRange(start=start, end=start + length)
    if length <= 0 or not memory.is_whole_sectors(what):
        raise _refusal("not_whole_sectors", f"{start:#x}..{what.end:#x} is not made of whole sectors")
    if memory.bootloader is not None and overlaps(what, memory.bootloader):
        raise _refusal("never_erased", f"{start:#x}..{what.end:#x} holds what is never erased")
    ecu.session.left_application = False
    ecu.session.enter_programming()
    ecu.session.unlock()
    ecu.write_fingerprint("erase")
    document = ecu.place().document
    if document is not None:
        ecu.memory.erase(document)
    for sector in memory.sectors_of(what, length):
        report(Step.ERASING, sector.start - start, length)
        # An area for a document that is larger than a sector is erased as a whole, above.
        if document is None or not overlaps(sector, document):
            ecu.memory.erase(sector)
        ecu.memory.prove(sector.start, b"\xff" * (sector.end - sector.start))
    report(Step.ERASING, length, length)


def reset(ecu: UdsEcu) -> None:
    """A hard reset; returns when the ECU answers again, whatever it runs then."""
    ecu.reset()
    if (last := ecu.await_application(any_state=True)) is not None:
        raise not_booted(ecu, last)


def _refusal(code: str, message: str) -> FlashError:
    return FlashError(
        message,
        code=code,
        retryable=False,
        advice="Give a range of the memory map in the ECU's profile.",
        touched=False,
    )
