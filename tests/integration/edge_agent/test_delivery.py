"""Downloads over several links with budgets, a pace, a proxy, deltas and local files; real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_agent.addresses import UnsafeAddress
from edge_agent.clock import Clock
from edge_agent.delivery.budget import Budget, BudgetLimits
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.links import Way
from edge_agent.delivery.local_files import LocalFileRefused
from edge_agent.delivery.transfer import Network
from edge_agent.errors import LinkLost, NoRoom, NotGiven, OverBudget
from shared.delta import make_delta
from shared.messages import Delta
from shared.trust.document import WrongImage

BASE = random.Random(1).randbytes(200_000)
IMAGE = BASE[:1000] + b"new code" * 20 + BASE[1000:]
PATCH = make_delta(BASE, IMAGE)
ROOM = 1 << 40


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Files:
    """An HTTP server with Range; also a proxy, for it takes absolute addresses. Keeps who asked for what."""

    def __init__(self) -> None:
        self.files = {sha(one): one for one in (BASE, IMAGE, PATCH)}
        self.asked: list[tuple[str, str, int]] = []  # file, from which address, first byte
        self.heads: list[str] = []
        self.most: int | None = None  # bytes of an answer before it breaks
        self.bad: dict[str, int] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            name = head.split(" ")[1].rsplit("/", 1)[-1]
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            begin = int(fields.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.asked.append((name, writer.get_extra_info("peername")[0], begin))
            if name in self.bad:
                writer.write(f"HTTP/1.1 {self.bad[name]} X\r\nconnection: close\r\n\r\n".encode())
                return
            data = self.files[name]
            line = "206 X" if begin else "200 X"
            span = f"content-range: bytes {begin}-{len(data) - 1}/{len(data)}\r\n" if begin else ""
            body = data[begin:]
            writer.write(f"HTTP/1.1 {line}\r\n{span}content-length: {len(body)}\r\n".encode())
            writer.write(b"connection: close\r\n\r\n" + body[: self.most])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def files() -> AsyncIterator[Files]:
    made = Files()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    yield made
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def downloader(folder: Path, **network: Any) -> AsyncIterator[Downloader]:
    async with Downloader(
        folder / "images",
        Network(tls=False, **network),
        free=lambda _: ROOM,
    ) as made:
        yield made


def url(files: Files, data: bytes = IMAGE) -> str:
    return f"http://127.0.0.1:{files.port}/files/{sha(data)}"  # type: ignore[attr-defined]


async def fetch(made: Downloader, address: str, **more: object) -> Path:
    path = await made.fetch(address, sha256=sha(IMAGE), length=len(IMAGE), **more)  # type: ignore[arg-type]
    assert path.read_bytes() == IMAGE
    return path


def delta_of(files: Files, **other: object) -> Delta:
    fields = {
        "base_sha256": sha(BASE),
        "url": url(files, PATCH),
        "length": len(PATCH),
        "sha256": sha(PATCH),
        **other,
    }
    return Delta(**fields)  # type: ignore[arg-type]


def hold_base(folder: Path, data: bytes = BASE) -> None:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    (images / f"{sha(BASE)}.bin").write_bytes(data)


# --- links -------------------------------------------------------------------------------------


async def test_the_first_link_that_is_there_is_taken(files: Files, tmp_path: Path) -> None:
    ways = (Way(name="wifi", address="127.0.0.5"), Way(name="cellular", address="127.0.0.6"))
    async with downloader(tmp_path, ways=ways) as made:
        await fetch(made, url(files))
    assert [address for _, address, _ in files.asked] == ["127.0.0.5"]


async def test_a_link_that_is_away_is_passed_over(files: Files, tmp_path: Path) -> None:
    ways = (
        Way(name="wifi", interface="no-such-dev"),
        Way(name="other", address="203.0.113.7"),  # of no interface here: it can't be bound
        Way(name="cellular", interface="lo", address="127.0.0.6"),
    )
    async with downloader(tmp_path, ways=ways) as made:
        await fetch(made, url(files))
    assert [address for _, address, _ in files.asked] == ["127.0.0.6"]


async def test_no_link_at_all_is_a_lost_link_that_names_them(files: Files, tmp_path: Path) -> None:
    ways = (Way(name="wifi", interface="no-such-dev"), Way(name="sat", address="203.0.113.7"))
    async with downloader(tmp_path, ways=ways) as made:
        with pytest.raises(LinkLost, match=r"wifi is down; sat: "):
            await fetch(made, url(files))
    assert files.asked == []


async def test_a_large_download_waits_for_a_link_that_may_carry_it(files: Files, tmp_path: Path) -> None:
    ways = (Way(name="sat", image_bytes=100_000),)
    async with downloader(tmp_path, ways=ways) as made:
        with pytest.raises(OverBudget, match="sat"):
            await fetch(made, url(files))
        assert files.asked == []
        # What another link left over is small enough.
        (tmp_path / "images" / f"{sha(IMAGE)}.part").write_bytes(IMAGE[:150_000])
        await fetch(made, url(files))
    assert [begin for _, _, begin in files.asked] == [150_000]


async def test_an_ecu_without_firmware_is_worth_any_link(files: Files, tmp_path: Path) -> None:
    limits = BudgetLimits(day_bytes=0, links={})
    budget = await Budget.open(tmp_path / "spent.json", limits, Clock())
    ways = (Way(name="sat", image_bytes=0),)
    async with downloader(tmp_path, ways=ways, budget=budget) as made:
        with pytest.raises(OverBudget):
            await fetch(made, url(files), job_id="j")
        await fetch(made, url(files), job_id="j", urgent=True)


async def test_a_spent_link_hands_over_to_the_next(files: Files, tmp_path: Path) -> None:
    limits = BudgetLimits(links={"sat": 70_000})
    budget = await Budget.open(tmp_path / "spent.json", limits, Clock())
    ways = (Way(name="sat", address="127.0.0.5"), Way(name="wifi", address="127.0.0.6"))
    async with downloader(tmp_path, ways=ways, budget=budget) as made:
        await fetch(made, url(files), job_id="j")
    [(_, first, _), (_, second, begin)] = files.asked
    assert (first, second) == ("127.0.0.5", "127.0.0.6")
    assert 0 < begin <= 70_000 + 65_536


async def test_a_job_stops_at_its_budget_and_keeps_what_it_has(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "spent.json"
    small, large = BudgetLimits(job_bytes=70_000, links={}), BudgetLimits(job_bytes=300_000, links={})
    async with downloader(tmp_path, budget=await Budget.open(path, small, Clock())) as made:
        for _ in range(3):
            with pytest.raises(OverBudget, match="job"):
                await fetch(made, url(files), job_id="j")
    # The budget holds to within one chunk, and then nothing more is asked.
    assert len(files.asked) <= 2
    # The operator gives more: it goes on where it stopped, in another process.
    async with downloader(tmp_path, budget=await Budget.open(path, large, Clock())) as made:
        await fetch(made, url(files), job_id="j")
    assert files.asked[-1][2] >= 60_000
    spent = await Budget.open(path, large, Clock())
    assert spent.left(job_id="j", link="any") == 300_000 - len(IMAGE)


async def test_a_broken_download_gives_back_what_did_not_come(files: Files, tmp_path: Path) -> None:
    path, limits = tmp_path / "spent.json", BudgetLimits(day_bytes=10**7, links={})
    files.most = 50_000
    async with downloader(tmp_path, budget=await Budget.open(path, limits, Clock())) as made:
        with pytest.raises(LinkLost):
            await fetch(made, url(files))
    left = (await Budget.open(path, limits, Clock())).left(job_id="", link="any")
    assert left == 10**7 - 50_000


async def test_the_pace_holds_back_what_is_read(files: Files, tmp_path: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_agent.delivery.transfer.pause", sleep)
        async with downloader(tmp_path, bytes_per_s=50_000.0) as made:
            await fetch(made, url(files))
    # Nobody really slept, so the debt only grows: the last rest is that of all bytes but the burst.
    assert max(slept) == pytest.approx((len(IMAGE) - 50_000) / 50_000, rel=0.2)


# --- proxy -------------------------------------------------------------------------------------


async def test_a_proxy_comes_from_the_configuration_alone(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with downloader(tmp_path) as made:
        await fetch(made, url(files))
    assert files.heads[0].startswith("GET /files/")


@pytest.mark.parametrize(
    "way", [Way(name="any"), Way(name="wifi", address="127.0.0.5")], ids=lambda w: w.name
)
async def test_an_image_comes_through_the_proxy_and_over_the_link(
    files: Files, tmp_path: Path, way: Way
) -> None:
    port = files.port  # type: ignore[attr-defined]
    proxy = httpx.Proxy(f"http://127.0.0.1:{port}", auth=("truck", "secret"))
    async with downloader(tmp_path, proxy=proxy, ways=(way,), allow_plain=True) as made:
        await fetch(made, f"http://office.invalid/files/{sha(IMAGE)}")
    assert files.heads[0].startswith("GET http://office.invalid/files/")
    assert "proxy-authorization: basic" in files.heads[0].lower()
    assert files.asked[0][1] == (way.address or "127.0.0.1")


# --- deltas ------------------------------------------------------------------------------------


async def test_a_delta_is_fetched_instead_of_the_image(files: Files, tmp_path: Path) -> None:
    hold_base(tmp_path)
    seen: list[tuple[int, int]] = []
    async with downloader(tmp_path) as made:
        await fetch(made, url(files), delta=delta_of(files), progress=lambda *at: seen.append(at))
    assert [name for name, _, _ in files.asked] == [sha(PATCH)]
    assert seen[-1] == (len(IMAGE), len(IMAGE))
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{sha(BASE)}.bin", f"{sha(IMAGE)}.bin"}


async def test_a_broken_delta_download_goes_on_later(files: Files, tmp_path: Path) -> None:
    hold_base(tmp_path)
    files.most = len(PATCH) // 2
    async with downloader(tmp_path) as made:
        with pytest.raises(LinkLost):
            await fetch(made, url(files), delta=delta_of(files))
        files.most = None
        await fetch(made, url(files), delta=delta_of(files))
    assert files.asked[1] == (sha(PATCH), "127.0.0.1", len(PATCH) // 2)
    assert len(files.asked) == 2


async def test_whatever_is_wrong_with_a_delta_the_whole_image_comes(files: Files, tmp_path: Path) -> None:
    noise = random.Random(3).randbytes(len(PATCH))
    other = make_delta(BASE, IMAGE[:-1] + b"x")
    files.files[sha(noise)], files.files[sha(other)] = noise, other
    cases: dict[str, Delta] = {
        "noise": delta_of(files, url=url(files, noise), sha256=sha(noise)),
        "another image's": delta_of(files, url=url(files, other), sha256=sha(other), length=len(other)),
        "not the file it says": delta_of(files, url=url(files, noise)),
        "another length": delta_of(files, length=len(PATCH) + 1),
        "an unknown form": delta_of(files, format="xdelta"),
        "larger than the image": delta_of(files, length=len(IMAGE)),
        "a base that is not here": delta_of(files, base_sha256="0" * 64),
        "the image itself": delta_of(files, sha256=sha(IMAGE)),
        "no safe address": delta_of(files, url="http://office.example/x"),
        "a URL that is over": delta_of(files, url=url(files, b"over")),
        "a file that is gone": delta_of(files, url=url(files, b"gone")),
    }
    files.bad[sha(b"over")], files.bad[sha(b"gone")] = 403, 404
    for name, delta in cases.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        hold_base(folder)
        async with downloader(folder) as made:
            await fetch(made, url(files), delta=delta)
        assert files.asked[-1][0] == sha(IMAGE), name
        left = {path.name for path in (folder / "images").iterdir()}
        assert left == {f"{sha(BASE)}.bin", f"{sha(IMAGE)}.bin"}, name


async def test_a_delta_that_can_not_be_had_for_long_is_let_be(files: Files, tmp_path: Path) -> None:
    """A hiccup of the office (503) must not cost a whole image, nor a lasting fault the update."""
    hold_base(tmp_path)
    files.bad[sha(PATCH)] = 503
    async with downloader(tmp_path) as made:
        for _ in range(2):
            with pytest.raises(NotGiven):
                await fetch(made, url(files), delta=delta_of(files))
        await fetch(made, url(files), delta=delta_of(files))
    assert [name for name, _, _ in files.asked] == [sha(PATCH)] * 3 + [sha(IMAGE)]


async def test_a_spoiled_base_is_no_base(files: Files, tmp_path: Path) -> None:
    hold_base(tmp_path, BASE[:-1] + b"x")
    async with downloader(tmp_path) as made:
        await fetch(made, url(files), delta=delta_of(files))
    assert [name for name, _, _ in files.asked] == [sha(IMAGE)]


async def test_a_bad_delta_is_fetched_once(files: Files, tmp_path: Path) -> None:
    hold_base(tmp_path)
    noise = random.Random(3).randbytes(len(PATCH))
    files.files[sha(noise)] = noise
    delta = delta_of(files, url=url(files, noise), sha256=sha(noise))
    async with downloader(tmp_path) as made:
        files.bad[sha(IMAGE)] = 500
        for _ in range(3):
            with pytest.raises(LinkLost):
                await fetch(made, url(files), delta=delta)
    assert [name for name, _, _ in files.asked].count(sha(noise)) == 1


async def test_a_nearly_whole_image_is_finished_without_a_delta(files: Files, tmp_path: Path) -> None:
    hold_base(tmp_path)
    (tmp_path / "images" / f"{sha(IMAGE)}.part").write_bytes(IMAGE[:-10])
    async with downloader(tmp_path) as made:
        await fetch(made, url(files), delta=delta_of(files))
    assert files.asked == [(sha(IMAGE), "127.0.0.1", len(IMAGE) - 10)]


async def test_images_that_run_go_last(files: Files, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    runs, old = "1" * 64, "2" * 64
    for name in (runs, old):
        (images / f"{name}.bin").write_bytes(b"x" * 100_000)
    async with Downloader(
        images, Network(tls=False), most_stored_bytes=len(IMAGE) + 100_000, free=lambda _: ROOM
    ) as made:
        await made.note_installed("brakes", runs)
        await fetch(made, url(files))
        assert {path.stem for path in images.glob("*.bin")} == {runs, sha(IMAGE)}
        await made.note_installed("brakes", old)
        (images / f"{old}.bin").write_bytes(b"x" * 100_000)
        with pytest.raises(NoRoom):
            await made.fetch(url(files, PATCH), sha256="3" * 64, length=10**9)


# --- local files ---------------------------------------------------------------------------------


async def test_a_file_at_the_truck_is_taken_for_its_hash(files: Files, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "an image.bin").write_bytes(IMAGE)
    async with downloader(tmp_path, local_folders=(stick,)) as made:
        await fetch(made, (stick / "an image.bin").as_uri())
        (stick / "an image.bin").unlink()
        await fetch(made, (stick / "an image.bin").as_uri())
    assert files.asked == []


async def test_other_files_of_the_gateway_are_not_read(tmp_path: Path) -> None:
    stick, secret = tmp_path / "stick", tmp_path / "secret"
    stick.mkdir()
    secret.write_bytes(IMAGE)
    (stick / "link").symlink_to(secret)
    (stick / "wrong").write_bytes(IMAGE[::-1])
    (stick / "short").write_bytes(IMAGE[:-1])
    async with downloader(tmp_path, local_folders=(stick,)) as made:
        for path in (secret, stick / "link", stick / ".." / "secret"):
            with pytest.raises(LocalFileRefused):
                await fetch(made, f"file://{path}")
        with pytest.raises(LocalFileRefused):
            await fetch(made, f"file://server{stick}/link")
        with pytest.raises(LocalFileRefused):
            await fetch(made, stick.as_uri())
        for name in ("wrong", "short"):
            with pytest.raises(WrongImage):
                await fetch(made, (stick / name).as_uri())
        with pytest.raises(LinkLost):
            await fetch(made, (stick / "pulled").as_uri())
    async with downloader(tmp_path) as made:
        with pytest.raises(UnsafeAddress):
            await fetch(made, secret.as_uri())
