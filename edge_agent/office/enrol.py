"""Makes a truck known to its office: one token, once, and the truck's own secrets and keys.

The secrets and the key of its certificate are made here and are on the disk, 0600, before the office hears of
them. So an answer that is lost strands nobody: the same token with the same secrets and the same key is
answered again, and until a new enrolment has succeeded the old one stays in force. The office is told the
public half of the gateway's manifest key too, so that nobody has to carry it there.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import partial
from typing import Any

import msgspec

from edge_agent.addresses import tls_context
from edge_agent.config import AgentConfig
from edge_agent.credentials import (
    Credentials,
    Enrolled,
    NotEnrolled,
    Pending,
    change_credentials,
    credentials_path,
    read_credentials,
    who_we_are,
    write_credentials,
)
from edge_agent.office.certificates import (
    BadCertificate,
    check_ours,
    make_csr,
    new_client_key,
    read_certificate,
)
from edge_agent.office.office_call import OfficeRefuses, OfficeUnreachable, post
from edge_agent.threads import finish_in_thread
from edge_agent.trust.manifest_key import public_key_pem
from shared.errors import OtaError
from shared.ids import BadId, check_id
from shared.logs import get_log

__all__ = (
    "Credentials",
    "Enrolled",
    "EnrolmentFailed",
    "NotEnrolled",
    "OfficeUnreachable",
    "Pending",
    "credentials_path",
    "enrol",
    "read_credentials",
    "taken_over",
    "who_we_are",
    "write_credentials",
)

log = get_log("edge_agent.enrol")

MOST_TOKEN_CHARS = 500


class EnrolmentFailed(OtaError):
    """The office did not take this truck; what was in force before still is."""

    code = "enrolment_failed"
    advice = "Ask the office for a fresh enrolment token of this truck and enrol again."


async def enrol(config: AgentConfig, token: str) -> Enrolled:
    """Ask the office to take this truck, by a one-time token; safe to repeat.

    Raises EnrolmentFailed (the token is wrong, used or expired), OfficeUnreachable, and ConfigError.
    """
    token = token.strip()
    if not token or len(token) > MOST_TOKEN_CHARS or not token.isascii() or not token.isprintable():
        raise EnrolmentFailed(
            "this is no enrolment token", code="bad_token", advice="Give the token as the office printed it."
        )
    manifest_key = await finish_in_thread(public_key_pem, config.data_dir)
    kept = await finish_in_thread(change_credentials, config.data_dir, partial(_asking, token))
    pending = kept.pending
    assert pending is not None
    answer = await _ask(config, token, pending, manifest_key)
    enrolled = _enrolled(config, answer, pending)

    def took(before: Credentials) -> Credentials:
        if before.pending != pending:
            raise EnrolmentFailed(
                "another enrolment of this truck began meanwhile",
                code="enrolled_twice",
                advice="Run it again with the newest token, once.",
            )
        return Credentials(enrolled=enrolled, pending=pending)

    await finish_in_thread(change_credentials, config.data_dir, took)
    log.info("agent.enrolled", device_id=enrolled.device_id, certificate=bool(enrolled.certificate))
    return enrolled


def _asking(token: str, before: Credentials) -> Credentials:
    """With the secrets that go with this token: the same ones again when it was tried before."""
    token_sha256 = hashlib.sha256(token.encode()).hexdigest()
    if before.pending is not None and before.pending.token_sha256 == token_sha256:
        return before
    pending = Pending(
        token_sha256=token_sha256,
        http_token=secrets.token_urlsafe(32),
        mqtt_password=secrets.token_urlsafe(32),
        client_key=new_client_key(),
    )
    return msgspec.structs.replace(before, pending=pending)


async def _ask(config: AgentConfig, token: str, pending: Pending, manifest_key: str) -> dict[str, Any]:
    body = {
        "enrolment_token": token,
        "http_token": pending.http_token,
        "mqtt_password": pending.mqtt_password,
        "manifest_key": manifest_key,
        # Without a key it was asked before this agent knew of certificates: a repeat must ask the same.
        **({"csr": make_csr(pending.client_key)} if pending.client_key else {}),
    }
    tls = partial(tls_context, config.office.ca_file)
    try:
        return await post(config.office, "/api/v1/enrolments", body, tls=tls)
    except OfficeRefuses as error:
        raise EnrolmentFailed(
            f"the office refuses to enrol this truck: {error.message}", code=error.code
        ) from error


def _enrolled(config: AgentConfig, answer: dict[str, Any], pending: Pending) -> Enrolled:
    secrets_of_ours = {"http_token": pending.http_token, "mqtt_password": pending.mqtt_password}
    enrolled = taken_over(config, {**answer, **secrets_of_ours}, pending.client_key)
    if config.device_id not in (None, enrolled.device_id):
        raise EnrolmentFailed(
            f"the token is of truck {enrolled.device_id}, this one is configured as {config.device_id}",
            code="wrong_truck",
            advice="Ask for a token of this truck, or correct device_id in the configuration.",
        )
    return enrolled


def taken_over(config: AgentConfig, answer: dict[str, Any], client_key: str) -> Enrolled:
    """An office's answer, with our secrets in it, as credentials; its certificate is for our key.

    Raises OfficeUnreachable for what no office says.
    """
    said = {**answer, "client_key": client_key if answer.get("certificate") else ""}
    said["certificate"] = answer.get("certificate") or ""
    try:
        enrolled = msgspec.convert(said, Enrolled)
        check_id(enrolled.device_id, "device_id")
        if enrolled.certificate:
            check_ours(enrolled.certificate, client_key, enrolled.device_id)
            read_certificate(enrolled.certificate)
        return enrolled
    except (msgspec.ValidationError, BadId, BadCertificate) as error:
        raise OfficeUnreachable(f"{config.office.url} did not answer as an office does: {error}") from error
