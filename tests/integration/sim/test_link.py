"""The simulated link: relays every byte, cuts at the byte it is told, comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sim.link import CHUNK, Link


@asynccontextmanager
async def office(answer: bytes) -> AsyncIterator[int]:
    """A server that answers every line with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask(port: int, length: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"hello\n")
        async with asyncio.timeout(10):
            return await reader.readexactly(length)
    finally:
        writer.close()


async def test_every_byte_goes_through_unchanged() -> None:
    answer = bytes(range(256)) * 400
    async with office(answer) as port, Link("127.0.0.1", port) as link:
        answers = await asyncio.gather(*(ask(link.port, len(answer)) for _ in range(5)))
    assert answers == [answer] * 5
    assert link.down_bytes == 5 * len(answer)


async def test_a_cut_resets_and_refuses_until_the_link_is_back() -> None:
    async with office(b"x" * 100) as port, Link("127.0.0.1", port) as link:
        link.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(link.port, 100)
        link.restore()
        assert await ask(link.port, 100) == b"x" * 100


async def test_a_link_is_cut_in_the_middle_of_a_download() -> None:
    answer = b"y" * (64 * CHUNK)
    async with office(answer) as port, Link("127.0.0.1", port) as link:
        link.cut_after(10 * CHUNK)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(link.port, len(answer))
        assert link.is_cut
        assert 10 * CHUNK <= link.down_bytes < len(answer)
        link.restore()
        assert await ask(link.port, len(answer)) == answer


async def test_an_office_that_is_away_ends_the_connection() -> None:
    async with office(b"") as port:
        pass
    async with Link("127.0.0.1", port) as link:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(link.port, 1)
