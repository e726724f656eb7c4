"""The broker's accounts: the office's own, and that the broker follows what the database says."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

import bcrypt
import msgspec

from control_plane.embedded.nats import BrokerUser, office_user
from control_plane.errors import Unavailable
from control_plane.secret_files import read_or_create_secret
from shared.errors import ConfigError, OtaError
from shared.logs import get_log

log = get_log("control_plane.access")

# Secrets here are 256 random bits: a slow hash adds nothing, and the broker checks it at each connect.
BCRYPT_COST = 4
BROKER_TIMEOUT_S = 30.0
# A device_id has no dot, so no truck can take the office's name.
OFFICE_USER = "quarry.office"


class BrokerUnavailable(Unavailable):
    """The broker did not take the accounts. What was decided is kept; a repeat brings it there."""

    code = "broker_unavailable"
    advice = "Send the same request again in a few seconds; see nats.log if it goes on."


class BrokerAccounts(Protocol):
    """The broker, seen from here."""

    async def set_users(self, users: Iterable[BrokerUser]) -> None:
        """Replace all accounts; returns when the broker works by them. Raises OtaError."""
        ...


class OfficeAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the office itself connects to the broker.

    The client id is a secret too: whoever connects with a client's id takes over its session.
    """

    user: str
    password: str
    client_id: str

    def broker_user(self, name: str | None = None) -> BrokerUser:
        """The account as the broker gets it; `name` is its certificate's, where the broker asks for those."""
        return office_user(self.user if name is None else name, hash_password(self.password))


def hash_password(password: str) -> str:
    """The bcrypt hash that the broker reads; at most 72 bytes are hashed by bcrypt, more raise ValueError."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_COST, prefix=b"2a")).decode()


def load_office_account(path: Path) -> OfficeAccount:
    """The office's account from a 0600 file that is made at first use; blocking.

    It stays the same over restarts, since the broker keeps the office's messages under its client id.
    Raises ConfigError when the file is not one of ours.
    """

    def make() -> bytes:
        return msgspec.json.encode(
            OfficeAccount(
                user=OFFICE_USER,
                password=secrets.token_urlsafe(32),
                client_id=f"quarry-office-{secrets.token_hex(16)}",
            )
        )

    try:
        return msgspec.json.decode(read_or_create_secret(path, make), type=OfficeAccount)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is not the office's account: {error}",
            advice="Delete it: a new one is made; trucks repeat what the old one had not fetched.",
        ) from error


class AccountsFollower:
    """Brings the broker to what `read` gives; many callers at once share one change."""

    def __init__(self, broker: BrokerAccounts, read: Callable[[], Awaitable[list[BrokerUser]]]) -> None:
        self._broker = broker
        self._read = read
        self._turn = asyncio.Lock()
        self._asked = 0
        self._tried = 0
        self._failure: BrokerUnavailable | None = None

    async def follow(self) -> None:
        """Return when the broker has accounts that were read after this call.

        Raises BrokerUnavailable when it did not take them in time.
        """
        self._asked += 1
        mine = self._asked
        # Waiters only share the outcome; no database connection or row lock is held while waiting.
        async with self._turn:
            if self._tried < mine:
                await self._change()
            if self._failure is not None:
                raise BrokerUnavailable(self._failure.message) from self._failure

    async def _change(self) -> None:
        upto = self._asked
        try:
            async with asyncio.timeout(BROKER_TIMEOUT_S):
                users = await self._read()
                await self._broker.set_users(users)
        except (OtaError, OSError, TimeoutError) as error:
            log.warning("access.accounts_not_taken", error=str(error) or type(error).__name__)
            self._failure = BrokerUnavailable("the broker did not take the accounts")
            self._failure.__cause__ = error
        else:
            self._failure = None
            log.info("access.accounts_taken", users=len(users))
        self._tried = upto
