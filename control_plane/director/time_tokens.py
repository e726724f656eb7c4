"""Answers trucks that don't know what time it is: a token of the time role, for anyone who asks.

Nobody has to say who he is: a truck whose clock is wrong can't make a TLS connection to do so, and
must not show its token in the clear. What is given away is the time. The nonce binds an answer to its
question, so that an old one proves nothing (see shared.trust.uptane.time_token).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from securesystemslib.signer import Signer

from control_plane.errors import NotFound, TooMany, Unavailable
from control_plane.metrics import Metrics
from shared.errors import OtaError
from shared.trust.uptane.time_token import make_time_token

SIGN_WITHIN_S = 10.0
MOST_WAITING = 32
"""Questions in hand at once: anyone may ask, and a token's module may be slow."""


class TimeTokens:
    """Signs what time it is. Without `signers` nobody's question is answered."""

    def __init__(
        self,
        signers: Sequence[Signer],
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._signers = tuple(signers)
        self._metrics = metrics
        self._clock = clock
        self._waiting = 0
        # Its own thread: a key that never answers takes no other work of the office along.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="director-time")

    async def token(self, nonce: str) -> bytes:
        """The answer to a question with `nonce`, 32 to 128 hex digits.

        Raises NotFound (`no_time_role`), TooMany, or Unavailable when the key does not sign.
        """
        if not self._signers:
            raise NotFound(
                "this office answers no questions for the time",
                code="no_time_role",
                advice="Start it with director_time_key, a key of the role time in the director's root.",
            )
        if self._waiting >= MOST_WAITING:
            raise TooMany("too many ask for the time at once")
        self._waiting += 1
        try:
            async with asyncio.timeout(SIGN_WITHIN_S):
                made = await asyncio.get_running_loop().run_in_executor(self._thread, self._make, nonce)
        except TimeoutError as error:
            raise Unavailable(f"the time role's key did not sign in {SIGN_WITHIN_S:.0f} s") from error
        except OtaError as error:
            raise Unavailable(f"the time role's key can't be used: {error.message}") from error
        finally:
            self._waiting -= 1
        self._metrics.director_time_tokens_total.inc()
        return made

    def _make(self, nonce: str) -> bytes:
        # Read when it is signed: the time before a wait for the thread would be a stale one.
        return make_time_token(nonce, self._clock(), self._signers)
