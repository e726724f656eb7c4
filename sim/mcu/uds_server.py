"""What every simulated ECU that is flashed by UDS has in common: access, routines, downloads, reset.

A kind of ECU is a subclass: it says what runs after a reset, what its identifiers read and what its
routines do. Where the profiles say nothing: `10 02` in a programming session begins it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.mcu.faults import FaultState
from sim.mcu.pending import Pending
from sim.mcu.profile import (
    MOST_FINGERPRINT_BYTES,
    Access,
    Did,
    EcuIdentity,
    Nrc,
    Refused,
    Routine,
    Session,
    Sid,
    Timing,
    require_length,
)
from sim.mcu.programming import RANGE_BYTES, SHA256_BYTES, Programmer
from sim.mcu.trouble_codes import BY_STATUS_MASK, TroubleCodes
from sim.mcu.uds_sessions import ANY, DIAGNOSTIC, SESSIONS, SUB_FUNCTIONS, NoAnswer, SessionServer

PROGRAMMING = frozenset({Session.PROGRAMMING})
EXTENDED = frozenset({Session.EXTENDED})

_SESSIONS: dict[int, frozenset[Session]] = {
    **SESSIONS,
    Sid.RESET: ANY,
    Sid.READ_DTCS: ANY,
    Sid.READ: ANY,
    Sid.ROUTINE: DIAGNOSTIC,
    Sid.READ_MEMORY: PROGRAMMING,
    Sid.WRITE: PROGRAMMING,
    Sid.DOWNLOAD: PROGRAMMING,
    Sid.TRANSFER: PROGRAMMING,
    Sid.EXIT: PROGRAMMING,
}
_SUB_FUNCTIONS: dict[int, frozenset[int]] = {
    **SUB_FUNCTIONS,
    Sid.RESET: frozenset({0x01}),
    Sid.READ_DTCS: frozenset({BY_STATUS_MASK}),
    # Whether a routine can be stopped is asked after its identifier is there.
    Sid.ROUTINE: frozenset(range(0x80)),
}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a protocol needs of the part that it runs in.

    `clock` gives seconds, `wait` passes them; `restart` passes the time of a reset, in which frames are lost.
    """

    faults: FaultState
    clock: Callable[[], float]
    wait: Callable[[float], None]
    restart: Callable[[], None]


class UdsServer(SessionServer, ABC):
    """See SessionServer."""

    def __init__(
        self,
        *,
        access: Access,
        access_sessions: frozenset[Session],
        programmer: Programmer,
        pending: Pending,
        identity: EcuIdentity,
        timing: Timing,
        around: Surroundings,
        trouble: TroubleCodes,
    ) -> None:
        super().__init__(
            sessions={**_SESSIONS, access.sid: access_sessions},
            sub_functions={**_SUB_FUNCTIONS, access.sid: access.sub_functions},
            pending=pending,
            timing=timing,
            faults=around.faults,
            clock=around.clock,
        )
        self._access = access
        self._programmer = programmer
        self._identity = identity
        self._trouble = trouble
        self._restart = around.restart
        self._booted_at = 0.0
        self._reset_due = False
        self._fingerprint = False
        self.power_on()

    def power_on(self) -> None:
        """Begin as after power-on or reset: boot what may be booted."""
        self._access.power_on()
        self.boot()
        self._booted_at = self._clock()
        self.enter(Session.DEFAULT)

    def enter(self, session: Session) -> None:
        """Begin a session: whatever the one before had opened is closed."""
        super().enter(session)
        self._access.lock()
        self._programmer.abandon()
        self._fingerprint = False

    def change_session(self, session: Session) -> None:
        """See SessionServer. The programming session is entered from the extended one."""
        if session is Session.PROGRAMMING:
            if self.session is Session.DEFAULT:
                raise Refused(Nrc.SUB_FUNCTION_NOT_IN_SESSION)
            self.enter_programming()
        self.enter(session)

    # --- what a kind of ECU says -----------------------------------------------------------------

    @property
    @abstractmethod
    def routines(self) -> Mapping[Routine, frozenset[Session]]:
        """The routines that it has, and where."""

    @property
    @abstractmethod
    def state_word(self) -> str:
        """What runs, for a log."""

    @property
    @abstractmethod
    def running_version(self) -> str | None:
        """The version of the application that runs; None while a bootloader does."""

    @abstractmethod
    def boot(self) -> None:
        """Start what may be started."""

    @abstractmethod
    def enter_programming(self) -> None:
        """Get ready for the programming session; raises Refused."""

    @abstractmethod
    def value(self, did: int) -> bytes | None:
        """What its own identifiers read now; None when there is no such value."""

    @abstractmethod
    def run_routine(self, routine: Routine, options: bytes) -> int:
        """The status of a routine that is not common to all; raises Refused."""

    def offers(self, sid: int) -> bool:
        """See SessionServer."""
        return super().offers(sid) and (sid != Sid.READ_DTCS or self.running_version is not None)

    # --- requests --------------------------------------------------------------------------------

    def serve(self, sid: Sid, body: bytes) -> bytes:
        """See SessionServer."""
        match sid:
            case Sid.RESET:
                return self._ecu_reset(body)
            case Sid.READ_DTCS:
                return self._trouble.answer(
                    body, version=self.running_version, runs_for_s=self._clock() - self._booted_at
                )
            case Sid.READ:
                return self._read(body)
            case Sid.ROUTINE:
                return self._routine(body)
            case Sid.SECURITY | Sid.AUTHENTICATION:
                return self._access.serve(body)
            case Sid.WRITE:
                return self._write(body)
            case Sid.READ_MEMORY:
                require_length(body, RANGE_BYTES)
                self._require_unlocked()
                return self._programmer.read(body)
            case Sid.DOWNLOAD:
                require_length(body, 1 + RANGE_BYTES)
                self._require_unlocked()
                return self._programmer.request_download(body)
            case Sid.TRANSFER:
                return self._transfer(body)
            case Sid.EXIT:
                require_length(body, 0)
                return self._programmer.exit()
            case _:
                return super().serve(sid, body)

    def after_answer(self) -> None:
        """See SessionServer."""
        self._programmer.after_answer()
        if self._reset_due:
            self.reset()

    def _ecu_reset(self, body: bytes) -> bytes:
        require_length(body, 1)
        self.require_standstill(Nrc.CONDITIONS_NOT_CORRECT, Nrc.CONDITIONS_NOT_CORRECT)
        self.reset_after_answer()
        return bytes([Sid.RESET + 0x40, 0x01])

    def reset_after_answer(self) -> None:
        """Let the answer out, then reset."""
        self._reset_due = True

    def reset(self) -> None:
        """Reset now."""
        self._reset_due = False
        self._restart()
        self.power_on()

    def _read(self, body: bytes) -> bytes:
        require_length(body, 2)
        match int.from_bytes(body, "big"):
            case Did.KIND:
                value: bytes | None = self._identity.kind.encode("ascii")
            case Did.HARDWARE:
                value = self._identity.hardware.encode("ascii")
            case Did.SERIAL:
                value = self._identity.serial.encode("ascii")
            case did:
                value = self.value(did)
        if value is None:
            raise Refused(Nrc.OUT_OF_RANGE)
        return bytes([Sid.READ + 0x40]) + body + value

    def require_standstill(self, moving: Nrc, engine_running: Nrc) -> None:
        """Refuse while the vehicle is in use."""
        if self._faults.order.moving:
            raise Refused(moving)
        if self._faults.order.engine_running:
            raise Refused(engine_running)

    # --- access and programming ------------------------------------------------------------------

    def _require_unlocked(self) -> None:
        if not self._access.unlocked:
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
        if number not in set(Routine) or self.session not in self.routines.get(Routine(number), ()):
            raise Refused(Nrc.OUT_OF_RANGE)
        result = self._run(Routine(number), options)
        return bytes([Sid.ROUTINE + 0x40]) + body[:3] + bytes([result])

    def _run(self, routine: Routine, options: bytes) -> int:
        if routine is not Routine.CHECK_PRECONDITIONS:
            self._require_unlocked()
        match routine:
            case Routine.CHECK_PRECONDITIONS:
                require_length(options, 0)
                self.require_standstill(Nrc.SPEED_TOO_HIGH, Nrc.ENGINE_RUNNING)
                return 0x00
            case Routine.ERASE:
                require_length(options, RANGE_BYTES)
                if not self._fingerprint:
                    raise Refused(Nrc.CONDITIONS_NOT_CORRECT)
                self._programmer.erase(options, extra_s=self._faults.take_pending_s())
                return 0x00
            case Routine.CHECK_MEMORY:
                require_length(options, RANGE_BYTES + SHA256_BYTES)
                return self._programmer.check_memory(options)
            case _:
                return self.run_routine(routine, options)

    def _transfer(self, body: bytes) -> bytes:
        if len(body) < 2:
            raise Refused(Nrc.INCORRECT_LENGTH)
        if self._faults.reset.due():
            self.reset()
            raise NoAnswer
        return self._programmer.transfer(body, self._faults)
