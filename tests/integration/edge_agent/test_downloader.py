"""Downloads from a real HTTP server over a bad link: every byte right, no byte twice, nothing endless."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge_agent.addresses import UnsafeAddress
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network
from edge_agent.errors import LinkLost, NoRoom, UrlExpired
from shared.trust.document import WrongImage
from sim.link import CHUNK, Link

IMAGE = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(IMAGE).hexdigest()
ROOM = 1 << 40


class Office:
    """A small file server. `image` is served with Range; `script`, when set, answers instead.

    A script gets the first byte asked for and yields the raw answer; `ranges` tells what was asked.
    """

    def __init__(self) -> None:
        self.image = IMAGE
        self.script: Callable[[int], list[bytes]] | None = None
        self.endless: bytes | None = None
        self.silent = False
        self.ranges: list[int] = []
        self.headers: list[dict[str, str]] = []
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Office:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.port}/files/{SHA256}?expires=1&sig=2"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value for name, value in lines}
            self.headers.append(headers)
            begin = int(headers["range"].removeprefix("bytes=").rstrip("-")) if "range" in headers else 0
            self.ranges.append(begin)
            for block in self.script(begin) if self.script else self._file(begin, "range" in headers):
                writer.write(block)
                await writer.drain()
            if self.silent:
                await reader.read()
            while self.endless is not None:
                writer.write(self.endless)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    def _file(self, begin: int, ranged: bool) -> list[bytes]:
        total = len(self.image)
        if begin >= total:
            return [head(416, f"content-range: bytes */{total}", "content-length: 0")]
        if ranged:
            span = f"content-range: bytes {begin}-{total - 1}/{total}"
            return [head(206, span, f"content-length: {total - begin}"), self.image[begin:]]
        return [head(200, f"content-length: {total}"), self.image]


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *headers, "connection: close", "", ""]).encode()


def chunked(body: bytes, *, end: bool) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if end else b"")


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    async with Office() as running:
        yield running


@pytest.fixture
async def downloader(tmp_path: Path) -> AsyncIterator[Downloader]:
    async with Downloader(
        tmp_path / "images", Network(tls=False), progress_every_s=0, free=lambda _: ROOM
    ) as made:
        yield made


async def fetch(downloader: Downloader, url: str, **more: object) -> Path:
    return await downloader.fetch(url, sha256=SHA256, length=len(IMAGE), **more)  # type: ignore[arg-type]


def part(tmp_path: Path) -> Path:
    return tmp_path / "images" / f"{SHA256}.part"


async def test_a_whole_image_arrives_and_a_second_fetch_asks_nothing(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    path = await fetch(downloader, office.url())
    assert path.read_bytes() == IMAGE
    assert await fetch(downloader, office.url()) == path
    assert office.ranges == [0]
    assert sorted(one.name for one in path.parent.iterdir()) == [f"{SHA256}.bin"]
    assert path.stat().st_mode & 0o077 == 0
    assert office.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("kept", [1, CHUNK - 1, CHUNK, 150_000, len(IMAGE) - 1])
async def test_what_is_on_the_disk_is_not_fetched_again(
    office: Office, downloader: Downloader, tmp_path: Path, kept: int
) -> None:
    part(tmp_path).write_bytes(IMAGE[:kept])
    path = await fetch(downloader, office.url())
    assert path.read_bytes() == IMAGE
    assert office.ranges == [kept]


async def test_a_part_that_is_already_whole_needs_no_office(downloader: Downloader, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(IMAGE)
    path = await fetch(downloader, "http://127.0.0.1:9/nobody")
    assert path.read_bytes() == IMAGE


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(IMAGE + b"x", id="too long"),
        pytest.param(IMAGE[:-1] + bytes([IMAGE[-1] ^ 1]), id="wrong"),
        pytest.param(b"", id="empty"),
    ],
)
async def test_a_part_that_can_not_become_the_image_is_begun_anew(
    office: Office, downloader: Downloader, tmp_path: Path, content: bytes
) -> None:
    part(tmp_path).write_bytes(content)
    path = await fetch(downloader, office.url())
    assert path.read_bytes() == IMAGE
    assert office.ranges == [0]


async def test_an_image_that_was_spoiled_on_the_disk_is_fetched_again(
    office: Office, downloader: Downloader
) -> None:
    path = await fetch(downloader, office.url())
    path.write_bytes(IMAGE[:-1] + b"?")
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE
    assert office.ranges == [0, 0]


@pytest.mark.parametrize("step", [1, 10 * CHUNK, 33 * CHUNK + 1])
async def test_a_link_that_is_cut_again_and_again_brings_every_byte_once(
    office: Office, downloader: Downloader, tmp_path: Path, step: int
) -> None:
    async with Link("127.0.0.1", office.port) as link:
        tries = 0
        while True:
            link.restore()
            if tries < 12:
                link.cut_after(step)
            tries += 1
            try:
                path = await fetch(downloader, office.url(link.port))
                break
            except LinkLost:
                continue
    assert path.read_bytes() == IMAGE
    assert office.ranges == sorted(office.ranges), "a try began before what the last one had kept"
    assert tries > 1


async def test_it_goes_on_in_another_process_after_a_kill(office: Office, tmp_path: Path) -> None:
    """SIGKILL in the middle; the next process asks for the rest only."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from edge_agent.delivery.downloader import Downloader\n"
        "async def main():\n"
        "    async with Downloader(Path(sys.argv[1])) as downloader:\n"
        "        await downloader.fetch(sys.argv[2], sha256=sys.argv[3], length=int(sys.argv[4]))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-P", "-c", program, str(tmp_path / "images")]
    async with Link("127.0.0.1", office.port, down_bytes_per_s=60_000) as link:
        child = await asyncio.create_subprocess_exec(*command, office.url(link.port), SHA256, str(len(IMAGE)))
        try:
            async with asyncio.timeout(60):
                while not (part(tmp_path).exists() and part(tmp_path).stat().st_size > 20_000):
                    await asyncio.sleep(0.01)
        finally:
            child.kill()
            await child.wait()
    kept = part(tmp_path).stat().st_size
    assert 20_000 < kept < len(IMAGE)
    done = await asyncio.to_thread(subprocess.run, [*command, office.url(), SHA256, str(len(IMAGE))])
    assert done.returncode == 0
    assert office.ranges == [0, kept]
    assert part(tmp_path).with_suffix(".bin").read_bytes() == IMAGE


async def test_a_server_without_range_starts_over(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    part(tmp_path).write_bytes(b"\0" * 1000)
    office.script = lambda _: [head(200, f"content-length: {len(IMAGE)}"), IMAGE]
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE


async def test_416_starts_over(office: Office, downloader: Downloader, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(IMAGE[:1000])
    office.script = lambda begin: [head(416, "content-length: 0")]
    with pytest.raises(LinkLost, match="416"):
        await fetch(downloader, office.url())
    office.script = None
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE
    assert office.ranges == [1000, 0]


TAMPERED = IMAGE[:150_000] + bytes([IMAGE[150_000] ^ 1]) + IMAGE[150_001:]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param([head(200, f"content-length: {len(IMAGE)}"), TAMPERED], "SHA-256", id="tampered"),
        pytest.param([head(200, "content-length: 400000"), IMAGE], "has 400000 bytes", id="oversized"),
        pytest.param([head(200, "content-length: 5"), b"short"], "has 5 bytes", id="truncated"),
        pytest.param([head(200, "content-length: 0")], "has 0 bytes", id="empty"),
        pytest.param([head(200), IMAGE + b"x"], "longer", id="one byte more, no length said"),
        pytest.param(
            [head(200, "transfer-encoding: chunked"), chunked(IMAGE, end=False), chunked(b"y", end=True)],
            "longer",
            id="one chunk more",
        ),
        pytest.param(
            [head(200, "transfer-encoding: chunked"), chunked(IMAGE[:9], end=True)],
            "ends after 9",
            id="chunks that end early",
        ),
    ],
)
async def test_other_bytes_than_the_signed_ones_are_refused_and_not_kept(
    office: Office, downloader: Downloader, tmp_path: Path, answer: list[bytes], says: str
) -> None:
    office.script = lambda _: answer
    with pytest.raises(WrongImage, match=says) as refused:
        await fetch(downloader, office.url())
    assert not refused.value.retryable
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("chunks", [True, False])
async def test_an_endless_body_is_cut_off(
    office: Office, downloader: Downloader, tmp_path: Path, chunks: bool
) -> None:
    office.script = lambda _: [head(200, "transfer-encoding: chunked") if chunks else head(200)]
    office.endless = chunked(b"z" * 8192, end=False) if chunks else b"z" * 8192
    with pytest.raises(WrongImage, match="longer"):
        await fetch(downloader, office.url())
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_resumed_image_of_another_length_is_refused_at_once(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    part(tmp_path).write_bytes(IMAGE[:1000])
    office.image = IMAGE + b"more"
    with pytest.raises(WrongImage, match="has 300004 bytes"):
        await fetch(downloader, office.url())
    part(tmp_path).write_bytes(IMAGE[:1000])
    office.image = IMAGE[:500]
    with pytest.raises(WrongImage, match="has 500 bytes"):
        await fetch(downloader, office.url())


async def test_a_part_that_was_spoiled_on_the_disk_costs_one_more_download(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    part(tmp_path).write_bytes(b"\0" * 100_000)
    with pytest.raises(LinkLost, match="afresh"):
        await fetch(downloader, office.url())
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE
    assert office.ranges == [100_000, 0]
    assert [one.suffix for one in (tmp_path / "images").iterdir()] == [".bin"]


async def test_a_tampered_image_over_a_link_that_breaks_is_refused_after_two_downloads(
    office: Office, tmp_path: Path
) -> None:
    """Neither the breaks nor restarts of the agent make it fetch a wrong image for ever."""
    office.image = TAMPERED
    refusals = sent = 0
    async with Link("127.0.0.1", office.port) as link:
        for _ in range(40):
            link.restore()
            link.cut_after(25 * CHUNK)
            async with Downloader(tmp_path / "images", Network(tls=False), free=lambda _: ROOM) as downloader:
                try:
                    await fetch(downloader, office.url(link.port))
                except LinkLost:
                    continue
                except WrongImage:
                    refusals += 1
                    sent = link.down_bytes
                    break
    assert refusals == 1
    assert sent < 2.5 * len(IMAGE)
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param([head(403, "content-length: 0")], UrlExpired, id="403"),
        pytest.param([head(404, "content-length: 0")], LinkLost, id="404"),
        pytest.param([head(500, "content-length: 0")], LinkLost, id="500"),
        pytest.param([head(503, "content-length: 0")], LinkLost, id="503"),
        pytest.param([head(302, "location: http://127.0.0.1:9/", "content-length: 0")], LinkLost, id="302"),
        pytest.param([head(204)], LinkLost, id="204"),
        pytest.param(
            [head(200, "content-type: text/html", "content-length: 9"), b"<p>log in"], LinkLost, id="portal"
        ),
        pytest.param([head(200, "content-encoding: gzip"), b"?"], LinkLost, id="packed"),
        pytest.param([head(206, "content-length: 9"), b"?" * 9], LinkLost, id="206 without a range"),
        pytest.param(
            [head(206, f"content-range: bytes 7-9/{len(IMAGE)}", "content-length: 3"), b"abc"],
            LinkLost,
            id="206 of another range",
        ),
        pytest.param([b"\x16\x03\x01 no HTTP at all\r\n\r\n"], LinkLost, id="no HTTP"),
        pytest.param([head(200, f"content-length: {len(IMAGE)}"), IMAGE[:9]], LinkLost, id="broken off"),
        pytest.param([head(200), IMAGE[:9]], LinkLost, id="closed early, no length said"),
    ],
)
async def test_an_answer_that_is_no_image_keeps_what_is_there(
    office: Office, downloader: Downloader, tmp_path: Path, answer: list[bytes], error: type[Exception]
) -> None:
    office.script = lambda _: answer
    with pytest.raises(error) as raised:
        await fetch(downloader, office.url())
    assert getattr(raised.value, "retryable", False)
    office.script = None
    part(tmp_path).write_bytes(IMAGE[:7])
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE


async def test_an_expired_url_goes_on_with_a_fresh_one(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    part(tmp_path).write_bytes(IMAGE[:5000])
    office.script = lambda _: [
        head(403, "content-type: application/problem+json", "content-length: 2"),
        b"{}",
    ]
    with pytest.raises(UrlExpired):
        await fetch(downloader, office.url())
    office.script = None
    await fetch(downloader, office.url())
    assert office.ranges == [5000, 5000]


async def test_a_silent_office_is_left_after_the_idle_time(office: Office, tmp_path: Path) -> None:
    office.script = lambda _: [head(200, f"content-length: {len(IMAGE)}"), IMAGE[:1000]]
    office.silent = True
    async with Downloader(
        tmp_path / "images", Network(tls=False, idle_timeout_s=0.3), free=lambda _: ROOM
    ) as downloader:
        with pytest.raises(LinkLost, match="ReadTimeout"):
            await fetch(downloader, office.url())
    assert part(tmp_path).read_bytes() == IMAGE[:1000]


async def test_nobody_answers(downloader: Downloader) -> None:
    with pytest.raises(LinkLost, match="Connect"):
        await fetch(downloader, "http://127.0.0.1:9/")


@pytest.mark.parametrize(
    "url", ["http://office.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://", ""]
)
async def test_an_address_that_is_not_safe_is_refused_before_anything_is_sent(
    downloader: Downloader, url: str
) -> None:
    with pytest.raises(UnsafeAddress):
        await fetch(downloader, url)


async def test_a_relay_stands_in_for_the_origin_of_every_url(office: Office, tmp_path: Path) -> None:
    relay = f"http://127.0.0.1:{office.port}"
    async with Downloader(
        tmp_path / "images", Network(tls=False, origin=relay), free=lambda _: ROOM
    ) as downloader:
        path = await fetch(downloader, f"https://office.example:9/files/{SHA256}?expires=1&sig=2")
    assert path.read_bytes() == IMAGE


async def test_a_full_disk_is_found_before_the_first_byte(office: Office, tmp_path: Path) -> None:
    free = len(IMAGE) + 1000
    async with Downloader(
        tmp_path / "images", Network(tls=False), margin_bytes=1001, free=lambda _: free
    ) as downloader:
        with pytest.raises(NoRoom) as full:
            await fetch(downloader, office.url())
        assert full.value.retryable
        assert office.ranges == []
        part(tmp_path).write_bytes(IMAGE[:1])
        assert (await fetch(downloader, office.url())).read_bytes() == IMAGE, "only the rest needs room"


async def test_a_disk_that_fills_up_on_the_way_keeps_what_came(
    office: Office, downloader: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def write(file: object, chunk: bytes) -> None:
        nonlocal written
        if written + len(chunk) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += len(chunk)
        file.write(chunk)  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.delivery.image_folder.write_all", write)
        with pytest.raises(NoRoom):
            await fetch(downloader, office.url())
    assert part(tmp_path).read_bytes() == IMAGE[:written]
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE
    assert office.ranges == [0, written]


async def test_the_oldest_images_that_nobody_needs_make_room(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number:064x}" for number in range(4)]
    for age, name in enumerate(names):
        file = folder / f"{name}.{'part' if age == 1 else 'bin'}"
        file.write_bytes(b"\0" * 100_000)
        os.utime(file, (1000 + age, 1000 + age))
    limit = len(IMAGE) + 2 * 100_000
    async with Downloader(
        folder, Network(tls=False), most_stored_bytes=limit, free=lambda _: ROOM
    ) as downloader:
        await fetch(downloader, office.url(), keep=[names[0]])
        left = {path.name for path in folder.iterdir()}
        assert left == {f"{names[0]}.bin", f"{names[3]}.bin", f"{SHA256}.bin"}


async def test_images_that_are_needed_are_never_removed(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    needed = folder / f"{1:064x}.bin"
    needed.write_bytes(b"\0" * 100_000)
    async with Downloader(
        folder, Network(tls=False), most_stored_bytes=len(IMAGE), free=lambda _: ROOM
    ) as downloader:
        with pytest.raises(NoRoom):
            await fetch(downloader, office.url(), keep=[needed.stem])
    assert needed.exists()
    assert office.ranges == []


async def test_progress_is_thinned_and_ends_with_all(office: Office, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.2
        return now

    async with (
        Downloader(tmp_path / "images", Network(tls=False), clock=clock, free=lambda _: ROOM) as downloader,
        Link("127.0.0.1", office.port) as link,
    ):
        await fetch(downloader, office.url(link.port), progress=lambda *at: told.append(at))
    done = [one for one, _ in told]
    assert told[0][0] == 0
    assert told[-1] == (len(IMAGE), len(IMAGE))
    assert done == sorted(done)
    assert len({one * 100 // len(IMAGE) for one in done}) >= len(done) - 1
    assert len(told) <= 2 + now


async def test_a_cancelled_download_keeps_what_came(
    office: Office, downloader: Downloader, tmp_path: Path
) -> None:
    async with Link("127.0.0.1", office.port, down_bytes_per_s=50_000) as link:
        half_way = asyncio.Event()

        def progress(done: int, _: int) -> None:
            if done:
                half_way.set()

        task = asyncio.create_task(fetch(downloader, office.url(link.port), progress=progress))
        async with asyncio.timeout(30):
            await half_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    kept = part(tmp_path).read_bytes()
    assert kept
    assert IMAGE.startswith(kept)
    assert (await fetch(downloader, office.url())).read_bytes() == IMAGE
    assert office.ranges[-1] == len(kept)


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "", "A" * 64, "0" * 63])
async def test_a_hash_that_is_none_never_becomes_a_file_name(downloader: Downloader, sha256: str) -> None:
    with pytest.raises(WrongImage):
        await downloader.fetch("http://127.0.0.1:9/", sha256=sha256, length=1)
