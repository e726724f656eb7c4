"""What an ECU's refusal means: each negative response code of ISO 14229-1 (annex A) as a named error."""

from __future__ import annotations

from udsoncan.ResponseCode import ResponseCode

from firmware_flashers.base import AccessDenied, FlashError, NotNow

SECURITY_ACCESS = 0x27

BUSY_REPEAT_REQUEST = 0x21
CONDITIONS_NOT_CORRECT = 0x22
REQUEST_SEQUENCE_ERROR = 0x24
REQUEST_OUT_OF_RANGE = 0x31
SECURITY_ACCESS_DENIED = 0x33
WRONG_BLOCK_SEQUENCE_COUNTER = 0x73
RESPONSE_PENDING = 0x78
SUBFUNCTION_NOT_IN_SESSION = 0x7E
SERVICE_NOT_IN_SESSION = 0x7F

NOT_NOW = frozenset({CONDITIONS_NOT_CORRECT, 0x94, *range(0x81, 0x94)})
KEY_REFUSED = frozenset({0x35, 0x36, 0x37})
TRANSFER_LOST = frozenset({REQUEST_SEQUENCE_ERROR, WRONG_BLOCK_SEQUENCE_COUNTER})
"""The ECU has lost its place in a download: it goes on only from RequestDownload."""
WRONG_SESSION = frozenset({SUBFUNCTION_NOT_IN_SESSION, SERVICE_NOT_IN_SESSION})

SESSION_LOST = "session_lost"
"""The code of errors that tell of a reset or a session time-out: begin again by opening the session."""

# nrc: (code, whether the step may succeed when it is begun again)
_REFUSED: dict[int, tuple[str, bool]] = {
    0x10: ("general_reject", True),
    0x11: ("service_not_supported", False),
    0x12: ("sub_function_not_supported", False),
    0x13: ("wrong_message_length", False),
    0x14: ("response_too_long", False),
    BUSY_REPEAT_REQUEST: ("ecu_busy", True),
    REQUEST_SEQUENCE_ERROR: ("request_sequence_error", True),
    REQUEST_OUT_OF_RANGE: ("request_out_of_range", False),
    0x70: ("upload_download_not_accepted", True),
    0x71: ("transfer_data_suspended", True),
    0x72: ("general_programming_failure", True),
    WRONG_BLOCK_SEQUENCE_COUNTER: ("wrong_block_sequence_counter", True),
    SUBFUNCTION_NOT_IN_SESSION: (SESSION_LOST, True),
    SERVICE_NOT_IN_SESSION: (SESSION_LOST, True),
}


class Refused(FlashError):
    """The ECU answered no for a reason of the protocol."""

    code = "refused"
    retryable = False
    advice = "Check that the profile fits this ECU; the message names its answer."

    def __init__(self, message: str, *, nrc: int, code: str, retryable: bool) -> None:
        advice = "Start the step again; if it repeats, look at the ECU's power." if retryable else None
        super().__init__(message, code=code, retryable=retryable, advice=advice)
        self.nrc = nrc


class BadAnswer(FlashError):
    """The ECU answered something that is no answer to the question."""

    code = "bad_answer"
    advice = "Check the identifiers and that no other tester speaks to this ECU; then try again."


def refusal(service: int, nrc: int, what: str, *, unlocked: bool) -> FlashError:
    """The error for a negative response to `service`; `what` names the request for people.

    `unlocked`: security access was granted before in this session, so that a later 0x33 tells of a
    lost session (time-out, reset) and not of a wrong key.
    """
    name = ResponseCode.get_name(nrc) or "unknown code"
    text = f"the ECU refuses {what}: {name} (NRC 0x{nrc:02X})"
    if nrc in NOT_NOW:
        return NotNow(text)
    if nrc in KEY_REFUSED or (nrc == SECURITY_ACCESS_DENIED and (service == SECURITY_ACCESS or not unlocked)):
        return AccessDenied(text)
    if nrc == SECURITY_ACCESS_DENIED:
        return Refused(text, nrc=nrc, code=SESSION_LOST, retryable=True)
    code, retryable = _REFUSED.get(nrc, (Refused.code, Refused.retryable))
    return Refused(text, nrc=nrc, code=code, retryable=retryable)
