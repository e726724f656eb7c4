"""Trucks' client certificates: given at the enrolment, renewed by who has the last one's key, revoked.

- What stands in a certificate is the office's word; of a request the key is taken.
- **The next one needs two proofs**: the truck's bearer token, and a signature by the key of a live
  certificate that ended no longer than `grace` ago. So a stolen token alone gives nobody a certificate, and a
  truck that was away for weeks comes back by itself. A revoked or replaced one renews nothing.
- **A lost answer costs nothing**: the same key is given the same certificate again.
- An older certificate is taken until its successor has proved to be with the truck, so that no crash between
  the two leaves a truck outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from control_plane.access import certificate_store as store
from control_plane.access.authority import Authority, Csr
from control_plane.access.certificate_store import CertificateRecord
from control_plane.db import Connection
from control_plane.errors import Forbidden, Invalid, TooMany
from shared.certificates import is_taken, proves
from shared.logs import get_log

log = get_log("control_plane.access")

MOST_A_DAY = 6
"""Certificates of one truck in a day beside those by enrolment: a truck needs one in two months."""
DAY_S = 24 * 3600.0
KEPT = 20
"""Records of one truck's certificates that are not live."""
SAME_AGAIN_FOR = timedelta(days=1)
"""How long a repeat with the same key is taken for a lost answer, and not for a wish of a newer date."""


class NotRenewable(Forbidden):
    """A truck that gets no next certificate by itself."""

    code = "certificate_not_renewable"
    advice = "Have an operator make a new enrolment token for this truck, and enrol it again."


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Which certificate a truck has now, and its key's signature over the request (shared.certificates)."""

    serial: str
    signature: bytes


class CertificateService:
    """Issues, renews and revokes; every method joins its caller's transaction, the device's row locked."""

    def __init__(
        self,
        authority: Authority,
        *,
        life: timedelta,
        grace: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.chain = authority.chain
        self._authority = authority
        self._life = life
        self._grace = grace
        self._clock = clock

    async def enrol(self, connection: Connection, device_id: str, csr: Csr) -> str:
        """The certificate of a truck that is enrolled now, PEM; all that it had before are replaced."""
        await self._check_key(connection, device_id, csr)
        await store.replace_others(connection, device_id, ())
        return await self._issue(connection, device_id, csr, "enrolment")

    async def again(self, connection: Connection, device_id: str, csr: Csr) -> str:
        """The newest certificate for the key of an enrolment that is repeated. Raises NotRenewable."""
        for one in await store.newest(connection, device_id, KEPT):
            if one.key_sha256 == csr.key_sha256 and one.state == "live":
                return one.pem
        raise NotRenewable("the certificate of this enrolment was replaced", code="certificate_replaced")

    async def renew(self, connection: Connection, device_id: str, csr: Csr, proof: Proof | None) -> str:
        """The next certificate, PEM. Without a proof only the first of a truck that never had any.

        Raises NotRenewable, Invalid (the key is another truck's) or TooMany.
        """
        known = await store.newest(connection, device_id, KEPT)
        if proof is None and not known:
            return await self._first(connection, device_id, csr)
        holds = self._holds(device_id, known, csr, proof)
        now = self._clock()
        for one in known:
            fresh = now - one.not_before < SAME_AGAIN_FOR and now < one.not_after
            if one.key_sha256 == csr.key_sha256 and one.state == "live" and fresh:
                return one.pem
        await self._check_key(connection, device_id, csr)
        await self._check_rate(connection, device_id)
        pem = await self._issue(connection, device_id, csr, "renewal", holds.serial)
        log.info("access.certificate_renewed", device_id=device_id, serial=holds.serial)
        return pem

    async def revoke(self, connection: Connection, device_id: str) -> int:
        """Revoke whatever a device has; how many certificates that were."""
        return await store.revoke(connection, device_id)

    async def of_device(self, connection: Connection, device_id: str) -> Sequence[CertificateRecord]:
        """The newest first."""
        return await store.newest(connection, device_id, KEPT)

    def _holds(
        self, device_id: str, known: Sequence[CertificateRecord], csr: Csr, proof: Proof | None
    ) -> CertificateRecord:
        """The certificate whose key asks. Raises NotRenewable."""
        if proof is None:
            raise NotRenewable("the key of the last certificate did not sign this", code="no_proof")
        found = next((one for one in known if one.serial == proof.serial), None)
        if found is None:
            raise NotRenewable("this certificate is not known", code="unknown_certificate")
        if found.state != "live":
            raise NotRenewable(f"this certificate was {found.state}", code=f"certificate_{found.state}")
        key = x509.load_pem_x509_certificate(found.pem.encode()).public_key()
        assert is_taken(key)
        if not proves(key, proof.signature, device_id, csr.der):  # type: ignore[arg-type]
            raise NotRenewable("the key of the last certificate did not sign this", code="bad_proof")
        if self._clock() >= found.not_after + self._grace:
            raise NotRenewable(
                f"this certificate ended at {found.not_after.isoformat()}, too long ago to be renewed",
                code="certificate_grace_over",
            )
        return found

    async def _first(self, connection: Connection, device_id: str, csr: Csr) -> str:
        await self._check_key(connection, device_id, csr)
        log.info("access.first_certificate", device_id=device_id)
        return await self._issue(connection, device_id, csr, "first")

    async def _issue(
        self, connection: Connection, device_id: str, csr: Csr, issued_for: str, *also: str
    ) -> str:
        issued = self._authority.for_truck(device_id, csr, now=self._clock(), life=self._life)
        if also:
            await store.replace_others(connection, device_id, also)
        await store.add(connection, device_id, issued, issued_for)
        await store.clean(connection, device_id, KEPT)
        log.info(
            "access.certificate_issued",
            device_id=device_id,
            serial=issued.serial,
            issued_for=issued_for,
            not_after=issued.not_after.isoformat(),
        )
        return issued.pem

    async def _check_key(self, connection: Connection, device_id: str, csr: Csr) -> None:
        if await store.key_of_another(connection, device_id, csr.key_sha256):
            raise Invalid(
                "another truck has this key",
                code="key_in_use",
                advice="Let this truck make a key of its own: copied data folders make two trucks one.",
                fields={"csr": "the key is another truck's"},
            )

    async def _check_rate(self, connection: Connection, device_id: str) -> None:
        if await store.issued_since(connection, device_id, DAY_S) >= MOST_A_DAY:
            raise TooMany(
                f"{device_id} had {MOST_A_DAY} certificates in a day", advice="Wait a day, then try again."
            )
