"""A truck's link to the office: a TCP relay that can be slow, and cut at any byte.

Stands between an agent and the office's HTTP or MQTT port. `cut()` resets every connection that
goes through and refuses new ones until `restore()`; `cut_after(n)` does so when n more bytes have
gone down to the truck. Bytes are delayed, and changed only by a filter that was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

CHUNK = 4096
CONNECT_TIMEOUT_S = 10.0


class Link:
    """One relay on a free loopback port (`port`), as a resource.

    `down_bytes_per_s` bounds the speed towards the truck, per connection; None is unbounded. `lag_s` delays
    each piece, in both directions. `down_bytes` counts what has gone down in all. `make_filter` makes one
    function for each direction of each connection, through which its bytes go.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        down_bytes_per_s: float | None = None,
        make_filter: Callable[[], Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self._office = (host, port)
        self._rate = down_bytes_per_s
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._cut_at: int | None = None
        self._make_filter = make_filter
        self.is_cut = False
        self.lag_s = 0.0
        self.down_bytes = 0

    @property
    def port(self) -> int:
        """Where the truck connects to."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset what goes through, as a modem that loses its cell does."""
        self.is_cut = True
        self._cut_at = None
        for writer in list(self._writers):
            transport = writer.transport
            if transport is not None:
                transport.abort()

    def cut_after(self, down_bytes: int) -> None:
        """Cut when this many more bytes have gone down to the truck."""
        self._cut_at = self.down_bytes + down_bytes

    def restore(self) -> None:
        """Let connections through again; the truck must come back by itself."""
        self.is_cut = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        assert relay is not None
        self._relays.add(relay)
        try:
            if not self.is_cut:
                await self._relay(reader, writer)
        finally:
            self._relays.discard(relay)
            writer.transport.abort()

    async def _relay(self, truck_in: asyncio.StreamReader, truck_out: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                office_in, office_out = await asyncio.open_connection(*self._office, limit=CHUNK)
        except (OSError, TimeoutError):
            return
        ends = {truck_out, office_out}
        self._writers |= ends
        try:
            # When one direction ends the other has nothing to wait for in HTTP/1.1 and MQTT.
            up = asyncio.create_task(self._pump(truck_in, office_out, down=False), name="link.up")
            down = asyncio.create_task(self._pump(office_in, truck_out, down=True), name="link.down")
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in (up, down):
                    pump.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            self._writers -= ends
            office_out.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, down: bool) -> None:
        through = None if self._make_filter is None else self._make_filter()
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK):
                if self.lag_s:
                    await asyncio.sleep(self.lag_s)
                sink.write(chunk if through is None else through(chunk))
                await sink.drain()
                if not down:
                    continue
                self.down_bytes += len(chunk)
                if self._cut_at is not None and self.down_bytes >= self._cut_at:
                    self.cut()
                if self._rate:
                    await asyncio.sleep(len(chunk) / self._rate)
            if sink.can_write_eof():
                sink.write_eof()
            await sink.drain()
