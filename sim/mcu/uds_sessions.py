"""What every node with diagnostics has: requests and their refusals, sessions, S3, silence.

Strict, by ISO 14229-1:2020: a wrong request is answered with the code of what is wrong first (clause
8.7). Where the profiles say nothing: functional requests other than 10 (not 02), 22, 28, 3E and 85 are
ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.mcu.faults import FaultState
from sim.mcu.pending import Pending, Reply
from sim.mcu.profile import (
    P2_TIMES,
    SUPPRESS_POSITIVE,
    SUPPRESSED_WHEN_FUNCTIONAL,
    Nrc,
    Refused,
    Session,
    Sid,
    Timing,
    require_length,
)

ANY = frozenset(Session)
DIAGNOSTIC = frozenset({Session.EXTENDED, Session.PROGRAMMING})

SESSIONS: Mapping[int, frozenset[Session]] = {
    Sid.SESSION: ANY,
    Sid.TESTER_PRESENT: ANY,
    Sid.COMMUNICATION: DIAGNOSTIC,
    Sid.DTC_SETTING: DIAGNOSTIC,
}
SUB_FUNCTIONS: Mapping[int, frozenset[int]] = {
    Sid.SESSION: frozenset(Session),
    Sid.TESTER_PRESENT: frozenset({0x00}),
    Sid.COMMUNICATION: frozenset({0x00, 0x01}),  # enableRxAndTx, enableRxAndDisableTx (table 54)
    Sid.DTC_SETTING: frozenset({0x01, 0x02}),  # on, off (table 128)
}
_FUNCTIONAL = {Sid.SESSION, Sid.READ, Sid.TESTER_PRESENT, Sid.COMMUNICATION, Sid.DTC_SETTING}
NORMAL_MESSAGES = 0x01
"""communicationType: normal communication messages of this network (annex B.1)."""


class NoAnswer(Exception):
    """The request is not answered at all."""


class SessionServer:
    """Requests in, responses out, without a bus.

    `sessions` says where each service is, `sub_functions` what services with sub-functions have. `session`,
    `quiet` (normal messages are off) and `dtcs_off` show the state.
    """

    def __init__(
        self,
        *,
        sessions: Mapping[int, frozenset[Session]],
        sub_functions: Mapping[int, frozenset[int]],
        pending: Pending,
        timing: Timing,
        faults: FaultState,
        clock: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._sub_functions = sub_functions
        self._pending = pending
        self._timing = timing
        self._faults = faults
        self._clock = clock
        self.session = Session.DEFAULT
        self.quiet = self.dtcs_off = False
        self._active_at = clock()

    def enter(self, session: Session) -> None:
        """Begin a session. Communication and DTCs come back with the default one (clauses 10.5, 11.8)."""
        self.session = session
        self._active_at = self._clock()
        if session is Session.DEFAULT:
            self.quiet = self.dtcs_off = False

    def tick(self) -> None:
        """To be called while no request is on its way: falls back to the default session when the tester
        has been silent for S3 (ISO 14229-2).
        """
        if self.session is not Session.DEFAULT and self._clock() - self._active_at >= self._timing.s3_s:
            self.enter(Session.DEFAULT)

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
            self._active_at = self._clock()
        self.after_answer()

    def after_answer(self) -> None:
        """What is done once the answer is out."""

    def offers(self, sid: int) -> bool:
        """Whether what runs now has this service."""
        return sid in self._sessions

    def serve(self, sid: Sid, body: bytes) -> bytes:  # noqa: ARG002
        """Answer a request of another service, with a sub-function that it has. Raises Refused."""
        raise Refused(Nrc.SERVICE_NOT_SUPPORTED)

    def _answer(self, sid: int, body: bytes, functional: bool) -> bytes | None:
        if functional and (sid not in _FUNCTIONAL or (sid, body[:1]) == (Sid.SESSION, b"\x02")):
            raise NoAnswer
        if not self.offers(sid):
            raise Refused(Nrc.SERVICE_NOT_SUPPORTED)
        if self._faults.stuck.due():
            self._pending.say_for_ever()
        if self._faults.take_busy():
            raise Refused(Nrc.BUSY)
        if self.session not in self._sessions[sid]:
            raise Refused(Nrc.SERVICE_NOT_IN_SESSION)
        suppress = False
        if sid in self._sub_functions:
            if not body:
                raise Refused(Nrc.INCORRECT_LENGTH)
            suppress = bool(body[0] & SUPPRESS_POSITIVE)
            body = bytes([body[0] & ~SUPPRESS_POSITIVE]) + body[1:]
            if body[0] not in self._sub_functions[sid]:
                raise Refused(Nrc.SUB_FUNCTION_NOT_SUPPORTED)
        if self._faults.refusal.due():
            raise Refused(self._faults.order.refuse_with & 0xFF)
        match sid:
            case Sid.TESTER_PRESENT:
                require_length(body, 1)
                answer = bytes([Sid.TESTER_PRESENT + 0x40, 0x00])
            case Sid.COMMUNICATION:
                answer = self._communication(body)
            case Sid.DTC_SETTING:
                require_length(body, 1)
                self.dtcs_off = body[0] == 0x02
                answer = bytes([Sid.DTC_SETTING + 0x40, body[0]])
            case Sid.SESSION:
                require_length(body, 1)
                self.change_session(Session(body[0]))
                answer = bytes([Sid.SESSION + 0x40, body[0]]) + P2_TIMES
            case _:
                answer = self.serve(Sid(sid), body)
        # What was announced by responsePending is answered in the end, suppressed or not (clause 8.7).
        return None if suppress and not self._pending.said else answer

    def change_session(self, session: Session) -> None:
        """Enter the session that the tester asks for. Raises Refused."""
        self.enter(session)

    def _communication(self, body: bytes) -> bytes:
        require_length(body, 2)
        if body[1] != NORMAL_MESSAGES:
            raise Refused(Nrc.OUT_OF_RANGE)
        self.quiet = body[0] == 0x01
        return bytes([Sid.COMMUNICATION + 0x40, body[0]])
