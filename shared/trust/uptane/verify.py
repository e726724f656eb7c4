"""Full verification on the truck (Uptane Standard 2.1.0, 5.4.4.2), pure: drive it with steps.drive.

Beyond the Standard: both root chains are followed before anything is judged; the whole is verified
every time, never cut short because a snapshot is known already, since what failed half-way last time
must be judged again (files are cached by their listed hash, so nothing is downloaded twice); the
release document is fetched and checked as part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tuf.api.metadata import TargetFile

from shared.trust.uptane.delegation import Search
from shared.trust.uptane.errors import BadReleaseDocument, MetadataRefused
from shared.trust.uptane.matching import (
    SignedImage,
    check_bundle,
    check_image_target,
    check_same,
    read_directed,
    served_name,
)
from shared.trust.uptane.offline import check_offline
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, ReleaseSpec, read_release
from shared.trust.uptane.repository_check import check_repository, needed
from shared.trust.uptane.root_chain import update_root
from shared.trust.uptane.selection import Selection
from shared.trust.uptane.steps import Run, Steps, Wanted
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.vehicle import Vehicle

_RELEASE = "image/release"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a verification ended. `store` is to be kept in any case: it holds only what verified.

    `selection` is None when there is nothing to install, or when it was refused: then `refused` says
    why. `clock_behind`: the truck's clock reads less than what was signed already.
    """

    store: TrustedStore
    selection: Selection | None = None
    refused: MetadataRefused | None = None
    clock_behind: bool = False


def verify(
    store: TrustedStore, vehicle: Vehicle, reading: Reading, policy: TimePolicy, *, offline: bool = False
) -> Steps[Outcome]:
    """Verify both repositories and what they select for `vehicle`. Never raises MetadataRefused.

    `offline`: from a USB bundle, whose selection is signed by the director's offline role.
    """
    run = Run(store=store, reading=reading, policy=policy, offline=offline)
    try:
        selection = yield from _verify(run, vehicle)
    except MetadataRefused as refused:
        return Outcome(store=run.store, refused=refused, clock_behind=run.clock_behind())
    return Outcome(store=run.store, selection=selection, clock_behind=run.clock_behind())


def _verify(run: Run, vehicle: Vehicle) -> Steps[Selection | None]:
    director_root = yield from update_root(run, "director")
    image_root = yield from update_root(run, "image")
    if run.offline:
        targets = yield from check_offline(run, director_root, vehicle.vehicle_id)
    else:
        director = yield from check_repository(run, "director", director_root)
        targets = director.targets
    release_target, directed = read_directed(targets, vehicle)
    image = yield from check_repository(run, "image", image_root)
    # A timestamp may have shown that the clock was behind, and what was read before it over.
    run.check_expiries()
    if release_target is None:
        return None
    search = Search(run=run, current=image)
    release = yield from _release(search, release_target)
    images: dict[str, SignedImage] = {}
    for one in directed:
        entry = yield from search.find(one.path, one.hardware)
        found = check_image_target(one, entry, run.store.counters)
        images.update({ecu.serial: found for ecu in one.ecus})
    assignments = check_bundle(release, images, vehicle)
    if not assignments:
        return None
    return Selection(release=release, assignments=assignments, expires=min(run.expiries.values()))


def _release(search: Search, directed: TargetFile) -> Steps[ReleaseSpec]:
    entry = yield from search.find(directed.path, frozenset())
    check_same(directed.path, directed, entry)
    if entry.length > MOST_RELEASE_BYTES:
        raise BadReleaseDocument(_RELEASE, f"{entry.length} bytes, at most {MOST_RELEASE_BYTES} are read")
    wanted = Wanted(
        repository="image",
        name=served_name(entry.path, entry.hashes["sha256"]),
        most_bytes=entry.length,
        sha256=entry.hashes["sha256"],
    )
    raw = needed((yield wanted), wanted, _RELEASE)
    if len(raw) != entry.length or hashlib.sha256(raw).hexdigest() != entry.hashes["sha256"]:
        raise BadReleaseDocument(_RELEASE, "these are not the bytes that were signed")
    release = read_release(raw)
    if release.target_path != directed.path:
        raise BadReleaseDocument(_RELEASE, f"it is named {directed.path!r}, it says {release.target_path!r}")
    return release
