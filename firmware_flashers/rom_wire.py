"""The frames of a ROM loader: one command, its answers, and the way back into step. Blocking.

- A loader in the middle of a write or an erase takes *any* frame for data: after a lost frame it is brought
  back to where it waits for a command by `resync`, with filling that does no harm.
- Frames of another command than the present one are late, and passed over; those of nobody's command are
  somebody else's, and end the conversation: a loader would take them for its own.

Every wait is bounded and ends when the step is interrupted.
"""

from __future__ import annotations

import threading

import can

from firmware_flashers.base import NoAnswer
from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import Interrupted
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.rom_profile import RomTiming
from firmware_flashers.rom_words import (
    ACK,
    DATA,
    MOST_DRAINED,
    MOST_FILLING,
    OF_THE_LOADER,
    SLICE_S,
    SYNC,
    WRITE,
    BusNotIsolated,
    Nacked,
    NotListed,
    Resynced,
)
from shared.logs import get_log

log = get_log("firmware_flashers")


class RomWire:
    """One conversation, from one thread. Raises FlashError (see its kinds) and nothing else."""

    def __init__(
        self, link: CanLink, timing: RomTiming, *, fd: bool, interrupt: threading.Event | None = None
    ) -> None:
        self.link = link
        self.timing = timing
        self.fd = fd
        self.frame_bytes = 64 if fd else 8
        self.interrupt = interrupt or threading.Event()
        self.listed: frozenset[int] | None = None
        self.doubles_acks = False

    # --- finding the loader ----------------------------------------------------------------------

    def listen(self, seconds: float) -> None:
        """Send nothing and hear nobody but a loader for so long from now on. Raises BusNotIsolated."""
        # What waits in the driver is of before: a part may have been reset since.
        for _ in range(MOST_DRAINED):
            if self.link.receive(0) is None:
                break
        until = self.link.clock.now() + seconds
        while (left_s := until - self.link.clock.now()) > 0:
            self.check_interrupt()
            message = self.link.receive(min(left_s, SLICE_S))
            if message is not None:
                self._check_ours(message)

    def drain(self) -> None:
        """Take in what has come meanwhile. Raises BusNotIsolated."""
        for _ in range(MOST_DRAINED):
            message = self.link.receive(0)
            if message is None:
                return
            self._check_ours(message)

    def is_there(self) -> bool:
        """Whether a loader answers a synchronisation frame: ACK, or NACK where it is not the first."""
        self.send(SYNC, b"")
        return self._any_answer(self.timing.probe_s) is not None

    def resync(self, filling: bytes, *, within_s: float | None = None, sync_first: bool = False) -> Resynced:
        """Bring the loader to where it waits for a command.

        `filling` is the frame that does no harm when it is taken for data. Raises NoAnswer.
        """
        clock, probe_s = self.link.clock, self.timing.probe_s
        until = clock.now() + (self.timing.sync_s if within_s is None else within_s)
        self.settle()
        filled = 0
        sync_next = sync_first
        while filled < MOST_FILLING and clock.now() < until:
            self.check_interrupt()
            self.send(SYNC if sync_next else DATA, b"" if sync_next else filling)
            answer = self._any_answer(probe_s)
            if answer is None:
                # A frame of a longer piece of data, or one that the loader does not know and ignores.
                sync_next = not sync_next
            elif answer.arbitration_id == SYNC:
                self.settle()
                return Resynced(filled=filled, was_reset=answer.data[:1] == bytes([ACK]))
            elif answer.arbitration_id == DATA:
                sync_next = True
            else:
                filled += 1
                sync_next = False
        raise NoAnswer(
            f"{self.link.name}: no ROM loader answers",
            advice="Bring the part into its ROM loader (BOOT0 high, then reset), check its crystal and the "
            "bit rate, then try again.",
        )

    # --- one frame and its answer ----------------------------------------------------------------

    def begin(self, command: int, data: bytes, within_s: float | None = None) -> None:
        """Send a command's first frame and have it acknowledged."""
        if self.listed is not None and command not in self.listed:
            raise NotListed(f"the loader does not list command {command:#04x}", touched=False)
        for _ in range(MOST_DRAINED):
            message = self.link.receive(0)
            if message is None:
                break
            self._check_ours(message)
            if command == WRITE == message.arbitration_id and not self.doubles_acks:
                log.info("flasher.acknowledgements_doubled")
                self.doubles_acks = True
        self.send(command, data)
        self.acknowledged(command, self.timing.ack_s if within_s is None else within_s)

    def acknowledged(self, command: int, within_s: float, message: can.Message | None = None) -> None:
        data = self.data(command, within_s, message)
        if data == b"\x79":
            return
        if data == b"\x1f":
            raise Nacked(f"the loader refuses command {command:#04x}")
        raise BadAnswer(f"the loader answers command {command:#04x} with {data[:8].hex()}")

    def data(self, command: int, within_s: float, message: can.Message | None = None) -> bytes | bytearray:
        """The data of the next frame of a command; late ones of others are passed over.

        `message` has come already. Raises NoAnswer, BusNotIsolated, Interrupted.
        """
        clock = self.link.clock
        until: float | None = None
        while True:
            if message is not None:
                if message.arbitration_id == command and not message.is_extended_id:
                    return message.data
                self._check_ours(message)
            self.check_interrupt()
            now = clock.now()
            if until is None:
                until = now + within_s
            elif now >= until:
                raise NoAnswer(f"the loader does not answer command {command:#04x} within {within_s:g} s")
            message = self.link.receive(min(SLICE_S, until - now))

    def _any_answer(self, within_s: float) -> can.Message | None:
        """The next frame of the loader, whatever command it belongs to."""
        until = self.link.clock.now() + within_s
        while (left_s := until - self.link.clock.now()) > 0:
            self.check_interrupt()
            message = self.link.receive(min(SLICE_S, left_s))
            if message is not None:
                self._check_ours(message)
                return message
        return None

    def settle(self) -> int:
        """Wait until nothing more comes, as long as two frames of this wire take; returns what came."""
        quiet_s = 2 * self.link.frame_s(extended=False, fd=self.fd) + 0.001
        for came in range(MOST_DRAINED):
            message = self.link.receive(quiet_s)
            if message is None:
                return came
            self._check_ours(message)
        return MOST_DRAINED

    def send(self, arbitration_id: int, data: bytes) -> None:
        self.link.send(arbitration_id, data, extended=False, fd=self.fd)

    def _check_ours(self, message: can.Message) -> None:
        if message.is_extended_id or message.arbitration_id not in OF_THE_LOADER:
            raise BusNotIsolated(
                f"{self.link.name}: somebody else sends {message.arbitration_id:#x}, "
                "but a ROM loader must be alone"
            )

    def check_interrupt(self) -> None:
        if self.interrupt.is_set():
            raise Interrupted("the step was cancelled")
