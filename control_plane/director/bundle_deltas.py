"""The deltas of a bundle: nobody signed them, so each is tried, and a bad one harms nothing but itself."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Mapping

from control_plane.director.bundle import Bundle
from control_plane.errors import OfficeError
from control_plane.firmware.deltas import DeltaService
from control_plane.storage.incoming import Incoming
from shared.logs import get_log

log = get_log("control_plane.director")

ALL_WITHIN_S = 120.0
"""What is left then is taken with the next upload: whoever sends a bundle waits for it."""
_NAME = re.compile(r"deltas/([0-9a-f]{64})\.([0-9a-f]{64})")


async def take_deltas(
    tar: Bundle, deltas: DeltaService, incoming: Incoming, images: Mapping[str, int], *, by: str
) -> int:
    """Keep the deltas `deltas/FROM.TO` that lead to `images` (SHA-256 to bytes); returns how many are new.

    One that can't be kept is logged; it never refuses the bundle, whose images are taken in by now.
    """
    found = {
        (match[1], match[2]): name
        for name in tar.members
        if (match := _NAME.fullmatch(name)) is not None and match[2] in images
    }
    known = await deltas.known(found)
    until = time.monotonic() + ALL_WITHIN_S
    taken = 0
    for pair, name in sorted(found.items()):
        if pair in known or (tar.size(name) or 0) >= images[pair[1]]:
            continue
        if time.monotonic() > until:
            log.warning("director.deltas_left", taken=taken, of=len(found))
            break
        try:
            async with incoming.file() as part:
                await asyncio.to_thread(tar.extract, name, part)
                _, is_new = await deltas.take(part, base_sha256=pair[0], sha256=pair[1], by=by)
        except (OfficeError, OSError) as error:
            log.warning("director.delta_not_taken", base_sha256=pair[0], sha256=pair[1], why=str(error))
            continue
        taken += is_new
    return taken


async def forget_deltas(deltas: DeltaService, withdrawn: Collection[str]) -> None:
    """What leads to images that are not signed any more goes; a failure is logged."""
    for sha256 in sorted(withdrawn):
        try:
            await deltas.forget(sha256)
        except OfficeError as error:
            log.warning("director.deltas_not_forgotten", sha256=sha256, why=error.message)
