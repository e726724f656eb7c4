"""PURE: the command as the truck gets it, built at the moment when it is sent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from control_plane.dispatcher.service import Outgoing
from shared.messages import Command, CommandKind, CommandTarget, Feature

REQUIRES: dict[CommandKind, tuple[Feature, ...]] = {
    CommandKind.INSTALL: (Feature.INSTALL, Feature.DOC_ED25519),
    CommandKind.URL: (Feature.FRESH_URL,),
    CommandKind.CANCEL: (Feature.CANCEL,),
}


def build_command(out: Outgoing, *, url_of: Callable[[str], str], expires_at: datetime) -> Command:
    """The command of a row. `url_of` signs the address of an image, by its SHA-256."""
    row = out.row
    targets: tuple[CommandTarget, ...] = ()
    if row.kind is not CommandKind.CANCEL:
        targets = tuple(
            CommandTarget(
                component=target.component,
                version=target.version,
                sha256=target.sha256,
                length=target.length,
                document=out.firmwares[target.firmware_id].document.decode(),
                url=url_of(target.sha256),
            )
            for target in out.job.targets
        )
    return Command(
        command_id=row.command_id,
        job_id=row.job_id,
        attempt=row.attempt,
        revision=row.revision,
        kind=row.kind,
        requires=REQUIRES[row.kind],
        # A stop is never out of date.
        expires_at=None if row.kind is CommandKind.CANCEL else expires_at,
        targets=targets,
    )
