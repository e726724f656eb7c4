"""PURE: the command as the truck gets it, built at the moment when it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from control_plane.dispatcher.service import Outgoing
from control_plane.firmware.deltas import DeltaRecord
from shared.messages import Command, CommandKind, CommandTarget, Delta, Feature

REQUIRES: dict[CommandKind, tuple[Feature, ...]] = {
    CommandKind.INSTALL: (Feature.INSTALL,),
    CommandKind.URL: (Feature.FRESH_URL,),
    CommandKind.CANCEL: (Feature.CANCEL,),
}


MOST_DOCUMENTS_BYTES = 32 * 1024
"""Of a release's ECU documents in its command, which has at most 128 KiB: above it they are left out, since
the truck has them from the signed metadata anyway."""
MOST_DELTAS_BYTES = 24 * 1024
"""Of offers of deltas; where an address is long, not all of a large release's fit."""


def build_command(out: Outgoing, *, url_of: Callable[[str], str], expires_at: datetime) -> Command:
    """The command of a row. `url_of` signs the address of a file, by its SHA-256.

    A delta is an offer: nothing of it is in `requires`.
    """
    row = out.row
    targets: tuple[CommandTarget, ...] = ()
    documents = out.documents
    if out.job.release_path is not None and sum(map(len, documents.values())) > MOST_DOCUMENTS_BYTES:
        documents = {}
    if row.kind is not CommandKind.CANCEL:
        deltas = _deltas(out.deltas, url_of)
        targets = tuple(
            CommandTarget(
                component=target.component,
                version=target.version,
                sha256=target.sha256,
                length=target.length,
                document=documents.get(target.sha256, b"").decode(),
                url=url_of(target.sha256),
                delta=deltas.get(target.component),
            )
            for target in out.job.targets
        )
    return Command(
        command_id=row.command_id,
        job_id=row.job_id,
        attempt=row.attempt,
        revision=row.revision,
        kind=row.kind,
        requires=_requires(out),
        # A stop is never out of date.
        expires_at=None if row.kind is CommandKind.CANCEL else expires_at,
        targets=targets,
    )


def _deltas(records: Mapping[str, DeltaRecord], url_of: Callable[[str], str]) -> dict[str, Delta]:
    """What is offered, by component: what spares the most comes first where not all fit."""
    offered: dict[str, Delta] = {}
    left = MOST_DELTAS_BYTES
    for component, one in sorted(records.items(), key=lambda item: item[1].length - item[1].image_length):
        delta = Delta(
            base_sha256=one.base_sha256,
            url=url_of(one.delta_sha256),
            length=one.length,
            sha256=one.delta_sha256,
            format=one.format,
        )
        left -= len(delta.to_json())
        if left < 0:
            break
        offered[component] = delta
    return offered


def _requires(out: Outgoing) -> tuple[Feature, ...]:
    """A release is chosen by signed metadata, a firmware by its signed document."""
    plain = REQUIRES[out.row.kind]
    match out.row.kind, out.job.release_path:
        case CommandKind.INSTALL, None:
            return (*plain, Feature.DOC_ED25519)
        case CommandKind.INSTALL, _:
            return (*plain, Feature.RELEASE, Feature.UPTANE)
        case CommandKind.URL, str():
            return (*plain, Feature.UPTANE)
        case _:
            return plain
