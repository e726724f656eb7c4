"""A UDS client (ISO 14229-1, -2) for one ECU: one request at a time, every wait bounded.

- P2 and P2* are the ECU's own, from its answer to a session change. responsePending (0x78) restarts
  P2*, but a request as a whole has its own bound, which the standard does not give.
- busyRepeatRequest (0x21) and silence are met by repeating the same bytes, a bounded number of times
  and only where a repeat is harmless.
- An answer counts only if it echoes what was asked (sub-function, identifier, block counter); a late
  answer to an earlier request is passed over.
- A refusal is a named FlashError (see refusals.py).
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from firmware_flashers.base import NoAnswer
from firmware_flashers.clock import MONOTONIC, Clock
from firmware_flashers.isotp import NotSent
from firmware_flashers.refusals import (
    BUSY_REPEAT_REQUEST,
    RESPONSE_PENDING,
    BadAnswer,
    Refused,
    refusal,
)
from firmware_flashers.uds_profile import UdsTiming

NEGATIVE: Final = 0x7F
POSITIVE: Final = 0x40

SESSION_CONTROL: Final = 0x10
ECU_RESET: Final = 0x11
READ_DTCS: Final = 0x19
READ_BY_ID: Final = 0x22
READ_MEMORY: Final = 0x23
SECURITY: Final = 0x27
COMMUNICATION_CONTROL: Final = 0x28
AUTHENTICATION: Final = 0x29
WRITE_BY_ID: Final = 0x2E
ROUTINE: Final = 0x31
REQUEST_DOWNLOAD: Final = 0x34
TRANSFER_DATA: Final = 0x36
TRANSFER_EXIT: Final = 0x37
TESTER_PRESENT: Final = 0x3E
DTC_SETTING: Final = 0x85

DEFAULT_SESSION: Final = 0x01
PROGRAMMING_SESSION: Final = 0x02
EXTENDED_SESSION: Final = 0x03
HARD_RESET: Final = 0x01
START_ROUTINE: Final = 0x01
SUPPRESS_ANSWER: Final = 0x80
ENABLE_RX_AND_TX: Final = 0x00
ENABLE_RX_AND_DISABLE_TX: Final = 0x01
NORMAL_MESSAGES: Final = 0x01  # communicationType, ISO 14229-1 annex B.1
BY_STATUS_MASK: Final = 0x02  # reportDTCByStatusMask
DTC_ON: Final = 0x01
DTC_OFF: Final = 0x02
PLAIN: Final = 0x00  # dataFormatIdentifier: neither compressed nor encrypted
FOUR_AND_FOUR: Final = 0x44  # length and address of 4 bytes each (addressAndLengthFormatIdentifier)

_TIMES = struct.Struct(">HH")
_AREA = struct.Struct(">BII")


class Transport(Protocol):
    """Whole payloads to and from one ECU (see isotp.IsoTpTransport)."""

    def send(self, payload: bytes, *, timeout_s: float) -> None: ...

    def receive(self, timeout_s: float) -> bytes | None: ...

    def send_single(self, payload: bytes) -> None: ...


class UdsClient:
    """Speaks to one ECU from one thread."""

    def __init__(
        self,
        transport: Transport,
        timing: UdsTiming,
        *,
        clock: Clock = MONOTONIC,
        who: str = "the ECU",
    ) -> None:
        """`clock` is the link's, `who` answers, in messages."""
        self._transport = transport
        self._timing = timing
        self._clock = clock
        self._who = who
        self._p2_s = timing.p2_s
        self._p2_star_s = timing.p2_star_s
        self._kept_at = clock.now()
        self.session = DEFAULT_SESSION
        self.unlocked = False

    # -- services; `what` in messages is their name for people

    def change_session(self, session: int, *, tries: int | None = None) -> None:
        """DiagnosticSessionControl; takes the ECU's P2 (1 ms units) and P2* (10 ms units)."""
        # Whatever comes of it, the old session's rights are gone.
        self.unlocked = False
        record = self._ask(
            bytes([SESSION_CONTROL, session]),
            echo=bytes([session]),
            what=f"session 0x{session:02X}",
            most_s=self._timing.session_s,
            tries=tries,
        )
        self.session = session
        if len(record) == _TIMES.size:
            p2_ms, p2_star_10_ms = _TIMES.unpack(record)
            self._p2_s, self._p2_star_s = p2_ms / 1000, p2_star_10_ms / 100

    def read(self, did: int, what: str, *, tries: int | None = None) -> bytes:
        """ReadDataByIdentifier of one identifier."""
        name = did.to_bytes(2, "big")
        return self._ask(bytes([READ_BY_ID]) + name, echo=name, what=f"reading {what}", tries=tries)

    def read_dtcs(self, status_mask: int) -> bytes:
        """ReadDTCInformation by status mask: the record behind the sub-function (see trouble_codes)."""
        echo = bytes([BY_STATUS_MASK])
        return self._ask(bytes([READ_DTCS, BY_STATUS_MASK, status_mask]), echo=echo, what="its trouble codes")

    def write(self, did: int, record: bytes, what: str) -> None:
        """WriteDataByIdentifier."""
        name = did.to_bytes(2, "big")
        self._ask(bytes([WRITE_BY_ID]) + name + record, echo=name, what=f"writing {what}")

    def read_memory(self, address: int, length: int) -> bytes:
        """ReadMemoryByAddress; exactly `length` bytes."""
        data = self._ask(
            bytes([READ_MEMORY]) + area(address, length),
            echo=b"",
            what=f"reading {length} bytes at {address:#010x}",
            most_s=self._timing.block_s,
        )
        if len(data) != length:
            raise BadAnswer(f"{self._who} gives {len(data)} bytes at {address:#010x}, asked were {length}")
        return data

    def request_seed(self, level: int) -> bytes:
        """SecurityAccess requestSeed; all zero when the ECU is unlocked already."""
        return self._ask(bytes([SECURITY, level]), echo=bytes([level]), what="a security seed")

    def send_key(self, level: int, key: bytes) -> None:
        """SecurityAccess sendKey, once: a repeat after a lost answer could count as a wrong key."""
        self._ask(
            bytes([SECURITY, level + 1]) + key, echo=bytes([level + 1]), what="the security key", tries=1
        )

    def authenticate(self, task: int, parameters: bytes, what: str, *, tries: int | None = None) -> bytes:
        """Authentication; returns what follows the task's echo: the return value and its parameters."""
        return self._ask(
            bytes([AUTHENTICATION, task]) + parameters, echo=bytes([task]), what=what, tries=tries
        )

    def set_communication(self, control: int) -> None:
        """CommunicationControl of the ECU's normal messages."""
        self._ask(
            bytes([COMMUNICATION_CONTROL, control, NORMAL_MESSAGES]),
            echo=bytes([control]),
            what="communication control",
        )

    def set_dtcs(self, setting: int) -> None:
        """ControlDTCSetting."""
        self._ask(bytes([DTC_SETTING, setting]), echo=bytes([setting]), what="the setting of trouble codes")

    def is_present(self, *, tries: int | None = None) -> None:
        """TesterPresent that is answered; raises NoAnswer when it is not."""
        self._ask(bytes([TESTER_PRESENT, 0x00]), echo=b"\x00", what="TesterPresent", tries=tries)

    def routine(
        self, routine: int, option: bytes, what: str, *, most_s: float | None = None, tries: int | None = None
    ) -> bytes:
        """RoutineControl startRoutine; returns the status record."""
        name = bytes([START_ROUTINE]) + routine.to_bytes(2, "big")
        return self._ask(bytes([ROUTINE]) + name + option, echo=name, what=what, most_s=most_s, tries=tries)

    def request_download(self, address: int, length: int, *, data_format: int = PLAIN) -> int:
        """RequestDownload of `length` bytes, counted as they lie in memory.

        `data_format` is the dataFormatIdentifier: compression in the high nibble, encryption in the low.
        Returns the most bytes of one TransferData, SID and counter included.

        Not repeated: an ECU that has begun a download may refuse a second one.
        """
        answer = self._ask(
            bytes([REQUEST_DOWNLOAD, data_format]) + area(address, length),
            echo=b"",
            what=f"a download to {address:#010x}",
            tries=1,
        )
        # lengthFormatIdentifier: the high nibble counts the bytes of maxNumberOfBlockLength.
        count = answer[0] >> 4 if answer else 0
        if not count or len(answer) != 1 + count:
            raise BadAnswer(f"the answer to RequestDownload can't be read: {answer[:8].hex()}")
        return int.from_bytes(answer[1:], "big")

    def transfer(self, request: bytes) -> None:
        """TransferData, made by `block_requests`; after a lost answer the very same bytes go again."""
        self._ask(request, echo=request[1:2], what=f"block {request[1]}", most_s=self._timing.block_s)

    def transfer_exit(self) -> None:
        """RequestTransferExit."""
        self._ask(bytes([TRANSFER_EXIT]), echo=b"", what="the end of the download")

    def reset(self) -> None:
        """ECUReset hardReset, once; the ECU may reset before its answer has left."""
        try:
            self._ask(bytes([ECU_RESET, HARD_RESET]), echo=bytes([HARD_RESET]), what="a reset", tries=1)
        finally:
            self.fell_back()

    def keep_session(self) -> None:
        """A suppressed TesterPresent, if a session other than the default one is open."""
        if self.session != DEFAULT_SESSION:
            self._transport.send_single(bytes([TESTER_PRESENT, SUPPRESS_ANSWER]))

    def keep_waiting(self) -> None:
        """While something else than the ECU is waited for: keep its session, when that is due."""
        now = self._clock.now()
        if now >= self._kept_at + self._timing.tester_present_s:
            self._kept_at = now
            self.keep_session()

    def leave(self, *, reset: bool) -> None:
        """Ask the ECU back to its application without waiting for its answer."""
        request = [ECU_RESET, HARD_RESET] if reset else [SESSION_CONTROL, DEFAULT_SESSION]
        self._transport.send_single(bytes(request))
        self.fell_back()

    def fell_back(self) -> None:
        """The ECU was reset: session, access and its own times are gone."""
        self.session = DEFAULT_SESSION
        self.unlocked = False
        self._p2_s, self._p2_star_s = self._timing.p2_s, self._timing.p2_star_s

    # -- one request with its repeats

    def _ask(
        self, request: bytes, *, echo: bytes, what: str, most_s: float | None = None, tries: int | None = None
    ) -> bytes:
        """Send `request` until it is answered; returns what follows the echo.

        At most `tries` times when nothing (or nothing fitting) comes, and `most_s` seconds in all. What
        surely did not arrive may be sent again whatever `tries` says.
        Raises what the ECU's refusal means, NoAnswer, BadAnswer, BusDown, Interrupted.
        """
        bound_s = most_s or self._timing.request_s
        deadline = self._clock.now() + bound_s
        silent = busy = 0
        while True:
            try:
                return self._ask_once(request, echo, what, deadline, bound_s)
            except (NoAnswer, BadAnswer) as error:
                silent += 1
                most = self._timing.silent_tries if tries is None or isinstance(error, NotSent) else tries
                if silent >= most or self._clock.now() >= deadline:
                    raise
            except Refused as error:
                if error.nrc != BUSY_REPEAT_REQUEST:
                    raise
                busy += 1
                if busy >= self._timing.busy_tries or self._clock.now() >= deadline:
                    raise
                self._clock.sleep(self._timing.busy_wait_s)

    def _ask_once(self, request: bytes, echo: bytes, what: str, deadline: float, bound_s: float) -> bytes:
        service = request[0]
        self._transport.send(request, timeout_s=max(0.0, deadline - self._clock.now()))
        wait_until = self._clock.now() + self._p2_s + self._timing.margin_s
        pending = False
        strange: bytes | None = None
        while True:
            now = self._clock.now()
            answer = self._transport.receive(max(0.0, min(wait_until, deadline) - now))
            if answer is None:
                if pending and self._clock.now() >= deadline:
                    raise NoAnswer(f"{self._who} is not ready with {what} after {bound_s:.0f} s")
                if strange is not None:
                    raise BadAnswer(f"{self._who} answers {what} with {strange[:4].hex()}")
                if pending:
                    raise NoAnswer(f"{self._who} fell silent while it was busy with {what}")
                raise NoAnswer(f"{self._who} does not answer {what}")
            if len(answer) == 3 and answer[0] == NEGATIVE and answer[1] == service:
                if answer[2] != RESPONSE_PENDING:
                    raise refusal(service, answer[2], what, unlocked=self.unlocked, who=self._who)
                pending = True
                wait_until = self._clock.now() + self._p2_star_s + self._timing.margin_s
            elif answer[:1] == bytes([service + POSITIVE]) and answer[1:].startswith(echo):
                return answer[1 + len(echo) :]
            else:
                strange = answer


def block_requests(data: bytes, most: int) -> list[bytes]:
    """TransferData requests for `data`, up to `most` bytes of it in each; the counter goes 01..FF, 00.."""
    return [
        bytes([TRANSFER_DATA, number & 0xFF]) + data[at : at + most]
        for number, at in enumerate(range(0, len(data), most), start=1)
    ]


def area(address: int, length: int) -> bytes:
    """An address and a length of 4 bytes each, with the format byte that says so."""
    return _AREA.pack(FOUR_AND_FOUR, address, length)
