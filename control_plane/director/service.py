"""The director: a truck's ECUs, what it shall have, and the metadata that is signed for it alone.

It can only select what was signed offline and taken in (repository.py). Versions of a truck only grow,
above what the truck itself reports too. Nothing is signed while a row is locked or a transaction open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from control_plane.db import Connection, Database
from control_plane.devices.service import DeviceService
from control_plane.director import store
from control_plane.director.alarms import AlarmService, OfficeAlarm
from control_plane.director.keys import Director
from control_plane.director.model import (
    DIRECTS,
    MOST_GAP,
    Choice,
    EcuRecord,
    VehicleRecord,
    fingerprint,
    governs,
    releases_of_job,
    told_versions,
    vehicle_of,
)
from control_plane.director.repository import TIMESTAMP, ImageRepositoryService
from control_plane.director.store import HeldRecord, SignedFiles
from control_plane.errors import Conflict, Invalid, NotFound, PreconditionRequired, StaleVersion, Unavailable
from control_plane.jobs.model import Job
from control_plane.jobs.service import JobService
from control_plane.metrics import Metrics
from shared.logs import get_log
from shared.trust.keys import BadKey, load_role_key
from shared.trust.uptane.director import direct
from shared.trust.uptane.manifest import MOST_ECUS
from shared.trust.uptane.release_document import ReleaseSpec
from shared.trust.uptane.repository import RepositoryTrouble

log = get_log("control_plane.director")

KEEP_VERSIONS = 4
"""Of each truck: a verification that began before the newest was signed still finds its files."""
MOST_HISTORY = 200
SIGN_WITHIN_S = 10.0
SIGN_AT_ONCE = 4
_LOCKS = 64


@dataclass(frozen=True, kw_only=True)
class Directed:
    """What a truck shall have now, and by which job; `why` says in words why it is nothing."""

    release_path: str | None
    release: ReleaseSpec | None
    job: Job | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A truck's ECUs, and what each reported last, by serial; unregistered ones are in `held` only."""

    vehicle: VehicleRecord
    ecus: tuple[EcuRecord, ...]
    held: Mapping[str, HeldRecord]


class DirectorService:
    """Directs trucks. `life` is how long a timestamp is good; half of it is how often it is renewed."""

    def __init__(
        self,
        db: Database,
        *,
        devices: DeviceService,
        jobs: JobService,
        repository: ImageRepositoryService,
        alarms: AlarmService,
        director: Director,
        metrics: Metrics,
        life: timedelta = timedelta(days=1),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db = db
        self._devices = devices
        self._jobs = jobs
        self._repository = repository
        self._alarms = alarms
        self._director = director
        self._metrics = metrics
        self._life = life
        self._clock = clock
        # Threads of their own: keys that never answer take no other work of the office along.
        self._threads = ThreadPoolExecutor(max_workers=SIGN_AT_ONCE, thread_name_prefix="director-sign")
        self._signing = [asyncio.Lock() for _ in range(_LOCKS)]

    async def register(
        self,
        device_id: str,
        *,
        primary_serial: str,
        gateway_key: str | None,
        ecus: Sequence[EcuRecord],
        expected_revision: int | None,
        by: str,
    ) -> Inventory:
        """Replace the whole list of a truck's ECUs. The first time needs no `expected_revision`.

        Without a `gateway_key` it is the one that the truck tells when it is enrolled, before or after this;
        until then its manifests are not judged. What an ECU is expected to hold begins anew. Raises NotFound,
        Invalid (keys, serials named twice, too many), PreconditionRequired or StaleVersion.
        """
        _check_ecus(gateway_key, ecus)

        async def act(connection: Connection) -> None:
            await self._devices.lock_for_job(connection, device_id)
            old = await self._locked(connection, device_id)
            if old.revision and expected_revision is None:
                raise PreconditionRequired("a change needs If-Match with the ETag that you have read")
            if expected_revision is not None and old.revision != expected_revision:
                raise StaleVersion(f"the ECUs have version {old.revision}, not {expected_revision}")
            key = old.gateway_key if gateway_key is None else gateway_key
            await store.register(connection, device_id, primary_serial, key, ecus)

        await self._db.run(act)
        log.info("director.ecus_registered", device_id=device_id, ecus=len(ecus), by=by)
        return await self.inventory(device_id)

    async def gateway_key_told(
        self, connection: Connection, device_id: str, public_key: str, *, replace: bool
    ) -> None:
        """A truck told the key of its gateway, at its enrolment or with a renewal; its device row is locked.

        It joins the caller's transaction. `replace`: in the place of another one. Raises Invalid.
        """
        try:
            load_role_key(public_key.encode())
        except BadKey as error:
            raise Invalid(
                f"manifest_key: {error.message}", fields={"manifest_key": "no public key in PEM"}
            ) from error
        known = await self._locked(connection, device_id)
        if known.gateway_key == public_key or (known.gateway_key is not None and not replace):
            return
        await store.set_gateway_key(connection, device_id, public_key)
        log.info("director.gateway_key_told", device_id=device_id, replaced=known.gateway_key is not None)

    async def inventory(self, device_id: str) -> Inventory:
        """A truck's ECUs. Raises NotFound (`unknown_device`, `ecus_not_registered`)."""
        await self._devices.get(device_id)
        async with self._db.transaction() as connection:
            vehicle = await store.vehicle(connection, device_id)
            if vehicle is None or not vehicle.revision:
                raise NotFound(f"no ECUs of {device_id} are registered", code="ecus_not_registered")
            return Inventory(
                vehicle=vehicle,
                ecus=tuple(await store.ecus(connection, device_id)),
                held=await store.newest_reports(connection, device_id),
            )

    async def history(self, device_id: str, serial: str) -> list[HeldRecord]:
        """What an ECU held, the newest MOST_HISTORY changes, newest first."""
        async with self._db.transaction() as connection:
            return await store.reports(connection, device_id, serial, MOST_HISTORY)

    async def choose(self, device_id: str, release_path: str | None, *, by: str) -> Choice:
        """An operator chooses a release for a truck, or nothing; a job that is made later decides again.

        Raises NotFound (`unknown_device`, `unknown_release`), Invalid (it is for none of the truck's ECUs)
        or Conflict (`live_job`: that job decides).
        """

        async def act(connection: Connection) -> Choice:
            await self._devices.lock_for_job(connection, device_id)
            await self._locked(connection, device_id)
            job = await self._jobs.newest_of(connection, device_id)
            if job is not None and not job.ended:
                raise Conflict(
                    f"{device_id} has a live job, {job.job_id}, which decides what is directed",
                    code="live_job",
                    advice="Wait for it to end, or cancel it.",
                )
            if release_path is not None:
                release = await self._repository.release(connection, release_path)
                if release is None:
                    raise NotFound(f"no release {release_path[:200]} is signed", code="unknown_release")
                ecus = await store.ecus(connection, device_id)
                if not any(release.target_for(one.kind, one.hardware) for one in ecus):
                    raise Invalid(
                        f"the release is for none of the ECUs of {device_id}",
                        fields={"release": "for none of its ECUs"},
                    )
            return await store.choose(connection, device_id, release_path, None, by)

        choice = await self._db.run(act)
        log.info("director.release_chosen", device_id=device_id, release=release_path, by=by)
        return choice

    async def chosen(self, device_id: str) -> tuple[Directed, SignedFiles | None]:
        """What a truck shall have now, and what was signed for it last. Raises NotFound."""
        await self._devices.get(device_id)

        async def act(connection: Connection) -> tuple[Directed, SignedFiles | None]:
            await self._locked(connection, device_id)
            ecus = await store.ecus(connection, device_id)
            directed = await self.directed(connection, device_id, ecus)
            return directed, await store.newest_signed(connection, device_id)

        return await self._db.run(act)

    async def heard(self, connection: Connection, device_id: str, versions: Mapping[str, int]) -> None:
        """A truck's hello says which metadata it trusts: it is kept, and what is signed next is above that.

        It joins the caller's transaction. A report far above is not followed, and is an alarm.
        """
        reported = max((n for name, n in versions.items() if name.partition("/")[0] == "director"), default=0)
        told = told_versions(versions)
        known = await store.vehicle(connection, device_id)
        if known is None or known.metadata_versions != told:
            await self._locked(connection, device_id)
            await store.set_metadata_versions(connection, device_id, told)
        if reported <= (known.version if known is not None else 0):
            return
        locked = await self._locked(connection, device_id)
        if reported > locked.version + MOST_GAP:
            await self._alarms.add(
                connection,
                device_id,
                OfficeAlarm.VERSION_AHEAD,
                detail=f"it trusts version {reported}, {locked.version} was signed last",
            )
            return
        log.warning("director.version_raised", device_id=device_id, reported=reported, version=locked.version)
        await store.raise_version(connection, device_id, reported)

    async def file(self, device_id: str, name: str) -> bytes:
        """A file of a truck's director repository by its served name. Raises NotFound or Unavailable."""
        if (root := self._director.roots.get(name)) is not None:
            return root
        if name == TIMESTAMP:
            return (await self.sign(device_id)).timestamp
        number, _, role = name.partition(".")
        if role in {"targets.json", "snapshot.json"} and number.isascii() and number.isdigit():
            async with self._db.transaction() as connection:
                version = int(number) if len(number) < 17 else 0
                found = await store.signed_version(connection, device_id, version)
            if found is not None:
                return found[0 if role == "targets.json" else 1]
        raise NotFound("the director has no such file for this truck", code="no_such_file")

    async def sign(self, device_id: str) -> SignedFiles:
        """What is signed for a truck: what there is, unless another selection, other keys, half of its
        life or a truck's report make it old. Raises Unavailable when the keys can't be used.
        """
        async with self._signing[hash(device_id) % _LOCKS]:
            now = self._clock()

            async def act(connection: Connection) -> SignedFiles | tuple[int, Directed, list[EcuRecord]]:
                vehicle = await self._locked(connection, device_id)
                ecus = await store.ecus(connection, device_id)
                directed = await self.directed(connection, device_id, ecus)
                newest = await store.newest_signed(connection, device_id)
                said = fingerprint(directed.release_path, ecus, self._director.identity)
                if (
                    newest is not None
                    and newest.fingerprint == said
                    and now < newest.renew_at
                    and newest.version == vehicle.version
                ):
                    return newest
                return await store.next_version(connection, device_id), directed, ecus

            decided = await self._db.run(act)
            if isinstance(decided, SignedFiles):
                return decided
            version, directed, ecus = decided
            files = await self._sign(device_id, version, directed, ecus, now)
            await self._db.run(lambda c: store.add_signed(c, device_id, files, KEEP_VERSIONS))
        self._metrics.director_signed_total.inc()
        log.info(
            "director.signed",
            device_id=device_id,
            version=version,
            release=directed.release_path,
            why=directed.why,
        )
        return files

    async def _sign(
        self, device_id: str, version: int, directed: Directed, ecus: Sequence[EcuRecord], now: datetime
    ) -> SignedFiles:
        def make() -> dict[str, bytes]:
            return direct(
                vehicle_of(device_id, ecus),
                directed.release,
                version=version,
                signers=self._director.signers,
                now=now,
                life=self._life,
            )

        try:
            async with asyncio.timeout(SIGN_WITHIN_S):
                made = await asyncio.get_running_loop().run_in_executor(self._threads, make)
        except TimeoutError as error:
            raise Unavailable(f"the director's keys did not sign in {SIGN_WITHIN_S:.0f} s") from error
        except RepositoryTrouble as error:
            raise Unavailable(f"the director's keys can't be used: {error.message}") from error
        return SignedFiles(
            version=version,
            fingerprint=fingerprint(directed.release_path, ecus, self._director.identity),
            release_path=directed.release_path,
            why=directed.why,
            targets=made[f"{version}.targets.json"],
            snapshot=made[f"{version}.snapshot.json"],
            timestamp=made[TIMESTAMP],
            renew_at=now + self._life / 2,
        )

    async def directed(self, connection: Connection, device_id: str, ecus: Sequence[EcuRecord]) -> Directed:
        """What a truck shall have now; the caller has locked its row. A job's release is kept once found."""
        job = await self._jobs.newest_of(connection, device_id)
        choice = await store.choice(connection, device_id)

        def nothing(why: str) -> Directed:
            return Directed(release_path=None, release=None, job=job, why=why)

        if job is not None and governs(job, choice):
            if job.state not in DIRECTS:
                return nothing(f"job {job.job_id} is {job.state}")
            if choice is None or choice.job_id != job.job_id:
                if job.release_path is not None:
                    found = [job.release_path]
                else:
                    found = releases_of_job(job, await self._repository.releases(connection))
                if len(found) != 1:
                    which = "no release has" if not found else f"{len(found)} releases have"
                    return nothing(f"{which} the firmware of job {job.job_id}")
                choice = await store.choose(connection, device_id, found[0], job.job_id, job.created_by)
        if choice is None or choice.release_path is None:
            return nothing("nothing was chosen")
        release = await self._repository.release(connection, choice.release_path)
        if release is None:
            return nothing(f"{choice.release_path} is not signed any more")
        wanted = [release.target_for(one.kind, one.hardware) for one in ecus]
        specs = [target.spec for target in wanted if target is not None]
        if not specs:
            return nothing(f"{choice.release_path} is for none of its ECUs")
        if unsigned := await self._repository.unsigned(connection, specs):
            return nothing(f"{unsigned[0]} of {choice.release_path} is not signed any more")
        return Directed(release_path=choice.release_path, release=release, job=job)

    async def _locked(self, connection: Connection, device_id: str) -> VehicleRecord:
        vehicle = await store.vehicle(connection, device_id, lock=True)
        assert vehicle is not None
        return vehicle


def _check_ecus(gateway_key: str | None, ecus: Sequence[EcuRecord]) -> None:
    serials = [one.serial for one in ecus]
    if len(set(serials)) != len(serials) or len(serials) > MOST_ECUS:
        raise Invalid(
            f"each ECU is named once, and there are at most {MOST_ECUS}",
            fields={"ecus": "named twice or too many"},
        )
    for place, pem in {"gateway_key": gateway_key, **{one.serial: one.public_key for one in ecus}}.items():
        try:
            if pem is not None:
                load_role_key(pem.encode())
        except BadKey as error:
            raise Invalid(f"{place}: {error.message}", fields={place: "no public key in PEM"}) from error
