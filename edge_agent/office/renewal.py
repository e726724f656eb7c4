"""Renews the truck's certificate before it ends, and after, where the truck was away.

- The next certificate has a new key, which is on the disk before the office hears of it: an answer that is
  lost is asked for again with the same key, and the office gives the same certificate. The pair comes into
  force in one write of one file (credentials.py); then the link is made anew with it.
- What asks is the bearer token and the last certificate's key together. An ended certificate is renewed the
  same way for as long as the office's grace lasts; a revoked one never, and a person must enrol the truck.
- **The clock may be wrong.** One that is behind says nothing; so a link that stays down though the office
  answers is reason enough to ask, once in a day at the most.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from edge_agent.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.credentials import Credentials, Enrolled, Renewing, change_credentials, read_credentials
from edge_agent.office.certificates import (
    BadCertificate,
    Certificate,
    Standing,
    make_csr,
    make_csr_and_proof,
    new_client_key,
    read_certificate,
)
from edge_agent.office.enrol import taken_over
from edge_agent.office.office_call import OfficeRefuses, post
from edge_agent.threads import finish_in_thread
from edge_agent.trust.manifest_key import public_key_pem
from shared.backoff import Backoff
from shared.errors import OtaError
from shared.logs import get_log

log = get_log("edge_agent.renewal")

RETRY = Backoff(first_s=60.0, most_s=6 * 3600.0, jitter=0.5)
LOOK_EVERY_S = 600.0
"""How often it is looked whether one is due; the disk is read, no network."""
LINK_DOWN_S = 3600.0
AGAIN_AFTER_S = 24 * 3600.0
"""After one that was given: by the boot clock, for a date that is wrong would make it due at once again."""
TOLD_EVERY_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What decides whether to ask. `standing` is None without a certificate; `link_down_s`: how long there
    has been no broker; `given_s`: since the last one was given to this process, None when none was.
    """

    standing: Standing | None
    life_s: float
    link_down_s: float
    given_s: float | None = None


def why_ask(now: Situation) -> str | None:
    """PURE: why a certificate is asked for now, in words; None: it is not."""
    if now.given_s is not None and now.given_s < min(AGAIN_AFTER_S, now.life_s / 4):
        return None
    match now.standing:
        case None:
            return "this truck has none"
        case Standing.DUE | Standing.ENDS_SOON:
            return "the present one ends"
        case Standing.ENDED:
            return "the present one has ended"
        case Standing.GOOD | Standing.NOT_YET:
            return "the broker has long been out of reach" if now.link_down_s >= LINK_DOWN_S else None


class CertificateRenewal:
    """The task. `error` is what `agent status` shows; `linked` says whether the broker is there.

    `kill_point` is called around each write, for chaos tests.
    """

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        *,
        linked: Callable[[], bool],
        reconnect: Callable[[], None],
        tls: Callable[[], ssl.SSLContext],
        retry: Backoff = RETRY,
        kill_point: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.error = ""
        self._config = config
        self._clock = clock
        self._linked = linked
        self._reconnect = reconnect
        self._tls = tls
        self._retry = retry
        self._kill_point = kill_point
        self._linked_at = clock.boot_s()
        self._given_at: float | None = None
        self._told_at: float | None = None
        self._tries = 0

    async def run(self) -> None:
        """Look for ever."""
        while True:
            rest_s = await self.step()
            until = self._clock.boot_s() + rest_s
            while (left := until - self._clock.boot_s()) > 0:
                # In pieces, so that a link that came and went between two looks is seen.
                await asyncio.sleep(min(left, 30.0))
                self._see_link()

    async def step(self) -> float:
        """One look, and what follows from it; returns how many seconds to rest. Raises nothing of ours."""
        self._see_link()
        try:
            us = (await finish_in_thread(read_credentials, self._config.data_dir)).enrolled
            if us is None:
                return LOOK_EVERY_S
            present = read_certificate(us.certificate) if us.certificate else None
            self._tell(present)
            why = why_ask(self._situation(present))
            if why is None:
                return LOOK_EVERY_S
            log.info("certificate.renewing", why=why)
            renewed = await self._renew(us)
        except (OtaError, OSError) as error:
            return self._failed(error)
        self._tries, self.error, self._given_at = 0, "", self._clock.boot_s()
        log.info(
            "certificate.renewed",
            serial=renewed.serial,
            not_after=renewed.not_after.isoformat(timespec="seconds"),
        )
        self._reconnect()
        return LOOK_EVERY_S

    def _see_link(self) -> None:
        if self._linked():
            self._linked_at = self._clock.boot_s()

    def _situation(self, present: Certificate | None) -> Situation:
        now = self._clock.boot_s()
        return Situation(
            standing=None if present is None else present.standing(self._clock.now()),
            link_down_s=now - self._linked_at,
            life_s=0.0 if present is None else (present.not_after - present.not_before).total_seconds(),
            given_s=None if self._given_at is None else now - self._given_at,
        )

    def _failed(self, error: OtaError | OSError) -> float:
        self.error = error.message if isinstance(error, OtaError) else str(error)
        log.warning(
            "certificate.not_renewed",
            error=self.error,
            code=error.code if isinstance(error, OtaError) else "os_error",
            advice=error.advice if isinstance(error, OtaError) else "Look at the disk of this gateway.",
        )
        if isinstance(error, OfficeRefuses):
            # Asking again changes nothing before a person does; but a mistake of the office may be mended.
            return self._retry.most_s
        rest_s = self._retry.delay_s(self._tries)
        self._tries += 1
        return rest_s

    def _tell(self, present: Certificate | None) -> None:
        if present is None:
            return
        now = self._clock.boot_s()
        standing = present.standing(self._clock.now())
        if standing not in (Standing.ENDS_SOON, Standing.ENDED):
            return
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_S:
            self._told_at = now
            log.warning(
                f"certificate.{standing.value}",
                not_after=present.not_after.isoformat(timespec="seconds"),
                advice="It is renewed over HTTP: look why the office can't be reached.",
            )

    async def _renew(self, us: Enrolled) -> Certificate:
        """The next certificate, in force. Raises OtaError and OSError."""
        kept = await finish_in_thread(change_credentials, self._config.data_dir, _with_next_key)
        assert kept.renewing is not None
        self._kill_point("renewal.key_kept")
        key = kept.renewing.client_key
        manifest_key = await finish_in_thread(public_key_pem, self._config.data_dir)
        body = {"manifest_key": manifest_key, **_request(us, key)}
        path = f"/api/v1/devices/{us.device_id}/certificate"
        try:
            answer = await post(self._config.office, path, body, token=us.http_token, tls=self._tls)
        except OfficeRefuses as error:
            if error.status != 401:
                raise
            raise OfficeRefuses(
                f"the office does not know {us.device_id} any more: it was revoked, or enrolled elsewhere",
                status=error.status,
                code="not_known_any_more",
                advice="Ask the office for an enrolment token of this truck, and enrol it again.",
            ) from error
        self._kill_point("renewal.answered")
        secrets_of_ours = {"http_token": us.http_token, "mqtt_password": us.mqtt_password}
        renewed = taken_over(self._config, {**answer, **secrets_of_ours}, key)
        if renewed.device_id != us.device_id or not renewed.certificate:
            raise BadCertificate("the office answered with no certificate of this truck")
        await finish_in_thread(change_credentials, self._config.data_dir, partial(_in_force, us, renewed))
        self._kill_point("renewal.in_force")
        return read_certificate(renewed.certificate)


def _with_next_key(before: Credentials) -> Credentials:
    if before.renewing is not None:
        return before
    return msgspec.structs.replace(before, renewing=Renewing(client_key=new_client_key()))


def _request(us: Enrolled, key: str) -> dict[str, Any]:
    if not us.certificate:
        return {"csr": make_csr(key)}
    csr, proof = make_csr_and_proof(key, us.client_key, us.device_id)
    serial = read_certificate(us.certificate).serial
    return {"csr": csr, "serial": serial, "proof": base64.b64encode(proof).decode()}


def _in_force(asked_by: Enrolled, renewed: Enrolled, before: Credentials) -> Credentials:
    if before.enrolled != asked_by:
        # The truck was enrolled anew meanwhile: what was answered belongs to the old enrolment.
        return msgspec.structs.replace(before, renewing=None)
    return msgspec.structs.replace(before, enrolled=renewed, renewing=None)
