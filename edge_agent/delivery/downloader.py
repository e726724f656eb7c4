"""Brings an image to the truck's disk over links that are slow, dear and often gone.

`DATA/images/<sha256>.part` grows while the image comes and becomes `<sha256>.bin` when it is whole,
its hash is right, and it is safe on the disk. The size of the part is the progress: it outlives the
process, and the next try asks only for what is missing (RFC 9110, 14: Range). The hash is taken of what
lies on the disk in the end, never of what went by, for a power cut may have left anything there.

Never more bytes are taken than were signed; the folder is bounded; one download runs at a time. Links
are tried in the configured order, each within its budget; where a delta is offered and its base is here,
it is fetched instead, and the whole image when anything is wrong with it.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from edge_agent.addresses import UnsafeAddress
from edge_agent.delivery import image_folder
from edge_agent.delivery.image_folder import Found, Part, Room, free_bytes, judge
from edge_agent.delivery.transfer import Ask, Network, OnBytes, Thinned, Transfer
from edge_agent.errors import LinkLost, NoRoom, NotGiven, UrlExpired
from edge_agent.safe_files import make_folder
from edge_agent.threads import finish_in_thread
from shared.delta import FORMAT, DeltaBroken
from shared.logs import get_log
from shared.messages import Delta
from shared.since_310 import Self
from shared.trust.document import WrongImage

log = get_log("edge_agent.downloader")

MARGIN_BYTES = 16 * 1024 * 1024
"""Left free on the disk beside an image: the journal must always find room."""
MOST_STORED_BYTES = 512 * 1024 * 1024
MOST_BAD_DELTAS = 64
MOST_REFUSALS = 3
"""So often a delta may be refused by what may pass (503): a whole image for a hiccup costs more."""
ANY_NETWORK = Network()
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Downloader:
    """The image folder and the way to fill it, as a resource.

    `free` and `clock` are there so that tests can make disks full and time pass.
    """

    def __init__(
        self,
        folder: Path,
        network: Network = ANY_NETWORK,
        *,
        most_stored_bytes: int = MOST_STORED_BYTES,
        margin_bytes: int = MARGIN_BYTES,
        progress_every_s: float = 1.0,
        free: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._room = Room(most_stored=most_stored_bytes, margin=margin_bytes, free=free)
        self._progress_every_s = progress_every_s
        self._clock = clock
        self._transfer = Transfer(network, clock=clock)
        # By the delta's hash: how often it was refused; at MOST_REFUSALS it is not asked for any more.
        self._bad_deltas: dict[str, int] = {}
        self._busy = False

    async def __aenter__(self) -> Self:
        await finish_in_thread(make_folder, self._folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is left open."""

    def path_of(self, sha256: str) -> Path:
        """Where the whole image is, once it is there."""
        if not _SHA256.fullmatch(sha256):
            raise WrongImage(f"{sha256[:80]!r} is no SHA-256: there can't be such an image")
        return self._folder / f"{sha256}.bin"

    async def note_installed(self, component: str, sha256: str) -> None:
        """The component runs this image now: the base of its next delta, kept while there is room."""
        try:
            await finish_in_thread(image_folder.note_base, self._folder, component, sha256)
        except OSError as error:
            log.warning("download.base_not_noted", component=component, why=str(error))

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        length: int,
        keep: Collection[str] = (),
        progress: OnBytes = lambda _done, _total: None,
        job_id: str = "",
        urgent: bool = False,
        delta: Delta | None = None,
    ) -> Path:
        """Bring the image of this hash and length (bytes) to the disk; returns its path.

        Goes on where an earlier call stopped, also one of an earlier process. Images whose hashes are
        in `keep` are never removed to make room. `progress` is called at the begin, at the end, and
        between them when a second has passed and another percent has come. `job_id` is whose budget
        pays; `urgent`: an ECU waits for it that runs nothing, so no budget stops it.

        Raises LinkLost (try again later), UrlExpired (ask for a fresh URL), NoRoom, OverBudget, and
        WrongImage when the office's bytes are not the signed ones.
        """
        if self._busy:
            raise RuntimeError("one download runs at a time")
        self._busy = True
        ask = Ask(
            url=url,
            sha256=sha256,
            length=length,
            keep=frozenset(keep) | {sha256},
            job_id=job_id,
            urgent=urgent,
            progress=progress,
        )
        try:
            if delta is not None and await self._by_delta(ask, delta):
                return self.path_of(sha256)
            return await self._bring(ask)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoom(f"the disk of {self._folder} is full: {error}") from error
            raise
        finally:
            self._busy = False

    async def _by_delta(self, ask: Ask, delta: Delta) -> bool:
        """Make the image out of a base that is here; False: fetch the whole one.

        Raises LinkLost and OverBudget while the delta itself is on its way.
        """
        whole, base = self.path_of(ask.sha256), self.path_of(delta.base_sha256)
        if self._bad_deltas.get(delta.sha256, 0) >= MOST_REFUSALS:
            return False
        if delta.format != FORMAT or delta.sha256 == ask.sha256:
            return False
        if await finish_in_thread(whole.exists):
            return False
        have = await finish_in_thread(image_folder.size_of, whole.with_suffix(".part"))
        if delta.length >= ask.length - have:
            return False
        size = await finish_in_thread(image_folder.size_of, base)
        held = await finish_in_thread(judge, base, sha256=delta.base_sha256, length=size)
        if held.part is not Part.GOOD:
            log.info("delta.base_missing", sha256=ask.sha256, base=delta.base_sha256)
            return False
        made = whole.with_suffix(".made")
        keep = ask.keep | {delta.base_sha256, delta.sha256}
        wanted = replace(ask, url=delta.url, sha256=delta.sha256, length=delta.length, keep=keep)
        try:
            await finish_in_thread(
                image_folder.make_room, self._folder, self._room, ask.length + delta.length, keep
            )
            patch = await self._bring(wanted)
            try:
                await finish_in_thread(
                    image_folder.build, base, patch, made, sha256=ask.sha256, length=ask.length
                )
            except DeltaBroken:
                await finish_in_thread(image_folder.drop, patch)
                raise
        except (DeltaBroken, WrongImage, UrlExpired, NoRoom, NotGiven, UnsafeAddress) as error:
            if isinstance(error, NotGiven) and not error.gone and self._refused(delta.sha256, 1):
                raise
            # A fresh URL is asked for when the whole image's has ended, too.
            log.warning("delta.not_used", sha256=ask.sha256, code=error.code, why=error.message)
            if isinstance(error, DeltaBroken | WrongImage):
                self._refused(delta.sha256, MOST_REFUSALS)
            return False
        leftovers = (patch, whole.with_suffix(".part"), whole.with_suffix(".doubt"))
        await finish_in_thread(image_folder.settle, made, whole, *leftovers)
        ask.progress(ask.length, ask.length)
        log.info("delta.applied", sha256=ask.sha256, bytes=ask.length, fetched=delta.length)
        return True

    def _refused(self, sha256: str, refusals: int) -> bool:
        """Count refusals of a delta; whether it may be asked for again."""
        count = self._bad_deltas.pop(sha256, 0) + refusals
        self._bad_deltas[sha256] = count
        if len(self._bad_deltas) > MOST_BAD_DELTAS:
            del self._bad_deltas[next(iter(self._bad_deltas))]
        return count < MOST_REFUSALS

    async def _bring(self, ask: Ask) -> Path:
        sha256, length = ask.sha256, ask.length
        whole = self.path_of(sha256)
        part = whole.with_suffix(".part")
        doubt = whole.with_suffix(".doubt")
        if await self._settled(whole, sha256, length):
            ask.progress(length, length)
            return whole
        found = await finish_in_thread(judge, part, sha256=sha256, length=length)
        if found.part in (Part.TOO_LONG, Part.WRONG):
            log.warning("download.part_dropped", sha256=sha256, was=found.part, bytes=found.size)
            await finish_in_thread(part.unlink)
            found = Found(part=Part.ABSENT)
        if found.part is not Part.GOOD:
            await finish_in_thread(
                image_folder.make_room, self._folder, self._room, length - found.size, ask.keep
            )
            tell = Thinned(ask.progress, length, self._progress_every_s, self._clock)
            tell(found.size, last=False)
            try:
                begun_at = await self._transfer.receive(ask, part, found.size, tell)
            except WrongImage:
                await finish_in_thread(image_folder.drop, part, doubt)
                raise
            found = await finish_in_thread(judge, part, sha256=sha256, length=length)
            if found.part is not Part.GOOD:
                await self._refuse(found, part, doubt, begun_at=begun_at, sha256=sha256, length=length)
            tell(length, last=True)
        await finish_in_thread(image_folder.settle, part, whole, doubt)
        log.info("download.finished", sha256=sha256, bytes=length)
        return whole

    async def _settled(self, whole: Path, sha256: str, length: int) -> bool:
        """Whether the image is there already; a file that is not it goes away."""
        found = await finish_in_thread(judge, whole, sha256=sha256, length=length)
        if found.part is Part.GOOD:
            await finish_in_thread(os.utime, whole)
            return True
        if found.part is not Part.ABSENT:
            log.warning("download.image_spoiled", sha256=sha256, was=found.part, bytes=found.size)
            await finish_in_thread(whole.unlink)
        return False

    async def _refuse(
        self, found: Found, part: Path, doubt: Path, *, begun_at: int, sha256: str, length: int
    ) -> None:
        """What came is not the image: say so, or try once more from the first byte.

        Bytes that an earlier try left on the disk may have been spoiled there and not by the office,
        so their first failure only starts afresh; the mark of it outlives the process, so that a
        wrong image costs two downloads at the most, however often the link breaks.
        """
        log.warning("download.image_wrong", sha256=sha256, got=found.sha256, resumed_at=begun_at)
        if begun_at > 0 and not doubt.exists():
            await finish_in_thread(doubt.touch, 0o600)
            await finish_in_thread(part.unlink)
            raise LinkLost("what was kept of the image from an earlier try is spoiled; it starts afresh")
        await finish_in_thread(image_folder.drop, part, doubt)
        raise WrongImage(f"the image of {length} bytes has SHA-256 {found.sha256}, {sha256} was signed")
