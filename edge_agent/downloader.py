"""Brings an image to the truck's disk over a link that is slow and often gone.

`DATA/images/<sha256>.part` grows while the image comes and becomes `<sha256>.bin` when it is whole,
its hash is right, and it is safe on the disk. The size of the part is the progress: it outlives the
process, and the next try asks only for what is missing (RFC 9110, 14: Range). The hash is taken of what
lies on the disk in the end, never of what went by, for a power cut may have left anything there.

Never more bytes are taken than were signed; the folder is bounded; one download runs at a time.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Self

import httpx

from edge_agent.addresses import check_safe, through
from edge_agent.errors import LinkLost, NoRoom, UrlExpired
from edge_agent.threads import finish_in_thread
from shared.logs import get_log
from shared.trust.document import WrongImage

log = get_log("edge_agent.downloader")

OnBytes = Callable[[int, int], None]
"""Takes (bytes on the disk, bytes in all)."""

MARGIN_BYTES = 16 * 1024 * 1024
"""Left free on the disk beside an image: the journal must always find room."""
MOST_STORED_BYTES = 512 * 1024 * 1024
CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Part(StrEnum):
    """What lies on the disk of an image."""

    ABSENT = "absent"
    SHORT = "short"  # may be continued
    TOO_LONG = "too_long"
    WRONG = "wrong"  # the length is right, the hash is not
    GOOD = "good"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file judged: `size` in bytes; `sha256` of its content when its length is right."""

    part: Part
    size: int = 0
    sha256: str = ""


def judge(path: Path, *, sha256: str, length: int) -> Found:
    """Look at a file that should become the image; blocks while it reads."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != length:
                return Found(part=Part.SHORT if size < length else Part.TOO_LONG, size=size)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return Found(part=Part.ABSENT)
    return Found(part=Part.GOOD if digest == sha256 else Part.WRONG, size=size, sha256=digest)


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write where `folder` is."""
    return shutil.disk_usage(folder).free


class Downloader:
    """The image folder and the way to fill it, as a resource.

    `origin`, when given, replaces scheme, host and port of every URL: for a truck that reaches the
    office through a relay. `free` and `clock` are there so that tests can make disks full and time
    pass.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: ssl.SSLContext | bool = True,
        allow_plain: bool = False,
        origin: str | None = None,
        most_stored_bytes: int = MOST_STORED_BYTES,
        margin_bytes: int = MARGIN_BYTES,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        progress_every_s: float = 1.0,
        free: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._allow_plain = allow_plain
        self._origin = origin
        self._most_stored = most_stored_bytes
        self._margin = margin_bytes
        self._progress_every_s = progress_every_s
        self._free = free
        self._clock = clock
        self._busy = False
        self._client = httpx.AsyncClient(
            verify=tls,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=idle_timeout_s),
            limits=httpx.Limits(max_connections=2, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def path_of(self, sha256: str) -> Path:
        """Where the whole image is, once it is there."""
        if not _SHA256.fullmatch(sha256):
            raise WrongImage(f"{sha256[:80]!r} is no SHA-256: there can't be such an image")
        return self._folder / f"{sha256}.bin"

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        length: int,
        keep: Collection[str] = (),
        progress: OnBytes = lambda _done, _total: None,
    ) -> Path:
        """Bring the image of this hash and length (bytes) to the disk; returns its path.

        Goes on where an earlier call stopped, also one of an earlier process. Images whose hashes are
        in `keep` are never removed to make room. `progress` is called at the begin, at the end, and
        between them when a second has passed and another percent has come.

        Raises LinkLost (try again later), UrlExpired (ask for a fresh URL), NoRoom, and WrongImage
        when the office's bytes are not the signed ones.
        """
        if self._busy:
            raise RuntimeError("one download runs at a time")
        self._busy = True
        try:
            return await self._fetch(url, sha256, length, frozenset(keep) | {sha256}, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoom(f"the disk of {self._folder} is full: {error}") from error
            raise
        finally:
            self._busy = False

    async def _fetch(
        self, url: str, sha256: str, length: int, keep: frozenset[str], progress: OnBytes
    ) -> Path:
        whole = self.path_of(sha256)
        part = whole.with_suffix(".part")
        doubt = whole.with_suffix(".doubt")
        if await self._settled(whole, sha256, length):
            progress(length, length)
            return whole
        found = await finish_in_thread(judge, part, sha256=sha256, length=length)
        if found.part in (Part.TOO_LONG, Part.WRONG):
            log.warning("download.part_dropped", sha256=sha256, was=found.part, bytes=found.size)
            await finish_in_thread(part.unlink)
            found = Found(part=Part.ABSENT)
        if found.part is not Part.GOOD:
            await finish_in_thread(self._make_room, length, found.size, keep)
            tell = _Thinned(progress, length, self._progress_every_s, self._clock)
            tell(found.size, last=False)
            try:
                begun_at = await self._receive(through(url, self._origin), part, length, found, tell)
            except WrongImage:
                await finish_in_thread(_drop, part, doubt)
                raise
            found = await finish_in_thread(judge, part, sha256=sha256, length=length)
            if found.part is not Part.GOOD:
                await self._refuse(found, part, doubt, begun_at=begun_at, sha256=sha256, length=length)
            tell(length, last=True)
        await finish_in_thread(_settle, part, whole, doubt)
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
        await finish_in_thread(_drop, part, doubt)
        raise WrongImage(f"the image of {length} bytes has SHA-256 {found.sha256}, {sha256} was signed")

    async def _receive(self, url: str, part: Path, length: int, found: Found, tell: _Thinned) -> int:
        """Fetch what is missing; returns at which byte the answer began.

        Raises LinkLost, UrlExpired and WrongImage (the office itself says that it has another image).
        """
        address = check_safe(url, allow_plain=self._allow_plain, what="the image's address")
        headers = {"Accept-Encoding": "identity"}
        if found.size:
            headers["Range"] = f"bytes={found.size}-"
        try:
            async with self._client.stream("GET", address, headers=headers) as answer:
                begun_at = await self._judge_answer(answer, part, length, asked_at=found.size)
                await self._write(answer, part, length, begun_at, tell)
                return begun_at
        except httpx.HTTPError as error:
            raise LinkLost(f"the download broke: {type(error).__name__}: {error}") from error

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
                raise LinkLost(f"the office answered {status} for the image")
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

    async def _write(
        self, answer: httpx.Response, part: Path, length: int, begun_at: int, tell: _Thinned
    ) -> None:
        """Append the body to the part. Raises WrongImage at the first byte too many."""
        file = await finish_in_thread(_open_part, part, begun_at)
        done = begun_at
        try:
            # Chunks as they come: a buffer would lose its content at each break of a slow link.
            async for chunk in answer.aiter_raw():
                if done + len(chunk) > length:
                    raise WrongImage(f"the image is longer than the {length} bytes that were signed")
                await finish_in_thread(_write_all, file, chunk)
                done += len(chunk)
                tell(done, last=False)
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

    def _make_room(self, length: int, have: int, keep: frozenset[str]) -> None:
        """Remove the oldest images that nobody needs until this one fits. Raises NoRoom."""
        stored = []
        for path in self._folder.iterdir():
            if path.suffix in (".bin", ".part", ".doubt"):
                stat = path.stat()
                stored.append((stat.st_mtime, path, stat.st_size))
        used = sum(size for _, _, size in stored)
        missing = length - have
        unneeded = sorted(one for one in stored if one[1].stem not in keep)

        def fits() -> bool:
            return used + missing <= self._most_stored and self._free(self._folder) >= missing + self._margin

        while not fits() and unneeded:
            _, path, size = unneeded.pop(0)
            path.unlink()
            used -= size
            log.info("download.image_removed", file=path.name, bytes=size)
        if not fits():
            raise NoRoom(
                f"{missing} more bytes are needed in {self._folder} beside {self._margin} that stay free; "
                f"{self._free(self._folder)} are free, images may take {self._most_stored}, they take {used}"
            )


class _Thinned:
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


def _content_range(answer: httpx.Response) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and total of a Content-Range (RFC 9110, 14.4); None for what is not said."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if found is None:
        return None, None, None
    begin, end, total = (int(one) if one and one != "*" else None for one in found.groups())
    return begin, end, total


def _open_part(part: Path, at: int) -> FileIO:
    """The part, open for writing from byte `at`; what lies behind is cut off. Unbuffered."""
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = FileIO(descriptor, "wb")
    file.truncate(at)
    file.seek(at)
    return file


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _drop(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _settle(part: Path, whole: Path, doubt: Path) -> None:
    """Give the part its final name, so that a power cut leaves either name with all its bytes."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(whole)
    doubt.unlink(missing_ok=True)
    descriptor = os.open(whole.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
