"""What an ECU's refusal means: each negative response code of ISO 14229-1 (annex A) as a named error."""

from __future__ import annotations

from udsoncan.ResponseCode import ResponseCode

from firmware_flashers.base import AccessDenied, FlashError, NotNow

SECURITY_ACCESS = 0x27
AUTHENTICATION = 0x29

BUSY_REPEAT_REQUEST = 0x21
CONDITIONS_NOT_CORRECT = 0x22
REQUEST_SEQUENCE_ERROR = 0x24
REQUEST_OUT_OF_RANGE = 0x31
SECURITY_ACCESS_DENIED = 0x33
AUTHENTICATION_REQUIRED = 0x34
TIME_DELAY_NOT_EXPIRED = 0x37
TRANSFER_DATA_SUSPENDED = 0x71
WRONG_BLOCK_SEQUENCE_COUNTER = 0x73
RESPONSE_PENDING = 0x78
SUBFUNCTION_NOT_IN_SESSION = 0x7E
SERVICE_NOT_IN_SESSION = 0x7F

NOT_NOW = frozenset({CONDITIONS_NOT_CORRECT, 0x94, *range(0x81, 0x94)})
KEY_REFUSED = frozenset({0x35, 0x36})
NEEDS_ACCESS = frozenset({SECURITY_ACCESS_DENIED, AUTHENTICATION_REQUIRED})
TRANSFER_LOST = frozenset({REQUEST_SEQUENCE_ERROR, TRANSFER_DATA_SUSPENDED, WRONG_BLOCK_SEQUENCE_COUNTER})
"""The ECU has lost its place in a download: it goes on only from RequestDownload."""
WRONG_SESSION = frozenset({SUBFUNCTION_NOT_IN_SESSION, SERVICE_NOT_IN_SESSION})

SECURITY_DELAY = "security_delay"
"""The code of "not yet": the ECU lets nobody try for some time after a reset or after wrong keys."""
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
    TRANSFER_DATA_SUSPENDED: ("transfer_data_suspended", True),
    0x72: ("general_programming_failure", True),
    WRONG_BLOCK_SEQUENCE_COUNTER: ("wrong_block_sequence_counter", True),
    SUBFUNCTION_NOT_IN_SESSION: (SESSION_LOST, True),
    SERVICE_NOT_IN_SESSION: (SESSION_LOST, True),
}


# nrc: code. Annex A.1 of ISO 14229-1:2020, the answers to Authentication (0x29).
_CERTIFICATE_REFUSED: dict[int, str] = {
    0x50: "certificate_time_period",
    0x51: "certificate_signature",
    0x52: "certificate_chain",
    0x53: "certificate_type",
    0x54: "certificate_format",
    0x55: "certificate_content",
    0x56: "certificate_scope",
    0x57: "certificate_revoked",
    0x58: "ownership_not_verified",
    0x59: "challenge_failed",
    0x5A: "access_rights_not_set",
    0x5B: "session_key_failed",
    0x5C: "configuration_data_failed",
    0x5D: "deauthentication_failed",
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


def refusal(service: int, nrc: int, what: str, *, unlocked: bool, who: str = "the ECU") -> FlashError:
    """The error for a negative response to `service`; `what` names the request, `who` the one
    that refuses, for people.

    `unlocked`: security access was granted before in this session, so that a later 0x33 tells of a
    lost session (time-out, reset) and not of a wrong key.
    """
    name = ResponseCode.get_name(nrc) or "unknown code"
    text = f"{who} refuses {what}: {name} (NRC 0x{nrc:02X})"
    if nrc in NOT_NOW:
        return NotNow(text)
    if nrc in _CERTIFICATE_REFUSED:
        return AccessDenied(
            text,
            code=_CERTIFICATE_REFUSED[nrc],
            advice="Give a certificate (and its key) that this ECU's authority issued for flashing.",
        )
    if nrc == TIME_DELAY_NOT_EXPIRED:
        return AccessDenied(text, code=SECURITY_DELAY)
    asks_access = service in {SECURITY_ACCESS, AUTHENTICATION}
    if nrc in KEY_REFUSED or (nrc in NEEDS_ACCESS and (asks_access or not unlocked)):
        return AccessDenied(text)
    if nrc in NEEDS_ACCESS:
        return Refused(text, nrc=nrc, code=SESSION_LOST, retryable=True)
    code, retryable = _REFUSED.get(nrc, (Refused.code, Refused.retryable))
    return Refused(text, nrc=nrc, code=code, retryable=retryable)
