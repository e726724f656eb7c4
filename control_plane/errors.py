"""The office's errors. Each knows its HTTP status; the API turns it into `problem+json` (RFC 9457)."""

from __future__ import annotations

from shared.errors import OtaError


class OfficeError(OtaError):
    """A request can't be carried out. `fields` maps a place in the request to what is wrong there."""

    status: int = 500

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        advice: str | None = None,
        fields: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, advice=advice)
        self.fields = fields or {}


class Invalid(OfficeError):
    """The request is not as it must be."""

    status = 422
    code = "invalid"
    advice = "Correct the named field and send it again."


class Unauthenticated(OfficeError):
    """Nobody knows who asks."""

    status = 401
    code = "unauthenticated"
    advice = "Send a valid token as 'Authorization: Bearer TOKEN'."


class Forbidden(OfficeError):
    """Known, but may not."""

    status = 403
    code = "forbidden"
    advice = "Ask an administrator for the right to do this."


class NotFound(OfficeError):
    """There is no such thing."""

    status = 404
    code = "not_found"
    advice = "Check the id; list what is there first."


class Conflict(OfficeError):
    """The present state does not allow it."""

    status = 409
    code = "conflict"
    advice = "Look at the present state and decide again."


class StaleVersion(OfficeError):
    """`If-Match` names another version than the present one (RFC 9110, 13.1.1)."""

    status = 412
    code = "stale_version"
    advice = "Read it again, look at what changed, and send the new ETag."


class PreconditionRequired(OfficeError):
    """A change needs `If-Match` (RFC 6585, 3)."""

    status = 428
    code = "precondition_required"
    advice = "Send the ETag that you have read as 'If-Match'."


class TooLarge(OfficeError):
    """More bytes than are taken here."""

    status = 413
    code = "too_large"
    advice = "Send less at once."


class TooMany(OfficeError):
    """More requests than are taken from one place (RFC 6585, 4)."""

    status = 429
    code = "too_many"
    retryable = True
    advice = "Wait a minute, then try again."


class Unavailable(OfficeError):
    """A part of the office is away for the moment."""

    status = 503
    code = "unavailable"
    retryable = True
    advice = "Try again in a few seconds; if it goes on, look at /readyz and the logs."
