"""Bootloader and application of the simulated STM32: the server side of the "stm32-uds" profile.

Strict: every request is answered as the profile and ISO 14229-1:2020 say, a wrong one with the
code of what is wrong first. The application knows sessions, identification, preconditions and reset; the
bootloader also programs. After every reset the application runs if, and only if, the bootloader's
verification of the flash passes (see boot).

Where the profile says nothing: `10 02` in a programming session begins it again, and functional requests
other than 10 (not 02), 22 and 3E are ignored.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.mcu.boot import Bootloader, Installed, Verdict
from sim.mcu.faults import FaultState
from sim.mcu.pending import Pending, Reply
from sim.mcu.profile import (
    MOST_FINGERPRINT_BYTES,
    P2_TIMES,
    SUPPRESS_POSITIVE,
    SUPPRESSED_WHEN_FUNCTIONAL,
    Did,
    EcuIdentity,
    Nrc,
    Refused,
    Routine,
    Session,
    Sid,
    Timing,
)
from sim.mcu.programming import RANGE_BYTES, SHA256_BYTES, Programmer
from sim.mcu.security import KEY_BYTES, SecurityAccess

_ANY = frozenset(Session)
_PROGRAMMING = frozenset({Session.PROGRAMMING})
_SESSIONS: dict[int, frozenset[Session]] = {
    Sid.SESSION: _ANY,
    Sid.RESET: _ANY,
    Sid.READ: _ANY,
    Sid.TESTER_PRESENT: _ANY,
    Sid.ROUTINE: frozenset({Session.EXTENDED, Session.PROGRAMMING}),
    Sid.SECURITY: _PROGRAMMING,
    Sid.WRITE: _PROGRAMMING,
    Sid.DOWNLOAD: _PROGRAMMING,
    Sid.TRANSFER: _PROGRAMMING,
    Sid.EXIT: _PROGRAMMING,
}
_WITH_SUB_FUNCTION = {Sid.SESSION, Sid.RESET, Sid.SECURITY, Sid.ROUTINE, Sid.TESTER_PRESENT}
_FUNCTIONAL = {Sid.SESSION, Sid.READ, Sid.TESTER_PRESENT}


class NoAnswer(Exception):
    """The request is not answered at all."""


class Stm32Uds:
    """The protocol, without a bus: requests in, responses out.

    `clock` gives seconds; `restart` passes the time of a reset, in which frames are lost. `faults` may be
    replaced between requests.
    """

    def __init__(
        self,
        *,
        bootloader: Bootloader,
        security: SecurityAccess,
        programmer: Programmer,
        pending: Pending,
        identity: EcuIdentity,
        timing: Timing,
        faults: FaultState,
        clock: Callable[[], float],
        restart: Callable[[], None],
    ) -> None:
        self._bootloader = bootloader
        self._security = security
        self._programmer = programmer
        self._pending = pending
        self._identity = identity
        self._timing = timing
        self.faults = faults
        self._clock = clock
        self._restart = restart
        self._reset_due = False
        self.power_on()

    def power_on(self) -> None:
        """Begin as after power-on or reset: boot what may be booted."""
        self._security.power_on()
        self.in_bootloader = self._bootloader.judge().verdict is not Verdict.BOOTABLE
        self._enter(Session.DEFAULT)

    def _enter(self, session: Session) -> None:
        self.session = session
        self._security.lock()
        self._programmer.abandon()
        self._fingerprint = False
        self._active_at = self._clock()

    def installed(self) -> Installed:
        """What the flash holds, as the bootloader judges it."""
        return self._bootloader.judge()

    def tick(self) -> None:
        """To be called while no request is on its way: falls back to the default session when the tester
        has been silent for S3 (ISO 14229-2).
        """
        if self.session is not Session.DEFAULT and self._clock() - self._active_at >= self._timing.s3_s:
            self._enter(Session.DEFAULT)

    def handle(self, request: bytes, *, functional: bool, reply: Reply) -> None:
        """Answer one request by calls of `reply`: none, one, or responsePending first.

        S3 stands still from a request's first frame on, so `tick` is called before that, not here.
        """
        if not request:
            return
        self._pending.begin(request[0], reply)
        try:
            answer = self._answer(request[0], request[1:], functional)
        except NoAnswer:
            return
        except Refused as refused:
            quiet = functional and refused.nrc in SUPPRESSED_WHEN_FUNCTIONAL and not self._pending.said
            answer = None if quiet else bytes([0x7F, request[0], refused.nrc])
        finally:
            self._active_at = self._clock()
        if answer is not None:
            reply(answer)
        if self._reset_due:
            self._reset()

    def _answer(self, sid: int, body: bytes, functional: bool) -> bytes | None:
        if functional and (sid not in _FUNCTIONAL or (sid, body[:1]) == (Sid.SESSION, b"\x02")):
            raise NoAnswer
        if sid not in _SESSIONS:
            raise Refused(Nrc.SERVICE_NOT_SUPPORTED)
        if self.faults.take_busy():
            raise Refused(Nrc.BUSY)
        if self.session not in _SESSIONS[sid]:
            raise Refused(Nrc.SERVICE_NOT_IN_SESSION)
        suppress = False
        if sid in _WITH_SUB_FUNCTION:
            if not body:
                raise Refused(Nrc.INCORRECT_LENGTH)
            suppress = bool(body[0] & SUPPRESS_POSITIVE)
            body = bytes([body[0] & ~SUPPRESS_POSITIVE]) + body[1:]
        answer = self._serve(Sid(sid), body)
        # What was announced by responsePending is answered in the end, suppressed or not (clause 8.7).
        return None if suppress and not self._pending.said else answer

    def _serve(self, sid: Sid, body: bytes) -> bytes:
        match sid:
            case Sid.SESSION:
                return self._session_control(body)
            case Sid.RESET:
                return self._ecu_reset(body)
            case Sid.READ:
                return self._read(body)
            case Sid.TESTER_PRESENT:
                return self._tester_present(body)
            case Sid.ROUTINE:
                return self._routine(body)
            case Sid.SECURITY:
                return self._security_access(body)
            case Sid.WRITE:
                return self._write(body)
            case Sid.DOWNLOAD:
                require_length(body, 1 + RANGE_BYTES)
                self._require_unlocked()
                return self._programmer.request_download(body)
            case Sid.TRANSFER:
                return self._transfer(body)
            case Sid.EXIT:
                require_length(body, 0)
                return self._programmer.exit()

    # --- sessions, reset, identification ---------------------------------------------------------

    def _session_control(self, body: bytes) -> bytes:
        if body[0] not in set(Session):
            raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        require_length(body, 1)
        session = Session(body[0])
        if session is Session.PROGRAMMING:
            if self.session is Session.DEFAULT:
                raise Refused(Nrc.SUB_FUNCTION_NOT_IN_SESSION)
            if not self.in_bootloader:
                self._require_standstill(Nrc.CONDITIONS_NOT_CORRECT, Nrc.CONDITIONS_NOT_CORRECT)
                self._pending.say()
                self._reset()
                self.in_bootloader = True
        self._enter(session)
        return bytes([Sid.SESSION + 0x40, session]) + P2_TIMES

    def _ecu_reset(self, body: bytes) -> bytes:
        if body[0] != 0x01:
            raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        require_length(body, 1)
        self._require_standstill(Nrc.CONDITIONS_NOT_CORRECT, Nrc.CONDITIONS_NOT_CORRECT)
        self._reset_due = True
        return bytes([Sid.RESET + 0x40, 0x01])

    def _reset(self) -> None:
        self._reset_due = False
        self._restart()
        self.power_on()

    def _tester_present(self, body: bytes) -> bytes:
        if body[0] != 0x00:
            raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        require_length(body, 1)
        return bytes([Sid.TESTER_PRESENT + 0x40, 0x00])

    def _read(self, body: bytes) -> bytes:
        require_length(body, 2)
        spec = self.installed().spec
        match int.from_bytes(body, "big"):
            case Did.KIND:
                value = self._identity.kind.encode("ascii")
            case Did.HARDWARE:
                value = self._identity.hardware.encode("ascii")
            case Did.SERIAL:
                value = self._identity.serial.encode("ascii")
            case Did.IN_BOOTLOADER:
                value = bytes([self.in_bootloader])
            case Did.VERSION if spec is not None:
                value = spec.version.encode("ascii")
            case Did.SHA256 if spec is not None:
                value = bytes.fromhex(spec.sha256)
            case _:
                raise Refused(Nrc.OUT_OF_RANGE)
        return bytes([Sid.READ + 0x40]) + body + value

    def _require_standstill(self, moving: Nrc, engine: Nrc) -> None:
        if self.faults.order.moving:
            raise Refused(moving)
        if self.faults.order.engine_running:
            raise Refused(engine)

    # --- access and programming ------------------------------------------------------------------

    def _security_access(self, body: bytes) -> bytes:
        if body[0] not in {0x01, 0x02}:
            raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        require_length(body, 1 if body[0] == 0x01 else 1 + KEY_BYTES)
        if self._security.is_delayed():
            raise Refused(Nrc.TIME_DELAY)
        if body[0] == 0x01:
            return bytes([Sid.SECURITY + 0x40, 0x01]) + self._security.seed()
        if not self._security.awaits_key:
            raise Refused(Nrc.SEQUENCE_ERROR)
        if not self._security.try_key(body[1:]):
            raise Refused(Nrc.EXCEEDED_ATTEMPTS if self._security.is_delayed() else Nrc.INVALID_KEY)
        return bytes([Sid.SECURITY + 0x40, 0x02])

    def _require_unlocked(self) -> None:
        if not self._security.unlocked:
            raise Refused(Nrc.ACCESS_DENIED)

    def _write(self, body: bytes) -> bytes:
        if not 2 < len(body) <= 2 + MOST_FINGERPRINT_BYTES:
            raise Refused(Nrc.INCORRECT_LENGTH)
        if int.from_bytes(body[:2], "big") != Did.FINGERPRINT:
            raise Refused(Nrc.OUT_OF_RANGE)
        self._require_unlocked()
        if not all(0x20 <= byte < 0x7F for byte in body[2:]):
            raise Refused(Nrc.OUT_OF_RANGE)
        self._fingerprint = True
        return bytes([Sid.WRITE + 0x40]) + body[:2]

    def _routine(self, body: bytes) -> bytes:
        if len(body) < 3:
            raise Refused(Nrc.INCORRECT_LENGTH)
        if body[0] != 0x01:
            raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        number, options = int.from_bytes(body[1:3], "big"), body[3:]
        wanted = Session.EXTENDED if number == Routine.CHECK_PRECONDITIONS else Session.PROGRAMMING
        if number not in set(Routine) or self.session is not wanted:
            raise Refused(Nrc.OUT_OF_RANGE)
        result = self._run(Routine(number), options)
        return bytes([Sid.ROUTINE + 0x40]) + body[:3] + bytes([result])

    def _run(self, routine: Routine, options: bytes) -> int:
        if routine is not Routine.CHECK_PRECONDITIONS:
            self._require_unlocked()
        match routine:
            case Routine.CHECK_PRECONDITIONS:
                require_length(options, 0)
                self._require_standstill(Nrc.SPEED_TOO_HIGH, Nrc.ENGINE_RUNNING)
                return 0x00
            case Routine.ERASE:
                require_length(options, RANGE_BYTES)
                if not self._fingerprint:
                    raise Refused(Nrc.CONDITIONS_NOT_CORRECT)
                self._programmer.erase(options, extra_s=self.faults.take_pending_s())
                return 0x00
            case Routine.CHECK_MEMORY:
                require_length(options, RANGE_BYTES + SHA256_BYTES)
                return self._programmer.check_memory(options)
            case Routine.CHECK_DEPENDENCIES:
                require_length(options, 0)
                self._programmer.require_no_download()
                return self.installed().verdict

    def _transfer(self, body: bytes) -> bytes:
        if len(body) < 2:
            raise Refused(Nrc.INCORRECT_LENGTH)
        if self.faults.reset.due():
            self._reset()
            raise NoAnswer
        return self._programmer.transfer(body, self.faults)


def require_length(body: bytes, size: int) -> None:
    """Refuse another length with 0x13."""
    if len(body) != size:
        raise Refused(Nrc.INCORRECT_LENGTH)
