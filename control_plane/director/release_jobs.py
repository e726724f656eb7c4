"""Orders whole releases: which components of a truck a release is for, and what it may still bring.

Who makes jobs of components and versions is the jobs room; it knows this one by `OrdersReleases` only.
Everything that is refused here the truck would refuse as well, later and with a round through the field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from control_plane.db import Connection
from control_plane.devices.model import DeviceRecord
from control_plane.devices.service import DeviceService
from control_plane.director import store
from control_plane.director.model import EcuRecord, VehicleRecord
from control_plane.director.repository import ImageRepositoryService
from control_plane.errors import Conflict, Invalid, NotFound
from control_plane.jobs.model import Job, Target
from control_plane.jobs.service import JobService
from shared.trust.uptane.matching import RELEASES
from shared.trust.uptane.release_document import ReleaseSpec


@dataclass(frozen=True, kw_only=True)
class ReleaseNow:
    """What may still be brought of a job's release. `withdrawn` says why nothing may be; `documents` are
    those that ECUs verify themselves, by the SHA-256 of their image.
    """

    withdrawn: str | None = None
    documents: Mapping[str, bytes] = field(default_factory=dict)


class ReleaseJobs:
    """Jobs of releases, made and looked at again before they are sent."""

    def __init__(
        self, *, devices: DeviceService, jobs: JobService, repository: ImageRepositoryService
    ) -> None:
        self._devices = devices
        self._jobs = jobs
        self._repository = repository

    async def order(
        self,
        connection: Connection,
        *,
        device_id: str,
        release: str,
        scheduled_at: datetime | None,
        by: str,
    ) -> Job:
        """A job that brings `release` (its path, or NAME/VERSION) to every ECU of a truck that it is for.

        Raises NotFound (`unknown_device`, `no_image_repository`, `unknown_release`, `ecus_not_registered`),
        Conflict (`withdrawn`, `release_ambiguous`, `older_release`, `release_not_compatible`,
        `components_differ`, `live_job`) or Invalid (`no_ecu_for_release`, a time too far ahead).
        """
        device = await self._devices.lock_for_job(connection, device_id)
        vehicle = await store.vehicle(connection, device_id, lock=True)
        assert vehicle is not None
        path, spec = await self._find(connection, release)
        ecus = await store.ecus(connection, device_id)
        if not vehicle.revision or not ecus:
            raise NotFound(
                f"no ECUs of {device_id} are registered",
                code="ecus_not_registered",
                advice=f"Register them: quarry device ecus set {device_id} --ecu SERIAL:KIND:HARDWARE ...",
            )
        targets = _targets(device, ecus, path, spec)
        _check_truck(vehicle, ecus, path, spec)
        return await self._jobs.create_of_release(
            connection,
            device_id=device_id,
            release_path=path,
            targets=targets,
            scheduled_at=scheduled_at,
            by=by,
        )

    async def now(self, connection: Connection, job: Job) -> ReleaseNow:
        """What may be sent of a job of a release, at this moment."""
        assert job.release_path is not None
        if await self._repository.release(connection, job.release_path) is None:
            return ReleaseNow(withdrawn=f"{job.release_path} is not signed any more")
        images = await self._repository.images(connection, [target.path for target in job.targets])
        if missing := [target.path for target in job.targets if target.path not in images]:
            return ReleaseNow(withdrawn=f"{missing[0]} of {job.release_path} is not signed any more")
        return ReleaseNow(
            documents={one.sha256: one.document for one in images.values() if one.document is not None}
        )

    async def _find(self, connection: Connection, said: str) -> tuple[str, ReleaseSpec]:
        known = await self._repository.known_releases(connection)
        if not known:
            raise NotFound(
                "no release was uploaded yet",
                code="no_image_repository",
                advice="Sign and upload one: quarry release add-release, sign, publish, upload.",
            )
        path = _path_of(said, known)
        release = await self._repository.release(connection, path)
        if release is None:
            raise _withdrawn(f"{path} was withdrawn: it is not signed any more")
        specs = [target.spec for target in release.targets]
        if unsigned := await self._repository.unsigned(connection, specs):
            raise _withdrawn(f"{unsigned[0]} of {path} was withdrawn: it is not signed any more")
        return path, release


def _withdrawn(sentence: str) -> Conflict:
    return Conflict(sentence, code="withdrawn", advice="Choose another release.")


def _path_of(said: str, known: Mapping[str, bool]) -> str:
    """The path that is meant; `known` says of each release whether it is signed now."""
    if said in known:
        return said
    found = [path for path in known if path.removeprefix(RELEASES).rpartition("/")[0] == said]
    # Of releases of one name and version those that are signed are meant, if there are any.
    found = [path for path in found if known[path]] or found
    if not found:
        raise NotFound(
            f"no release {said[:200]} was uploaded",
            code="unknown_release",
            advice="See `quarry release list`; upload it with `quarry release upload`.",
        )
    if len(found) > 1:
        raise Conflict(
            f"{len(found)} releases are called {said[:200]}",
            code="release_ambiguous",
            advice=f"Name the whole path, for example {found[0]}.",
        )
    return found[0]


def _targets(
    device: DeviceRecord, ecus: Sequence[EcuRecord], path: str, release: ReleaseSpec
) -> list[Target]:
    """One target for each component that the release is for; they must be the ECUs, one for one."""
    wanted = Counter((one.kind, one.hardware) for one in ecus if release.target_for(one.kind, one.hardware))
    if not wanted:
        raise Invalid(
            f"{path} is for none of the ECUs of {device.device_id}",
            code="no_ecu_for_release",
            fields={"release": "for none of its ECUs"},
        )
    made: list[Target] = []
    found: Counter[tuple[str, str]] = Counter()
    for one in device.components:
        target = release.target_for(one.kind, one.hardware)
        if target is None:
            continue
        if one.differs:
            raise _differs(device, f"{one.component} says that it is another part than is registered")
        found[one.kind, one.hardware] += 1
        made.append(
            Target(
                component=one.component,
                firmware_id=None,
                kind=target.kind,
                version=target.version,
                sha256=target.sha256,
                length=target.length,
            )
        )
    for kind, hardware in sorted(wanted.keys() | found.keys()):
        if wanted[kind, hardware] != found[kind, hardware]:
            raise _differs(
                device,
                f"{wanted[kind, hardware]} ECUs and {found[kind, hardware]} components of it"
                f" are {kind} {hardware}",
            )
    return made


def _differs(device: DeviceRecord, what: str) -> Conflict:
    return Conflict(
        f"components and ECUs of {device.device_id} are not the same: {what}",
        code="components_differ",
        advice=f"Compare `quarry device show {device.device_id}` with the truck and correct the list.",
    )


def _check_truck(vehicle: VehicleRecord, ecus: Sequence[EcuRecord], path: str, release: ReleaseSpec) -> None:
    """What the truck would refuse by its counters; before its first manifest nothing is known of them."""
    for need in release.compatibility:
        having = [one for one in ecus if one.kind == need.kind]
        low = [one for one in having if vehicle.manifest_at and one.counter < need.counter_at_least]
        if not having or low:
            which = f"{low[0].serial} reported {low[0].counter}" if low else "this truck has none"
            raise Conflict(
                f"{path} needs {need.kind} with release counter {need.counter_at_least}: {which}",
                code="release_not_compatible",
                advice="Bring that ECU to a newer release first.",
            )
    for one in ecus:
        target = release.target_for(one.kind, one.hardware)
        if target is not None and target.release_counter < one.counter:
            raise Conflict(
                f"{path} has release counter {target.release_counter}, {one.serial} ran {one.counter}",
                code="older_release",
                advice="An older release is never installed: sign its content again with a higher counter.",
            )
