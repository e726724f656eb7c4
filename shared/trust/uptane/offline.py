"""The selection in a USB bundle: director targets of one truck, signed by the director's offline role.

It stands for the director's timestamp, snapshot and targets where there is no link: same content,
same checks, but signed offline by its own threshold, good for 90 days at most, and with a version that
never goes down. Its expiry also stands for the freshness of the image repository's timestamp and
snapshot, which a truck without a link can't renew; their versions are checked all the same.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
from tuf.api.metadata import Root, Targets

from shared.trust.uptane.errors import RolledBack, Unreadable
from shared.trust.uptane.repository_check import needed, signed_at
from shared.trust.uptane.roles import MOST_DIRECTOR_TARGETS_BYTES, check_signatures, payload_of, read
from shared.trust.uptane.side_roles import OFFLINE, side_role
from shared.trust.uptane.steps import Run, Steps, Wanted

MOST_LIFE = timedelta(days=90)
WHERE = "director/offline"


def offline_file(vehicle_id: str) -> str:
    """Its name in a bundle, below the director's folder."""
    return f"offline/{vehicle_id}.json"


def check_offline(run: Run, root: Root, vehicle_id: str) -> Steps[Targets]:
    """The bundle's selection for this truck. Raises MetadataRefused."""
    run.check_expiry("director/root", root.expires)
    wanted = Wanted(
        repository="director", name=offline_file(vehicle_id), most_bytes=MOST_DIRECTOR_TARGETS_BYTES
    )
    raw = needed((yield wanted), wanted, WHERE)
    metadata = read(raw, Targets, WHERE, MOST_DIRECTOR_TARGETS_BYTES)
    payload = payload_of(metadata, WHERE)
    check_signatures(side_role(root, OFFLINE, WHERE), root.keys, payload, metadata.signatures, WHERE)
    targets = metadata.signed
    if targets.version < run.store.offline:
        raise RolledBack(WHERE, f"version {targets.version}, {run.store.offline} was trusted")
    at = signed_at(targets, WHERE)
    if targets.expires - at > MOST_LIFE:
        raise Unreadable(WHERE, f"good for {(targets.expires - at).days} days, at most {MOST_LIFE.days}")
    run.signed_times[WHERE] = at
    run.check_expiry(WHERE, targets.expires)
    run.store = msgspec.structs.replace(run.store, offline=targets.version)
    run.keep_times()
    return targets
