"""Takes trucks' vehicle manifests over: whom they are believed, what runs where, and every alarm."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from control_plane.db import Connection, Database
from control_plane.director import store
from control_plane.director.alarms import AlarmService
from control_plane.director.model import allowed_sha256, known_vehicle
from control_plane.director.service import DirectorService
from control_plane.errors import Conflict, OfficeError
from control_plane.metrics import Metrics
from shared.trust.uptane.manifest import EcuReport, read_time
from shared.trust.uptane.manifest_check import Alarm, Raised, Verdict, verify_manifest

KEEP_REPORTS = 2000
"""Changes that are kept of one truck's ECUs."""
NOT_BELIEVED = frozenset({Alarm.UNKNOWN_ECU, Alarm.REPORT_UNSIGNED, Alarm.REPORT_REPLAYED})


class ManifestRefused(OfficeError):
    """A manifest that is not this truck's word; `code` is the alarm that it raised."""

    status = 422
    code = "manifest_refused"
    advice = "Look at the alarm (quarry alarm list); the truck need not send this manifest again."


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What became of a manifest. `repeated`: it is the newest one again, which changes nothing."""

    repeated: bool
    alarms: tuple[Raised, ...] = ()


class ManifestService:
    """Vehicle manifests."""

    def __init__(
        self,
        db: Database,
        *,
        director: DirectorService,
        alarms: AlarmService,
        metrics: Metrics,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db = db
        self._director = director
        self._alarms = alarms
        self._metrics = metrics
        self._clock = clock

    async def take(self, device_id: str, raw: bytes) -> Heard:
        """Take over a manifest that came by this truck's own connection.

        Raises Conflict (`ecus_not_registered`) or ManifestRefused; its alarm is kept all the same.
        """
        heard = await self._db.run(lambda connection: self._take(connection, device_id, raw))
        if isinstance(heard, Raised):
            self._metrics.director_manifests_total.labels(outcome="refused").inc()
            raise ManifestRefused(heard.text, code=heard.alarm)
        self._metrics.director_manifests_total.labels(outcome="repeated" if heard.repeated else "taken").inc()
        return heard

    async def _take(self, connection: Connection, device_id: str, raw: bytes) -> Heard | Raised:
        vehicle = await store.vehicle(connection, device_id, lock=True)
        assert vehicle is not None
        sha256 = hashlib.sha256(raw).hexdigest()
        if sha256 == vehicle.manifest_sha256:
            return Heard(repeated=True)
        ecus = await store.ecus(connection, device_id)
        directed = await self._director.directed(connection, device_id, ecus)
        kinds = [one.kind for one in ecus]
        allowed = {
            one.serial: allowed_sha256(one, directed.job, directed.release, alone=kinds.count(one.kind) == 1)
            for one in ecus
        }
        known = known_vehicle(vehicle, ecus, allowed)
        if known is None:
            raise Conflict(
                f"the key of {device_id}'s gateway is not registered",
                code="ecus_not_registered",
                advice="Register the truck's ECUs: PUT /api/v1/devices/ID/ecus.",
            )
        if b"\\u0000" in raw:
            # PostgreSQL's text can't hold it, and no honest agent writes it.
            unreadable = Raised(alarm=Alarm.UNREADABLE, text="it has a null character")
            await self._alarms.raise_all(connection, device_id, [unreadable])
            return unreadable
        verdict = await asyncio.to_thread(verify_manifest, raw, known, now=self._clock())
        if verdict.report is None:
            await self._alarms.raise_all(connection, device_id, verdict.alarms)
            return verdict.alarms[0]
        alarms = (*verdict.alarms, *_neither_old_nor_new(verdict, allowed))
        await self._alarms.raise_all(connection, device_id, alarms)
        live = directed.job is not None and not directed.job.ended
        await self._keep(connection, verdict, alarms, sha256, live=live)
        return Heard(repeated=False, alarms=alarms)

    async def _keep(
        self,
        connection: Connection,
        verdict: Verdict,
        alarms: tuple[Raised, ...],
        sha256: str,
        *,
        live: bool,
    ) -> None:
        known, report = verdict.vehicle, verdict.report
        assert report is not None
        device_id = known.vehicle_id
        disbelieved = {one.serial for one in alarms if one.alarm in NOT_BELIEVED}
        mismatched = {one.serial for one in alarms if one.alarm is Alarm.MISMATCH}
        counters = {serial: one.counter for serial, one in known.ecus.items()}
        await store.manifest_taken(connection, known, sha256, counters)
        before = await store.newest_reports(connection, device_id)
        settled: dict[str, str] = {}
        for one in report.ecus:
            said, serial = one.signed, one.signed.serial
            believed = serial not in disbelieved
            old = before.get(serial)
            if old is not None and _same(old, said, believed=believed):
                await store.report_again(connection, old.report_id)
            else:
                await store.add_report(
                    connection, device_id, said, believed=believed, said_at=read_time(said.at)
                )
            if believed and said.installed is not None and serial not in mismatched and not live:
                settled[serial] = said.installed.sha256
        await store.settle(connection, device_id, settled)
        await store.trim_reports(connection, device_id, KEEP_REPORTS)


def _same(old: store.HeldRecord, said: EcuReport, *, believed: bool) -> bool:
    return (old.kind, old.hardware, old.believed, old.installed) == (
        said.kind,
        said.hardware,
        believed,
        said.installed,
    )


def _neither_old_nor_new(verdict: Verdict, allowed: Mapping[str, frozenset[str] | None]) -> list[Raised]:
    """ECUs that may hold one of several images, and hold another one."""
    assert verdict.report is not None
    disbelieved = {one.serial for one in verdict.alarms if one.alarm in NOT_BELIEVED}
    found = []
    for one in verdict.report.ecus:
        said = one.signed
        may = allowed.get(said.serial)
        if said.serial in disbelieved or said.installed is None or may is None or len(may) < 2:
            continue
        if said.installed.sha256 not in may:
            text = f"holds {said.installed.sha256}, one of {', '.join(sorted(may))} is expected"
            found.append(Raised(alarm=Alarm.MISMATCH, serial=said.serial, text=text))
    return found
