"""Authentication and enrolment. The office keeps hashes only; a secret is seen once, when it is made."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import asyncpg
import bcrypt

from control_plane.access import admin_token, store
from control_plane.access.accounts import AccountsFollower, BrokerAccounts, hash_password
from control_plane.access.authority import Csr, read_csr
from control_plane.access.broker_users import broker_users
from control_plane.access.certificate_store import CertificateRecord
from control_plane.access.certificates import CertificateService, Proof
from control_plane.cache import Cache, MemoryCache
from control_plane.db import Connection, Database
from control_plane.embedded.nats import BrokerUser
from control_plane.errors import Forbidden, Invalid, NotFound, Unauthenticated
from control_plane.web import Principal
from shared.ids import new_id
from shared.logs import get_log

log = get_log("control_plane.access")

ADMIN = "admin"
MOST_TOKEN_CHARS = 200
KNOWN_FOR_S = 15.0
UNKNOWN_FOR_S = 5.0
LEAST_ENROLMENT_S, USUAL_ENROLMENT_S, MOST_ENROLMENT_S = 60, 24 * 3600, 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class EnrolmentToken:
    """A fresh one-time token, in clear: the only moment at which anybody sees it."""

    token: str
    device_id: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class EnrolledTruck:
    """Who was enrolled, and its certificate (PEM); None when it asked for none."""

    device_id: str
    certificate: str | None


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """What a truck lost: `credential` its token and password, and so many certificates."""

    credential: bool
    certificates: int


class GatewayKeys(Protocol):
    """Who is told the key that a truck's gateway signs its manifests with: the director's room."""

    async def gateway_key_told(
        self, connection: Connection, device_id: str, public_key: str, *, replace: bool
    ) -> None:
        """The device's row is locked. `replace`: in the place of another one. Raises Invalid."""
        ...


class BadEnrolmentToken(Forbidden):
    """A token that enrols nobody (any more)."""

    code = "bad_enrolment_token"
    advice = "Have an operator make a new enrolment token for this truck."


class AccessService:
    """Who asks, and how a truck gets its credential. `office` is the office's own broker account.

    Without `certificates` none are given. `by_certificate`: the broker asks for them, and its accounts are
    those of certificates. `gateway_keys` may be set later, before the first request.

    A principal is remembered for seconds. What this process changes counts at once: it drops what it
    remembers after the commit, and keeps nothing that was read before it.
    """

    def __init__(
        self,
        db: Database,
        broker: BrokerAccounts,
        *,
        office: BrokerUser,
        certificates: CertificateService | None = None,
        by_certificate: bool = False,
        known: Cache[bytes, Principal] | None = None,
        unknown: Cache[bytes, bool] | None = None,
    ) -> None:
        self._db = db
        self._certificates = certificates
        self._by_certificate = by_certificate
        self.gateway_keys: GatewayKeys | None = None
        self._accounts = AccountsFollower(
            broker, lambda: broker_users(db, office, by_certificate=by_certificate)
        )
        # Apart from each other, so that a flood of wrong tokens pushes no good one out.
        self._known = MemoryCache(most=5000, ttl_s=KNOWN_FOR_S) if known is None else known
        self._unknown = MemoryCache(most=5000, ttl_s=UNKNOWN_FOR_S) if unknown is None else unknown
        self._changes = 0

    @property
    def chain(self) -> str:
        """The authority's certificates, PEM, the signer of trucks' ones first; empty when there is none."""
        return "" if self._certificates is None else self._certificates.chain

    async def authenticate(self, token: str) -> Principal:
        """The principal of a bearer token. Raises Unauthenticated."""
        if len(token) > MOST_TOKEN_CHARS:
            raise Unauthenticated("this token is not known")
        digest = _sha256(token)
        if (known := self._known.get(digest)) is not None:
            return known
        if self._unknown.get(digest) is not None:
            raise Unauthenticated("this token is not known")
        changes = self._changes
        async with self._db.transaction() as connection:
            found = await store.principal(connection, digest)
        # What was read before a change may be wrong by now: it serves this request, no later one.
        if changes == self._changes:
            if found is None:
                self._unknown.put(digest, True)
            else:
                self._known.put(digest, found)
        if found is None:
            raise Unauthenticated("this token is not known")
        return found

    def _forget(self, *digests: bytes) -> None:
        """Call it after the commit of whatever changed these."""
        self._changes += 1
        for digest in digests:
            self._known.drop(digest)
            self._unknown.drop(digest)

    async def ensure_admin_token(self, path: Path) -> str:
        """The admin's token, from its 0600 file, which is made when it is not there.

        The file decides: a lost one is replaced and the old token revoked, one that a new database
        does not know is taken over, one that was revoked is not brought back to life. Raises
        ConfigError when others may read the file.
        """
        token = await asyncio.to_thread(admin_token.read, path)
        if token is not None:
            async with self._db.transaction() as connection:
                if await store.api_token_revoked(connection, _sha256(token)):
                    log.warning("access.revoked_admin_token_found", path=path.name)
                    token = None
        if token is None:
            token = await asyncio.to_thread(admin_token.make, path)
            log.info("access.admin_token_made", path=path.name)
        digest = _sha256(token)

        async def act(connection: Connection) -> list[bytes]:
            return await store.replace_api_token(
                connection, token_id=new_id(), name=ADMIN, token_sha256=digest
            )

        revoked = await self._db.run(act)
        if revoked:
            log.warning("access.admin_tokens_revoked", tokens=len(revoked))
        self._forget(digest, *revoked)
        return token

    async def new_enrolment_token(
        self, device_id: str, *, for_s: float = USUAL_ENROLMENT_S
    ) -> EnrolmentToken:
        """A one-time token for a device, good for `for_s` seconds; the device's open ones end.

        Raises NotFound, or Invalid for a life that is too short or too long.
        """
        if not LEAST_ENROLMENT_S <= for_s <= MOST_ENROLMENT_S:
            raise Invalid(
                f"an enrolment token lives {LEAST_ENROLMENT_S} to {MOST_ENROLMENT_S} s",
                fields={"valid_for_s": "out of bounds"},
            )
        token = secrets.token_urlsafe(32)

        async def act(connection: Connection) -> datetime:
            if not await store.lock_device(connection, device_id):
                raise NotFound(f"there is no device {device_id[:80]}", code="unknown_device")
            return await store.replace_enrolment_token(
                connection, device_id=device_id, token_sha256=_sha256(token), for_s=for_s
            )

        expires_at = await self._db.run(act)
        log.info("access.enrolment_token_made", device_id=device_id, for_s=for_s)
        return EnrolmentToken(token=token, device_id=device_id, expires_at=expires_at)

    async def enrol(
        self,
        *,
        enrolment_token: str,
        http_token: str,
        mqtt_password: str,
        csr: str | None = None,
        manifest_key: str | None = None,
    ) -> EnrolledTruck:
        """Give a truck the credential that it chose, and the certificate that it asks for (PKCS #10, PEM).

        When it returns the broker knows the account too. The same token with the same secrets and the
        same key is answered again, so a truck that lost the answer, or was told that the broker was
        away, just repeats. `manifest_key` is its gateway's public key, PEM. Raises BadEnrolmentToken,
        Invalid, NotRenewable, or BrokerUnavailable (the enrolment is kept).
        """
        asked = self._csr(csr)
        digest = _sha256(enrolment_token)
        new = store.Credential(
            token_sha256=_sha256(http_token),
            mqtt_bcrypt=await asyncio.to_thread(hash_password, mqtt_password),
        )

        async def act(connection: Connection) -> tuple[EnrolledTruck, store.Credential | None]:
            device_id = await store.device_of_enrolment_token(connection, digest)
            if device_id is None or not await store.lock_device(connection, device_id):
                raise BadEnrolmentToken("this enrolment token is not known")
            # Read under the lock: another request may have used or replaced it meanwhile.
            state = await store.enrolment_token(connection, digest)
            if state is None:
                raise BadEnrolmentToken("this enrolment token is not known")
            old = await store.credential(connection, device_id)
            if state.used:
                same_key = state.key_sha256 == (None if asked is None else asked.key_sha256)
                if old is None or not same_key or not _same(old, new.token_sha256, mqtt_password):
                    raise BadEnrolmentToken(
                        "this enrolment token was used already", code="enrolment_token_used"
                    )
                return EnrolledTruck(
                    device_id=device_id, certificate=await self._again(connection, device_id, asked)
                ), None
            if state.expired:
                raise BadEnrolmentToken("this enrolment token has expired", code="enrolment_token_expired")
            await store.put_credential(connection, device_id, new)
            key = None if asked is None else asked.key_sha256
            await store.use_enrolment_token(connection, digest, device_id, key)
            certificate = await self._first(connection, device_id, asked)
            if manifest_key is not None and self.gateway_keys is not None:
                await self.gateway_keys.gateway_key_told(connection, device_id, manifest_key, replace=True)
            return EnrolledTruck(device_id=device_id, certificate=certificate), old

        try:
            truck, replaced = await self._db.run(act)
        except asyncpg.UniqueViolationError as error:
            raise Invalid(
                "this http_token can't be used",
                fields={"http_token": "make a fresh random one"},
            ) from error
        self._forget(new.token_sha256, *([replaced.token_sha256] if replaced else []))
        log.info("access.device_enrolled", device_id=truck.device_id, replaced=replaced is not None)
        await self._accounts.follow()
        return truck

    async def renew(
        self, device_id: str, *, csr: str, proof: Proof | None, manifest_key: str | None = None
    ) -> str:
        """The next certificate of a truck (PEM), whose bearer token was seen; the broker knows it then.

        A `manifest_key` is told on only where none is known. Raises NotRenewable, Invalid, TooMany, or
        BrokerUnavailable (a repeat with the same key gets the same certificate).
        """
        certificates, asked = self._given(), read_csr(csr)

        async def act(connection: Connection) -> str:
            # The token was looked up before: under the lock the truck may have been revoked meanwhile.
            locked = await store.lock_device(connection, device_id)
            if not locked or await store.credential(connection, device_id) is None:
                raise Unauthenticated("this truck was revoked")
            pem = await certificates.renew(connection, device_id, asked, proof)
            if manifest_key is not None and self.gateway_keys is not None:
                await self.gateway_keys.gateway_key_told(connection, device_id, manifest_key, replace=False)
            return pem

        pem = await self._db.run(act)
        await self._accounts.follow()
        return pem

    async def revoke(self, device_id: str, *, by: str) -> Revoked:
        """Take everything from a truck: certificates, bearer token, password, enrolment tokens.

        When it returns the broker has ended its connection. May be repeated. Raises NotFound, or
        BrokerUnavailable (it is revoked here, and at the broker by a repeat or the next start).
        """

        async def act(connection: Connection) -> tuple[int, bytes | None]:
            if not await store.lock_device(connection, device_id):
                raise NotFound(f"there is no device {device_id[:80]}", code="unknown_device")
            await store.drop_enrolment_tokens(connection, device_id)
            certificates = self._certificates
            ended = 0 if certificates is None else await certificates.revoke(connection, device_id)
            return ended, await store.drop_credential(connection, device_id)

        ended, digest = await self._db.run(act)
        self._forget(*([] if digest is None else [digest]))
        log.warning("access.device_revoked", device_id=device_id, certificates=ended, by=by)
        await self._accounts.follow()
        return Revoked(credential=digest is not None, certificates=ended)

    async def certificates(self, device_id: str) -> Sequence[CertificateRecord]:
        """A truck's certificates, the newest first. Raises NotFound."""
        async with self._db.transaction() as connection:
            if not await store.lock_device(connection, device_id):
                raise NotFound(f"there is no device {device_id[:80]}", code="unknown_device")
            return await self._given().of_device(connection, device_id)

    def _given(self) -> CertificateService:
        if self._certificates is None:
            raise NotFound("this office gives no certificates", code="no_certificates")
        return self._certificates

    def _csr(self, csr: str | None) -> Csr | None:
        if csr is None and self._by_certificate:
            raise Invalid(
                "the broker takes trucks by their certificates, and no request for one was sent",
                code="csr_missing",
                advice="Install a newer agent on the truck.",
                fields={"csr": "missing"},
            )
        return None if csr is None or self._certificates is None else read_csr(csr)

    async def _first(self, connection: Connection, device_id: str, csr: Csr | None) -> str | None:
        return None if csr is None else await self._given().enrol(connection, device_id, csr)

    async def _again(self, connection: Connection, device_id: str, csr: Csr | None) -> str | None:
        return None if csr is None else await self._given().again(connection, device_id, csr)

    async def load_accounts(self) -> None:
        """Bring the broker to what the database says; at start. Raises BrokerUnavailable."""
        await self._accounts.follow()


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _same(old: store.Credential, token_sha256: bytes, mqtt_password: str) -> bool:
    return hmac.compare_digest(old.token_sha256, token_sha256) and bcrypt.checkpw(
        mqtt_password.encode(), old.mqtt_bcrypt.encode()
    )
