"""Makes a truck known to its office: one token, once, and the truck's own secrets.

The secrets are made here and are on the disk, 0600, before the office hears of them. So an answer that
is lost strands nobody: the same token with the same secrets is answered again, and until a new
enrolment has succeeded the old one stays in force.

`DATA/credentials.json` holds `enrolled` (what is in force) and `pending` (what was asked for last).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from edge_agent.addresses import check_safe, tls_context
from edge_agent.config import AgentConfig
from shared.errors import ConfigError, OtaError
from shared.ids import BadId, check_id
from shared.logs import get_log

log = get_log("edge_agent.enrol")

ANSWER_WITHIN_S = 30.0
MOST_ANSWER_BYTES = 16 * 1024
MOST_TOKEN_CHARS = 500


class EnrolmentFailed(OtaError):
    """The office did not take this truck; what was in force before still is."""

    code = "enrolment_failed"
    advice = "Ask the office for a fresh enrolment token of this truck and enrol again."


class OfficeUnreachable(OtaError):
    """The office did not answer, or not as an office does."""

    code = "office_unreachable"
    retryable = True
    advice = "Check office.url and the link, then run it again with the same token: that is safe."


class NotEnrolled(OtaError):
    """The truck has no credentials yet."""

    code = "not_enrolled"
    advice = "Run `quarry agent enroll --config FILE --token TOKEN` with a token of the office."


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Who this truck is to its office."""

    device_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", max_length=64)]
    mqtt_host: Annotated[str, Meta(min_length=1, max_length=253)]
    mqtt_port: Annotated[int, Meta(ge=1, le=65535)]
    http_token: Annotated[str, Meta(min_length=32, max_length=200)]
    mqtt_password: Annotated[str, Meta(min_length=32, max_length=200)]

    def __repr__(self) -> str:
        return f"Enrolled(device_id={self.device_id!r}, mqtt={self.mqtt_host}:{self.mqtt_port})"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What the office was asked: the secrets, and the SHA-256 of the token that they went with."""

    token_sha256: str
    http_token: str
    mqtt_password: str

    def __repr__(self) -> str:
        return "Pending(...)"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    enrolled: Enrolled | None = None
    pending: Pending | None = None


def credentials_path(data_dir: Path) -> Path:
    """Where a truck keeps its credentials."""
    return data_dir / "credentials.json"


def read_credentials(data_dir: Path) -> Credentials:
    """What is on the disk; empty when there is nothing. Blocks.

    Raises ConfigError when the file is not ours to trust: unreadable, or readable by others.
    """
    path = credentials_path(data_dir)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others", advice=f"Run chmod 600 {path}, or enrol afresh."
                )
            return msgspec.json.decode(file.read(MOST_ANSWER_BYTES), type=Credentials)
    except FileNotFoundError:
        return Credentials()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read: {error}", advice="Remove the file and enrol this truck afresh."
        ) from error


def write_credentials(data_dir: Path, credentials: Credentials) -> None:
    """Replace the file in one step, safe on the disk when this returns. Blocks."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = credentials_path(data_dir)
    part = path.with_suffix(".json.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(credentials), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def who_we_are(config: AgentConfig) -> Enrolled:
    """The enrolment in force. Blocks.

    Raises NotEnrolled, or ConfigError when the configuration says that this is another truck.
    """
    enrolled = read_credentials(config.data_dir).enrolled
    if enrolled is None:
        raise NotEnrolled(f"this truck is not enrolled: {credentials_path(config.data_dir)} says nothing")
    if config.device_id not in (None, enrolled.device_id):
        raise ConfigError(
            f"{config.source}: device_id is {config.device_id}, the office enrolled {enrolled.device_id}"
        )
    return enrolled


async def enrol(config: AgentConfig, token: str) -> Enrolled:
    """Ask the office to take this truck, by a one-time token; safe to repeat.

    Raises EnrolmentFailed (the token is wrong, used or expired), OfficeUnreachable, and ConfigError.
    """
    token = token.strip()
    if not token or len(token) > MOST_TOKEN_CHARS or not token.isascii() or not token.isprintable():
        raise EnrolmentFailed(
            "this is no enrolment token", code="bad_token", advice="Give the token as the office printed it."
        )
    before = await asyncio.to_thread(read_credentials, config.data_dir)
    pending = _pending(before, token)
    await asyncio.to_thread(
        write_credentials, config.data_dir, Credentials(enrolled=before.enrolled, pending=pending)
    )
    answer = await _ask(config, token, pending)
    try:
        enrolled = msgspec.convert(
            {**answer, "http_token": pending.http_token, "mqtt_password": pending.mqtt_password}, Enrolled
        )
        check_id(enrolled.device_id, "device_id")
    except (msgspec.ValidationError, BadId) as error:
        raise OfficeUnreachable(f"{config.office.url} did not answer as an office does: {error}") from error
    if config.device_id not in (None, enrolled.device_id):
        raise EnrolmentFailed(
            f"the token is of truck {enrolled.device_id}, this one is configured as {config.device_id}",
            code="wrong_truck",
            advice="Ask for a token of this truck, or correct device_id in the configuration.",
        )
    await asyncio.to_thread(
        write_credentials, config.data_dir, Credentials(enrolled=enrolled, pending=pending)
    )
    log.info("agent.enrolled", device_id=enrolled.device_id)
    return enrolled


def _pending(before: Credentials, token: str) -> Pending:
    """The secrets that go with this token: the same ones again when it was tried before."""
    token_sha256 = hashlib.sha256(token.encode()).hexdigest()
    if before.pending is not None and before.pending.token_sha256 == token_sha256:
        return before.pending
    return Pending(
        token_sha256=token_sha256,
        http_token=secrets.token_urlsafe(32),
        mqtt_password=secrets.token_urlsafe(32),
    )


async def _ask(config: AgentConfig, token: str, pending: Pending) -> dict[str, Any]:
    office = config.office
    check_safe(office.url, allow_plain=office.allow_plain, what="office.url")
    url = f"{office.url.rstrip('/')}/api/v1/enrolments"
    tls = await asyncio.to_thread(tls_context, office.ca_file)
    try:
        async with (
            asyncio.timeout(ANSWER_WITHIN_S),
            httpx.AsyncClient(verify=tls, timeout=ANSWER_WITHIN_S, trust_env=False) as client,
            client.stream(
                "POST",
                url,
                json={
                    "enrolment_token": token,
                    "http_token": pending.http_token,
                    "mqtt_password": pending.mqtt_password,
                },
            ) as answer,
        ):
            body = b""
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MOST_ANSWER_BYTES:
                    raise OfficeUnreachable(f"{office.url} answers without an end: that is no office")
    except (httpx.HTTPError, TimeoutError) as error:
        raise OfficeUnreachable(f"{office.url} does not answer: {error or type(error).__name__}") from error
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OfficeUnreachable(
            f"{office.url} answered {answer.status_code} and not as an office does"
        ) from error
    if answer.status_code == 200:
        return said
    detail = str(said.get("detail") or said.get("title") or "no reason given")[:500]
    if answer.status_code >= 500 or answer.status_code in (408, 425, 429):
        raise OfficeUnreachable(f"the office can't enrol now ({answer.status_code}): {detail}")
    code = str(said.get("code") or "enrolment_failed")[:64]
    raise EnrolmentFailed(f"the office refuses to enrol this truck: {detail}", code=code)
