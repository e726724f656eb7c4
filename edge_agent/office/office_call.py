"""One question to the office's HTTP side and its answer: bounded in bytes and time, never in the clear."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import msgspec

from edge_agent.addresses import check_safe
from edge_agent.config import Office
from edge_agent.trust.trusted_time import fails_on_dates
from shared.errors import OtaError
from shared.since_310 import UTC, timeout

ANSWER_WITHIN_S = 30.0
MOST_ANSWER_BYTES = 64 * 1024


class OfficeUnreachable(OtaError):
    """The office did not answer, or not as an office does."""

    code = "office_unreachable"
    retryable = True
    advice = "Check office.url and the link, then run it again with the same token: that is safe."


class OfficeRefuses(OtaError):
    """The office answered, and said no. `status` is the HTTP status."""

    code = "office_refuses"

    def __init__(self, detail: str, *, status: int, code: str, advice: str) -> None:
        super().__init__(detail, code=code, advice=advice)
        self.status = status


async def post(
    office: Office,
    path: str,
    body: dict[str, Any],
    *,
    tls: Callable[[], ssl.SSLContext],
    token: str | None = None,
) -> dict[str, Any]:
    """The answer's JSON object. `token` is the bearer; `tls` is asked in a thread.

    Raises OfficeUnreachable, also where a repeat may help; OfficeRefuses; UnsafeAddress and ConfigError.
    """
    check_safe(office.url, allow_plain=office.allow_plain, what="office.url")
    url = f"{office.url.rstrip('/')}{path}"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    context = await asyncio.to_thread(tls)
    try:
        async with (
            timeout(ANSWER_WITHIN_S),
            httpx.AsyncClient(verify=context, timeout=ANSWER_WITHIN_S, trust_env=False) as client,
            client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            raw = b""
            async for chunk in answer.aiter_bytes():
                raw += chunk
                if len(raw) > MOST_ANSWER_BYTES:
                    raise OfficeUnreachable(f"{office.url} answers without an end: that is no office")
    except (httpx.HTTPError, TimeoutError) as error:
        if fails_on_dates(error):
            raise OfficeUnreachable(
                f"{office.url}: its certificate is not good at the time that this gateway's clock says,"
                f" {datetime.now(UTC).isoformat(timespec='seconds')}",
                code="tls_dates",
                advice="Set the gateway's clock (timedatectl) if it is wrong, then run it again.",
            ) from error
        raise OfficeUnreachable(f"{office.url} does not answer: {error or type(error).__name__}") from error
    return _read(office, answer.status_code, raw)


def _read(office: Office, status: int, raw: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OfficeUnreachable(f"{office.url} answered {status} and not as an office does") from error
    if status == 200:
        return said
    detail = str(said.get("detail") or said.get("title") or "no reason given")[:500]
    if status >= 500 or status in (408, 425, 429):
        raise OfficeUnreachable(f"the office can't do it now ({status}): {detail}")
    raise OfficeRefuses(
        detail,
        status=status,
        code=str(said.get("code") or "office_refuses")[:64],
        advice=str(said.get("advice") or "See the office's log.")[:500],
    )
