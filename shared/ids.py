"""Identifiers: who makes them, and what may travel in a topic.

The first writer of a thing chooses its id, and every retry keeps it; receivers are idempotent by
it. Ids are random UUIDs in hex, so that they sort nowhere and collide nowhere.
"""

from __future__ import annotations

import re
import uuid

from shared.errors import OtaError

# Ids travel as one level of an MQTT topic and as one token of a NATS subject: no '/', '.', '+', '#'.
ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LOCAL_JOB = "local-"
"""How the id of a job begins that a person at the truck began; the centre gives no such id."""


class BadId(OtaError):
    """An id has characters or a length that topics can't carry."""

    code = "bad_id"
    advice = "Use 1 to 64 letters, digits, '_' or '-'."


def new_id() -> str:
    """A fresh random id of 32 hex digits."""
    return uuid.uuid4().hex


def is_local_job(job_id: str) -> bool:
    """Whether a person at the truck began it."""
    return job_id.startswith(LOCAL_JOB)


def check_id(value: str, what: str) -> str:
    """Return `value` when it can travel in a topic; `what` names it in the error.

    Raises BadId otherwise.
    """
    # fullmatch, since '$' would let a trailing newline pass.
    if not _ID.fullmatch(value):
        raise BadId(f"{what} {value[:80]!r} is not 1 to 64 letters, digits, '_' or '-'")
    return value
