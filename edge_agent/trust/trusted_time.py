"""What time it is by what was signed: the floor, a token of this boot, and TLS that is judged by them.

The clocks are read here; what a reading allows is shared.trust.uptane.time_policy. A token's time goes on
by the boot-time clock, which nobody sets. Where TLS fails on dates alone, the token comes over plain HTTP,
bound to a nonce of ours; then certificates are judged by the proved time in place of the clock's.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from edge_agent.addresses import tls_context
from edge_agent.clock import Clock, boot_s
from edge_agent.trust.trust_store import TrustKeeper
from shared.logs import get_log
from shared.since_310 import UTC, timeout
from shared.trust.uptane.errors import BadTimeToken
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.time_token import MOST_TOKEN_BYTES, WHERE, check_time_token

log = get_log("edge_agent.trusted_time")

TOKEN_WITHIN_S = 15.0
NONCE_BYTES = 24
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (OpenSSL 1.1.0): chain and name are checked, dates are not."""

NOT_YET_VALID, HAS_EXPIRED = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED: OpenSSL looks at dates last of all."""


def _wall() -> datetime:
    return datetime.now(UTC)


class TrustedTime:
    """The truck's clocks, its floor, and what a token proved since this process began."""

    def __init__(
        self,
        keeper: TrustKeeper,
        policy: TimePolicy,
        *,
        wall: Callable[[], datetime] = _wall,
        boot_s: Callable[[], float] = boot_s,
    ) -> None:
        self.policy = policy
        self._keeper = keeper
        self._wall = wall
        self._boot_s = boot_s
        self._proof: tuple[datetime, float] | None = None

    @property
    def proved(self) -> datetime | None:
        """The time by the newest token, None without one."""
        if self._proof is None:
            return None
        at, boot_at = self._proof
        return at + timedelta(seconds=max(0.0, self._boot_s() - boot_at))

    def prove(self, at: datetime) -> None:
        """A token has just proved this time."""
        self._proof = (at, self._boot_s())

    def reading(self) -> Reading:
        """What the clocks say."""
        return Reading(wall=self._wall(), proved=self.proved)

    def now(self) -> datetime:
        """The time, never below the floor."""
        return max(self.proved or self._wall(), self._keeper.floor(self.policy.built_at))

    def clock(self) -> Clock:
        """For everybody else on the gateway: the same time."""
        return Clock(floor=self.policy.built_at, wall=self.now, boot_s=self._boot_s)


class TimeAsker:
    """Asks the office what time it is, in the clear."""

    def __init__(self, url: str, keeper: TrustKeeper, time: TrustedTime) -> None:
        self._url = url
        self._keeper = keeper
        self._time = time

    async def ask(self) -> bool:
        """Whether a token has proved the time; the floor is risen to it then, on the disk.

        The question is `GET time_url?nonce=HEX`. Raises BadTimeToken and BelowThreshold for an answer that
        proves nothing, StoreUnreadable and StoreFailed; no answer at all is False.
        """
        nonce = secrets.token_hex(NONCE_BYTES)
        try:
            raw = await self._answer(nonce)
        except (httpx.HTTPError, TimeoutError) as error:
            log.warning("time.not_answered", why=str(error) or type(error).__name__)
            return False
        if raw is None:
            return False
        at, store = check_time_token(raw, nonce, self._keeper.store)
        await self._keeper.keep(store)
        self._time.prove(at)
        log.info("time.proved", at=at.isoformat())
        return True

    async def _answer(self, nonce: str) -> bytes | None:
        raw = b""
        async with (
            timeout(TOKEN_WITHIN_S),
            httpx.AsyncClient(timeout=TOKEN_WITHIN_S, trust_env=False, follow_redirects=False) as client,
            client.stream("GET", self._url, params={"nonce": nonce}) as answer,
        ):
            if answer.status_code != 200:
                log.warning("time.not_answered", why=f"status {answer.status_code}")
                return None
            async for chunk in answer.aiter_raw():
                raw += chunk
                if len(raw) > MOST_TOKEN_BYTES:
                    raise BadTimeToken(WHERE, f"over {MOST_TOKEN_BYTES} bytes: no token has so many")
        return raw


def fails_on_dates(error: BaseException | None) -> bool:
    """Whether a connection failed because of a certificate's dates, and of nothing else."""
    seen = 0
    while error is not None and seen < 16:
        if isinstance(error, ssl.SSLCertVerificationError):
            return getattr(error, "verify_code", 0) in (NOT_YET_VALID, HAS_EXPIRED)
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def tls_by(ca_file: Path | None, time: TrustedTime, ca_pem: str = "") -> ssl.SSLContext:
    """What servers are believed by, their dates judged by the proved time. Blocks. Raises ConfigError.

    Without a proof the clock judges, as ever. Of a chain only the server's own certificate's dates are
    looked at under a proof: the rest of it is signed, and what comes over it has signatures of its own.
    """
    context = tls_context(ca_file, ca_pem)
    if time.proved is None:
        return context
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.sslobject_class, context.sslsocket_class = _dated(time)
    return context


def _dated(time: TrustedTime) -> tuple[type[ssl.SSLObject], type[ssl.SSLSocket]]:
    def check(peer: dict[str, Any]) -> None:
        now = time.now()
        begins, ends = peer.get("notBefore"), peer.get("notAfter")
        if not isinstance(begins, str) or not isinstance(ends, str):
            raise ssl.SSLCertVerificationError("the certificate says no dates")
        if not ssl.cert_time_to_seconds(begins) <= now.timestamp() <= ssl.cert_time_to_seconds(ends):
            refused = ssl.SSLCertVerificationError(
                f"the certificate is good from {begins} to {ends}, it is {now.isoformat()}"
            )
            refused.verify_code = HAS_EXPIRED
            raise refused

    class Dated(ssl.SSLObject):
        """Ends the handshake of a certificate whose dates do not hold the proved time."""

        def do_handshake(self) -> None:
            super().do_handshake()
            check(self.getpeercert() or {})

    class DatedSocket(ssl.SSLSocket):
        """The same for who speaks by sockets: the MQTT link."""

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check(self.getpeercert() or {})

    return Dated, DatedSocket
