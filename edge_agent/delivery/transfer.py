"""Takes the bytes of one file over the truck's links: Range, budgets, pace, and what an answer may be.

The links are tried in the configured order. Never more bytes are taken than were signed; what an
office's own word shows to be another image is WrongImage, what may be anybody's on the way is LinkLost.
"""

from __future__ import annotations

import re
import ssl
import time
from asyncio import sleep as pause
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import httpx

from edge_agent.addresses import check_safe, through
from edge_agent.delivery import image_folder
from edge_agent.delivery.budget import Booking, Budget
from edge_agent.delivery.links import ANY_WAY, Pace, Way, client_of
from edge_agent.delivery.local_files import is_local, open_local
from edge_agent.errors import LinkLost, NotGiven, OverBudget, TooSlow, UrlExpired
from edge_agent.threads import finish_in_thread
from shared.trust.document import WrongImage

Tls: TypeAlias = ssl.SSLContext | bool
OnBytes = Callable[[int, int], None]
"""Takes (bytes on the disk, bytes in all)."""

CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0
LEAST_BYTES_PER_S = 64.0
SLOW_AFTER_S = 300.0
"""Who brings less for so long is left: a byte now and then would keep the time-out quiet for ever."""
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One file that is wanted, for whom, and what must stay on the disk meanwhile."""

    url: str
    sha256: str
    length: int
    keep: frozenset[str]
    job_id: str
    urgent: bool
    progress: OnBytes


@dataclass(frozen=True, kw_only=True)
class OurOffice:
    """The office's image repository below `base`, which gives images to who shows this truck's token."""

    base: str
    token: str = field(repr=False)

    def headers(self, address: httpx.URL) -> dict[str, str]:
        """The token for an address of the repository, and for no other: not its host, nor its port."""
        ours = httpx.URL(self.base.rstrip("/") + "/repo/image/")
        same = (address.scheme, address.host, _port(address)) == (ours.scheme, ours.host, _port(ours))
        below = address.path.startswith(ours.path) and ".." not in address.path.split("/")
        if not same or address.userinfo or not below:
            return {}
        return {"Authorization": f"Bearer {self.token}"}


def _port(address: httpx.URL) -> int:
    return address.port or (443 if address.scheme == "https" else 80)


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the truck reaches its office. `tls` that can be called is asked, in a thread, at each download: a
    time that was proved meanwhile changes what certificates are good.

    `origin`, when given, replaces scheme, host and port of every URL: for a truck that reaches the
    office through a relay. `ways` are its links, the best first; `budget` bounds what they carry, and
    `bytes_per_s` how fast. `proxy` is the only proxy: the environment names none. `local_folders`: where
    `file:` addresses may point. `office`: where the trust chain's images come from that no command has an
    address of.
    """

    tls: Tls | Callable[[], Tls] = True
    allow_plain: bool = False
    origin: str | None = None
    idle_timeout_s: float = IDLE_TIMEOUT_S
    ways: tuple[Way, ...] = (ANY_WAY,)
    budget: Budget | None = None
    bytes_per_s: float | None = None
    proxy: httpx.Proxy | None = None
    local_folders: Collection[Path] = ()
    office: OurOffice | None = None


class Transfer:
    """The links."""

    def __init__(self, network: Network, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._network = network
        self._budget = network.budget
        self._pace = Pace(network.bytes_per_s)
        self._clock = clock
        self._timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=network.idle_timeout_s)

    async def receive(self, ask: Ask, part: Path, have: int, tell: Thinned) -> int:
        """Append what is missing behind the `have` bytes of a part; returns at which byte the answer began.

        The first link that is there and may carry it does. Raises LinkLost (NotGiven where the office says
        no), OverBudget, UrlExpired and WrongImage (the office itself says that it has another image).
        """
        if is_local(ask.url) and self._network.local_folders:
            with await finish_in_thread(
                open_local, ask.url, self._network.local_folders, length=ask.length
            ) as file:
                await finish_in_thread(image_folder.copy_in, file, part, length=ask.length)
            return 0
        url = through(ask.url, self._network.origin)
        address = check_safe(url, allow_plain=self._network.allow_plain, what="the image's address")
        lost: list[str] = []
        dear: list[str] = []
        tls = self._network.tls
        tls = await finish_in_thread(tls) if callable(tls) else tls
        for way in self._network.ways:
            if not way.is_up():
                lost.append(f"{way.name} is down")
                continue
            booking = await self._booking(ask, way, have, dear)
            if booking is None:
                continue
            job = _Job(part=part, length=ask.length, have=have, tell=tell)
            try:
                async with client_of(
                    way, tls=tls, timeout=self._timeout, proxy=self._network.proxy
                ) as client:
                    return await self._receive_over(client, address, booking, job)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                lost.append(f"{way.name}: {type(error).__name__}: {error}")
            except httpx.HTTPError as error:
                raise LinkLost(f"the download broke: {type(error).__name__}: {error}") from error
            except OverBudget as error:
                dear.append(error.message)
                have = await finish_in_thread(image_folder.size_of, part)
            finally:
                await booking.close()
        if lost:
            raise LinkLost(f"no link carries the download: {'; '.join([*lost, *dear])}")
        raise OverBudget("; ".join(dear))

    async def _booking(self, ask: Ask, way: Way, have: int, dear: list[str]) -> Booking | None:
        """Who counts the bytes; None, with the reason in `dear`, when this link may not carry them."""
        missing = ask.length - have
        if way.image_bytes is not None and missing > way.image_bytes and not ask.urgent:
            dear.append(f"{missing} bytes are missing, {way.name} carries downloads of {way.image_bytes}")
            return None
        if self._budget is not None and not ask.urgent:
            try:
                self._budget.check(job_id=ask.job_id, link=way.name)
            except OverBudget as error:
                dear.append(error.message)
                return None
        return Booking(self._budget, job_id=ask.job_id, link=way.name, free=ask.urgent)

    async def _receive_over(
        self, client: httpx.AsyncClient, address: httpx.URL, booking: Booking, job: _Job
    ) -> int:
        headers = {"Accept-Encoding": "identity"}
        if self._network.office is not None:
            headers |= self._network.office.headers(address)
        if job.have:
            headers["Range"] = f"bytes={job.have}-"
        async with client.stream("GET", address, headers=headers) as answer:
            begun_at = await self._judge_answer(answer, job.part, job.length, asked_at=job.have)
            await self._write(answer, booking, job, begun_at)
            return begun_at

    async def _judge_answer(self, answer: httpx.Response, part: Path, length: int, *, asked_at: int) -> int:
        """At which byte of the image the answer's body begins. Raises when it is not a body of it."""
        match answer.status_code:
            case 200 | 206:
                pass
            case 403:
                raise UrlExpired("the office no longer takes this URL (403)")
            case 416:
                _, _, total = _content_range(answer)
                if total is not None and total < length:
                    raise WrongImage(f"the office's image has {total} bytes, {length} were signed")
                if asked_at:
                    await finish_in_thread(part.unlink)
                raise LinkLost("the office can't continue this download (416); it starts afresh")
            case status:
                raise NotGiven(f"the office answered {status} for the image", gone=status in {404, 410})
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise LinkLost("something on the way packed the image; it can't be continued")
        if answer.status_code == 206:
            begin, _, total = _content_range(answer)
            if total is not None and total != length:
                raise WrongImage(f"the office's image has {total} bytes, {length} were signed")
            if begin != asked_at:
                raise LinkLost(f"asked for bytes from {asked_at}, the office sends from {begin}")
            return asked_at
        if answer.headers.get("content-type", "").startswith("text/html"):
            raise LinkLost("a web page came instead of the image: something on the way wants a log-in")
        said = answer.headers.get("content-length", "")
        if said.isdigit() and int(said) != length:
            raise WrongImage(f"the office's image has {said} bytes, {length} were signed")
        return 0

    async def _write(self, answer: httpx.Response, booking: Booking, job: _Job, begun_at: int) -> None:
        """Append the body to the part. Raises WrongImage at the first byte too many."""
        part, length, tell = job.part, job.length, job.tell
        file = await finish_in_thread(image_folder.open_part, part, begun_at)
        done = seen = begun_at
        seen_at = self._clock()
        try:
            # Chunks as they come: a buffer would lose its content at each break of a slow link.
            async for chunk in answer.aiter_raw():
                if done + len(chunk) > length:
                    raise WrongImage(f"the image is longer than the {length} bytes that were signed")
                await booking.take(len(chunk))
                await finish_in_thread(image_folder.write_all, file, chunk)
                done += len(chunk)
                tell(done, last=False)
                # Not read meanwhile: the window of TCP closes, and the office waits.
                await pause(self._pace.delay_s(len(chunk), self._clock()))
                passed = self._clock() - seen_at
                if passed >= SLOW_AFTER_S:
                    if done - seen < LEAST_BYTES_PER_S * passed and done < length:
                        raise TooSlow(f"{done - seen} bytes of the image came in {passed:.0f} s")
                    seen, seen_at = done, seen_at + passed
        except httpx.HTTPError:
            # Nothing is missing: whether the office closes well is its own matter.
            if done < length:
                raise
        finally:
            await finish_in_thread(file.close)
        if done == length:
            return
        if begun_at == 0 and answer.headers.get("transfer-encoding", "").lower() == "chunked":
            raise WrongImage(f"the office's image ends after {done} bytes, {length} were signed")
        raise LinkLost(f"the download ended after {done} of {length} bytes")


class Thinned:
    """Progress at most once in `every_s` and once a percent; the last word always."""

    def __init__(self, progress: OnBytes, length: int, every_s: float, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._length = length
        self._every_s = every_s
        self._clock = clock
        self._told_at = float("-inf")
        self._told_percent = -1

    def __call__(self, done: int, *, last: bool) -> None:
        percent = done * 100 // self._length
        now = self._clock()
        if last or (percent != self._told_percent and now - self._told_at >= self._every_s):
            self._told_at, self._told_percent = now, percent
            self._progress(done, self._length)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One request's part: grows from `have` to `length` bytes."""

    part: Path
    length: int
    have: int
    tell: Thinned


def _content_range(answer: httpx.Response) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and total of a Content-Range (RFC 9110, 14.4); None for what is not said."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if found is None:
        return None, None, None
    begin, end, total = (int(one) if one and one != "*" else None for one in found.groups())
    return begin, end, total
