"""The root of every error in the product.

Each error says three things apart from its sentence: a `code` that programs match on, whether the
same act may succeed when it is simply tried again (`retryable`), and what a person should do
(`advice`). A package's own tree hangs below `OtaError`; drivers' errors are wrapped at one
boundary with the cause kept (`raise ... from error`).
"""

from __future__ import annotations

from typing import Any


class OtaError(Exception):
    """Something went wrong in a way that has a name.

    Subclasses set `code`, `retryable` and `advice` for their kind; an instance may narrow them.
    """

    code: str = "internal"
    retryable: bool = False
    advice: str = "Report this with the logs: it should not have happened."

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        if advice is not None:
            self.advice = advice

    def as_fields(self) -> dict[str, Any]:
        """The error as it travels in a status message or a log line."""
        return {
            "code": self.code,
            "retryable": self.retryable,
            "advice": self.advice,
            "text": self.message,
        }


class BadMessage(OtaError):
    """Bytes from the wire are not a message of the kind that the topic carries."""

    code = "bad_message"
    advice = "Compare the message with the golden files in tests/unit/shared/golden."


class Unsupported(OtaError):
    """A command requires a feature that this program does not have."""

    code = "unsupported"
    advice = "Update the agent on this truck, or send a command that needs only its features."


class ConfigError(OtaError):
    """A configuration value is missing, unknown or wrong; the message names its key."""

    code = "bad_config"
    advice = "Correct the named key and start again."
