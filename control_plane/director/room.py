"""Opens the room from the configuration: refuses to start rather than direct what trucks would refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi import FastAPI
from securesystemslib.signer import Signer

from control_plane.config import OfficeConfig
from control_plane.db import Database
from control_plane.devices.service import DeviceService
from control_plane.director import alarms_api, api, trucks_api
from control_plane.director.alarms import AlarmService
from control_plane.director.keys import (
    Director,
    KeyFile,
    open_director,
    open_time_signers,
    read_root_file,
)
from control_plane.director.manifests import ManifestService
from control_plane.director.release_jobs import ReleaseJobs
from control_plane.director.repository import ImageRepositoryService
from control_plane.director.service import DirectorService
from control_plane.director.time_tokens import TimeTokens
from control_plane.firmware.deltas import DeltaService
from control_plane.jobs.service import JobService
from control_plane.metrics import Metrics
from control_plane.storage.folder import FolderFiles
from shared.errors import ConfigError
from shared.logs import get_log
from shared.trust.uptane.errors import MetadataRefused
from shared.trust.uptane.store import TrustedStore, provision

log = get_log("control_plane.director")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the operator provisioned: the online keys with their root, the image repository's root, and
    the keys that sign time tokens, if trucks may ask for any.
    """

    director: Director
    provisioned: TrustedStore
    time_signers: tuple[Signer, ...] = ()


def read_trust(config: OfficeConfig) -> Trust | None:
    """From the configured files; None when there is no director. Raises ConfigError."""
    if not config.director:
        return None
    roots = Path(config.director_roots)
    director = open_director(KeyFile(path=Path(config.director_key)), roots)
    image_root = read_root_file(Path(config.director_image_root), "director_image_root")
    time_signers: tuple[Signer, ...] = ()
    if config.director_time_key:
        time_signers = open_time_signers(
            KeyFile(path=Path(config.director_time_key), key="director_time_key"), director.root
        )
    newest = director.roots[f"{director.root.version}.root.json"]
    try:
        provisioned = provision(director_root=newest, image_root=image_root)
    except MetadataRefused as error:
        raise ConfigError(f"director_image_root: {config.director_image_root}: {error.message}") from error
    if director.root.expires <= datetime.now(UTC):
        # Everything else of the office goes on; trucks refuse what is directed until it is renewed.
        log.error("director.root_expired", at=director.root.expires.isoformat(), root=director.root.version)
    return Trust(director=director, provisioned=provisioned, time_signers=time_signers)


@dataclass(frozen=True, kw_only=True)
class DirectorRoom:
    """The room's services."""

    files: FolderFiles
    repository: ImageRepositoryService
    director: DirectorService
    manifests: ManifestService
    alarms: AlarmService
    release_jobs: ReleaseJobs
    time_tokens: TimeTokens

    def add_to(self, app: FastAPI) -> None:
        """Its endpoints."""
        app.include_router(api.make_router(self.repository, self.director, self.files.incoming))
        app.include_router(
            trucks_api.make_router(self.repository, self.director, self.manifests, self.time_tokens)
        )
        app.include_router(alarms_api.make_router(self.alarms))


def make_room(
    trust: Trust,
    *,
    db: Database,
    files: FolderFiles,
    deltas: DeltaService,
    devices: DeviceService,
    jobs: JobService,
    metrics: Metrics,
    life: timedelta,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> DirectorRoom:
    """Wire it. `life` is of the director's timestamps."""
    alarms = AlarmService(db, metrics)
    repository = ImageRepositoryService(db, files, deltas=deltas, provisioned=trust.provisioned, clock=clock)
    director = DirectorService(
        db,
        devices=devices,
        jobs=jobs,
        repository=repository,
        alarms=alarms,
        director=trust.director,
        metrics=metrics,
        life=life,
        clock=clock,
    )
    manifests = ManifestService(db, director=director, alarms=alarms, metrics=metrics, clock=clock)
    return DirectorRoom(
        files=files,
        repository=repository,
        director=director,
        manifests=manifests,
        alarms=alarms,
        release_jobs=ReleaseJobs(devices=devices, jobs=jobs, repository=repository),
        time_tokens=TimeTokens(trust.time_signers, metrics, clock=clock),
    )
