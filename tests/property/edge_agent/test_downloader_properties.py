"""However a link breaks and a disk spoils what it kept: an honest office's image arrives, whole."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network
from edge_agent.errors import LinkLost
from shared.trust.document import WrongImage

IMAGE = random.Random(11).randbytes(20_000)
SHA256 = hashlib.sha256(IMAGE).hexdigest()

BREAKS = st.lists(st.integers(0, len(IMAGE)), max_size=6)
SPOILS = st.dictionaries(st.integers(0, 6), st.sampled_from(["flip", "zero", "cut", "longer"]), max_size=2)


def spoil(part: Path, how: str) -> None:
    """What a power cut may leave of a file that was not synced."""
    if not part.exists():
        return
    data = bytearray(part.read_bytes())
    match how:
        case "flip":
            data[:1] = bytes([data[0] ^ 1]) if data else b""
        case "zero":
            data[:] = b"\0" * len(data)
        case "cut":
            del data[len(data) // 2 :]
        case "longer":
            data += b"\0" * len(IMAGE)
    part.write_bytes(data)


async def play(
    folder: Path, breaks: list[int], spoils: dict[int, str], served: bytes, most_tries: int
) -> tuple[str, int]:
    """Fetch until it ends, each try with a new downloader; returns how it ended and the bytes sent."""
    left = list(breaks)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        begin = int(head.split("range: bytes=")[1].split("-")[0]) if "range:" in head else 0
        body = served[begin:]
        most = left.pop(0) if left else len(body)
        status = "206 P" if begin else "200 O"
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
            f"content-range: bytes {begin}-{len(served) - 1}/{len(served)}\r\n\r\n".encode()
            + body[:most]
        )
        sent += min(most, len(body))
        try:
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        for number in range(most_tries):
            if number in spoils:
                spoil(folder / f"{SHA256}.part", spoils[number])
            async with Downloader(
                folder, Network(tls=False), margin_bytes=0, free=lambda _: 1 << 40
            ) as downloader:
                try:
                    path = await downloader.fetch(url, sha256=SHA256, length=len(IMAGE))
                except LinkLost:
                    continue
                except WrongImage:
                    return "refused", sent
            assert path.read_bytes() == IMAGE
            return "whole", sent
        return "unfinished", sent
    finally:
        server.close()
        await server.wait_closed()


@settings(max_examples=40, deadline=None)
@given(breaks=BREAKS, spoils=SPOILS)
def test_an_honest_image_always_arrives(breaks: list[int], spoils: dict[int, str]) -> None:
    # A second spoiling of the same image is the one case that may give up, and then says so.
    may_refuse = len(spoils) > 1
    with tempfile.TemporaryDirectory() as folder:
        how, sent = asyncio.run(play(Path(folder), breaks, spoils, IMAGE, len(breaks) + 4))
    assert how == "whole" or (may_refuse and how == "refused")
    assert sent <= (2 + len(spoils)) * len(IMAGE)


@settings(max_examples=40, deadline=None)
@given(breaks=BREAKS, at=st.integers(0, len(IMAGE) - 1))
def test_a_tampered_image_is_always_refused_and_never_fetched_for_ever(breaks: list[int], at: int) -> None:
    served = bytearray(IMAGE)
    served[at] ^= 0x80
    with tempfile.TemporaryDirectory() as folder:
        how, sent = asyncio.run(play(Path(folder), breaks, {}, bytes(served), len(breaks) + 4))
        assert list(Path(folder).iterdir()) == []
    assert how == "refused"
    assert sent <= 2 * len(IMAGE)
