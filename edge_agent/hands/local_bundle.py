"""A USB bundle into the data folder: a release for this truck, selected by the director's offline role.

`BUNDLE/director` and `BUNDLE/image` hold metadata and images under the names that the office serves. It is
verified here by the truck's own trust before a byte of it is kept, so that who brings it hears at once what
is wrong; the metadata go to DATA/bundles/JOB, the images to where a download would have left them. The agent
verifies all of it again, for itself, when it takes the job up and before each act.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from edge_agent.config import AgentConfig
from edge_agent.delivery.local_image import URL, place_image
from edge_agent.errors import BadBundle
from edge_agent.safe_files import act_as_owner, sync_folder, write_whole
from edge_agent.trust.metadata_source import BundleSource
from edge_agent.trust.selection import TruckEcus, targets_of
from edge_agent.trust.trust_config import UptaneTrust
from edge_agent.trust.trust_store import read_store, trust_folder
from edge_agent.update.directed import bundles_folder
from shared.messages import CommandTarget
from shared.trust.uptane.matching import Assignment
from shared.trust.uptane.selection import Selection
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import TrustedStore, provision
from shared.trust.uptane.time_policy import Reading
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import verify

IMAGES = "image"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What a bundle brings: its selection, the metadata by "repository/name", and the command's targets."""

    selection: Selection
    files: Mapping[str, bytes]
    targets: tuple[CommandTarget, ...]


def bring(
    config: AgentConfig,
    trust: UptaneTrust,
    device_id: str,
    bundle: Path,
    *,
    job_id: str,
    now: datetime,
    images: Path,
) -> Brought:
    """Verify a bundle, and keep what the job needs of it; all of it is on the disk when this returns.

    What lies in the bundle is opened with the rights of whoever asks; kept it is as the data folder's owner.
    Blocks. Raises BadBundle, TrustError (by the name of what is wrong), NoRoom, ConfigError and OSError.
    """
    brought = look_into(config, trust, device_id, bundle, now=now)
    with ExitStack() as stack:
        opened = [
            (one, stack.enter_context(_open_image(bundle, one))) for one in brought.selection.assignments
        ]
        act_as_owner(config.data_dir)
        for one, file in opened:
            place_image(
                file,
                one.spec,
                images,
                most_stored_bytes=config.downloads.most_stored_bytes,
                margin_bytes=config.downloads.free_margin_bytes,
            )
    _keep(bundles_folder(config.data_dir), job_id, brought.files)
    return brought


def look_into(
    config: AgentConfig, trust: UptaneTrust, device_id: str, bundle: Path, *, now: datetime
) -> Brought:
    """What a bundle brings to this truck, verified as of `now`; nothing is written. Blocks.

    Of the ECUs it is taken that they run the newest that they ever ran: the agent asks them.
    """
    if not bundle.is_dir():
        raise BadBundle(f"{bundle} is no folder")
    store = _trusted(config, trust)
    ecus = TruckEcus.of(config.components, trust)
    vehicle = Vehicle(
        vehicle_id=device_id,
        ecus=tuple(
            Ecu(
                serial=one.serial,
                kind=one.kind,
                hardware=one.hardware,
                installed_counter=store.counters.get(one.serial),
            )
            for one in ecus.ecus
        ),
    )
    files: dict[str, bytes] = {}
    outcome = drive(
        verify(store, vehicle, Reading(wall=now), trust.policy, offline=True),
        _reading(BundleSource(folder=bundle), files),
    )
    if outcome.refused is not None:
        raise outcome.refused
    if outcome.selection is None:
        raise BadBundle(f"{bundle} brings nothing for the ECUs of {device_id}")
    made = targets_of(outcome.selection, ecus, url_of=lambda _: URL)
    targets = tuple(
        CommandTarget(
            component=one.component,
            version=one.spec.version,
            sha256=one.spec.sha256,
            length=one.spec.length,
            # The signed metadata have it.
            document="",
            url=one.url,
        )
        for one in made
    )
    return Brought(selection=outcome.selection, files=files, targets=targets)


def _trusted(config: AgentConfig, trust: UptaneTrust) -> TrustedStore:
    """The truck's store; of a truck whose agent never ran, what it will be. Raises StoreUnreadable."""
    try:
        return read_store(trust_folder(config.data_dir))
    except FileNotFoundError:
        return provision(director_root=trust.roots.director, image_root=trust.roots.image)


def _reading(source: BundleSource, files: dict[str, bytes]) -> Callable[[Wanted], bytes | None]:
    def fetch(wanted: Wanted) -> bytes | None:
        raw = source.read(wanted)
        if raw is not None:
            files[f"{wanted.repository}/{wanted.name}"] = raw
        return raw

    return fetch


def _open_image(bundle: Path, one: Assignment) -> BinaryIO:
    """An image of the bundle, a regular file. Raises BadBundle."""
    path = bundle / IMAGES / one.served_name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadBundle(f"the image {path} can't be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadBundle(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def _keep(folder: Path, job_id: str, files: Mapping[str, bytes]) -> None:
    """The whole or nothing, under the job's id."""
    part = folder / f".{job_id}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name, raw in sorted(files.items()):
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, raw)
        for one in (part, *(path for path in part.rglob("*") if path.is_dir())):
            sync_folder(one)
        part.rename(folder / job_id)
        sync_folder(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
