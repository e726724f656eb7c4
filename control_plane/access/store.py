"""SQL of access. Secrets come in as their SHA-256 only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from control_plane.db import Connection, load_queries
from control_plane.web import Principal

_SQL = load_queries("control_plane.access")


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What is kept of a device's two secrets."""

    token_sha256: bytes
    mqtt_bcrypt: str


@dataclass(frozen=True, kw_only=True)
class TokenState:
    """What an enrolment token is good for; `key_sha256` of the certificate's key that it was used with."""

    used: bool
    expired: bool
    key_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """What a request was answered with; `status` is 0 while it is being worked on."""

    request_sha256: bytes
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


async def principal(connection: Connection, token_sha256: bytes) -> Principal | None:
    """Whose token it is."""
    row = await connection.fetchrow(_SQL["principal"], token_sha256)
    return None if row is None else Principal(**dict(row))


async def api_token_revoked(connection: Connection, token_sha256: bytes) -> bool | None:
    """Whether an operator's token was revoked; None when there never was one."""
    revoked: bool | None = await connection.fetchval(_SQL["api_token"], token_sha256)
    return revoked


async def replace_api_token(
    connection: Connection, *, token_id: str, name: str, token_sha256: bytes
) -> list[bytes]:
    """Make this the only live token of `name`; returns the others, which are revoked now."""
    rows = await connection.fetch(_SQL["revoke_other_tokens"], name, token_sha256)
    await connection.execute(_SQL["add_api_token"], token_id, name, token_sha256)
    return [row["token_sha256"] for row in rows]


async def lock_device(connection: Connection, device_id: str) -> bool:
    """Lock a device's row; False when there is none."""
    return await connection.fetchval(_SQL["lock_device"], device_id) is not None


async def replace_enrolment_token(
    connection: Connection, *, device_id: str, token_sha256: bytes, for_s: float
) -> datetime:
    """A new open token in the place of any other; returns when it expires."""
    await connection.execute(_SQL["drop_open_enrolment_tokens"], device_id)
    expires_at: datetime = await connection.fetchval(
        _SQL["add_enrolment_token"], token_sha256, device_id, for_s
    )
    return expires_at


async def device_of_enrolment_token(connection: Connection, token_sha256: bytes) -> str | None:
    """Which device a token is for."""
    found: str | None = await connection.fetchval(_SQL["device_of_enrolment_token"], token_sha256)
    return found


async def enrolment_token(connection: Connection, token_sha256: bytes) -> TokenState | None:
    """What a token is good for."""
    row = await connection.fetchrow(_SQL["enrolment_token"], token_sha256)
    return None if row is None else TokenState(**dict(row))


async def use_enrolment_token(
    connection: Connection, token_sha256: bytes, device_id: str, key_sha256: str | None
) -> None:
    """It works no more but for this very key; the device's other tokens are forgotten."""
    await connection.execute(_SQL["use_enrolment_token"], token_sha256, device_id, key_sha256)


async def drop_enrolment_tokens(connection: Connection, device_id: str) -> None:
    """Forget a device's tokens, used ones too."""
    await connection.execute(_SQL["drop_enrolment_tokens"], device_id)


async def credential(connection: Connection, device_id: str) -> Credential | None:
    """What is kept of a device's secrets."""
    row = await connection.fetchrow(_SQL["credential"], device_id)
    return None if row is None else Credential(**dict(row))


async def put_credential(connection: Connection, device_id: str, new: Credential) -> None:
    """Replace a device's credential. Raises UniqueViolationError when another device has this token."""
    await connection.execute(_SQL["put_credential"], device_id, new.token_sha256, new.mqtt_bcrypt)


async def drop_credential(connection: Connection, device_id: str) -> bytes | None:
    """Forget a device's secrets; returns the token's hash, None when there were none."""
    found: bytes | None = await connection.fetchval(_SQL["drop_credential"], device_id)
    return found


async def accounts(connection: Connection, after: str, limit: int) -> list[tuple[str, str]]:
    """A page of (device_id, bcrypt hash of its MQTT password), by device_id."""
    rows = await connection.fetch(_SQL["accounts"], after, limit)
    return [(row["device_id"], row["mqtt_bcrypt"]) for row in rows]


async def certificate_accounts(
    connection: Connection, after: tuple[str, str], limit: int
) -> list[tuple[str, str, str]]:
    """A page of (device_id, serial, bcrypt hash of its MQTT password) for each live certificate."""
    rows = await connection.fetch(_SQL["certificate_accounts"], *after, limit)
    return [(row["device_id"], row["serial"], row["mqtt_bcrypt"]) for row in rows]


async def reserve_key(
    connection: Connection,
    *,
    principal: str,
    key: str,
    request_sha256: bytes,
    keep_s: float,
    most_cleaned: int,
) -> bool:
    """Take an idempotency key, and clean a few old ones; False when it is taken already."""
    await connection.execute(_SQL["clean_keys"], keep_s, most_cleaned)
    await connection.execute(_SQL["drop_old_key"], principal, key, keep_s)
    return bool(await connection.fetchval(_SQL["reserve_key"], principal, key, request_sha256))


async def stored_answer(connection: Connection, principal: str, key: str) -> StoredAnswer | None:
    """What stands under a key."""
    row = await connection.fetchrow(_SQL["get_key"], principal, key)
    if row is None:
        return None
    return StoredAnswer(
        request_sha256=row["request_sha256"],
        status=row["status"],
        headers=msgspec.json.decode(row["headers"]),
        body=msgspec.json.decode(row["body"]),
    )


async def keep_answer(
    connection: Connection,
    *,
    principal: str,
    key: str,
    status: int,
    headers: dict[str, str],
    body: dict[str, Any],
) -> None:
    """Write the answer under a key that the caller has reserved."""
    await connection.execute(
        _SQL["keep_answer"],
        *(principal, key, status),
        *(msgspec.json.encode(headers).decode(), msgspec.json.encode(body).decode()),
    )
