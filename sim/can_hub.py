"""A CAN bus between processes: a hub on a Unix socket that loses nothing and keeps the order.

- Every frame reaches every other endpoint, in one order for all. Arbitration is first come, first
  served.
- **Back-pressure**: an endpoint that reads slowly slows the whole bus down. One that has read nothing
  for `stall_s` with its buffer full is disconnected and logged. Nothing grows beyond fixed bounds.
- With a `bitrate` each frame takes its time on the wire (see can_frames.bits_of), at most 1 ms early.
- `freeze_after` makes an endpoint vanish in the middle of its frames, as a killed or cut node does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shared.logs import get_log
from sim.can_frames import (
    FRAME_BYTES,
    GREETING,
    HEAD,
    MAGIC,
    OWN,
    VERSION,
    bits_of,
    is_frame,
)
from sim.can_socket import HubError, check_path, listen

log = get_log("sim.can_hub")

MOST_ENDPOINTS = 64
HIGH_WATER_BYTES = 64 * 1024
MOST_WAITING_FRAMES = 64
GREET_WITHIN_S = 5.0
EARLY_S = 0.001
LATE_S = 0.02
START_WITHIN_S = 10.0


class _Endpoint(asyncio.Protocol):
    """One connection. Joins the bus with its greeting."""

    def __init__(self, hub: HubServer) -> None:
        self._hub = hub
        self._rest = b""
        self.transport: asyncio.Transport
        self.number = 0
        self.joined = False
        self.hears_itself = False
        self.frozen = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._hub.connected(self)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self.joined:
            if len(data) < GREETING.size:
                self._rest = data
                return
            magic, version, flags, _, _ = GREETING.unpack_from(data)
            if magic != MAGIC or version != VERSION:
                self._hub.drop(self, "speaks another protocol")
                return
            self.hears_itself = bool(flags & OWN)
            data = data[GREETING.size :]
            self._hub.join(self)
        whole = len(data) - len(data) % FRAME_BYTES
        self._rest = data[whole:]
        if whole and not self.frozen:
            self._hub.take(self, data[:whole])

    def pause_writing(self) -> None:
        self._hub.stalled(self)

    def resume_writing(self) -> None:
        self._hub.flows(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._hub.leave(self)


@dataclass(kw_only=True)
class _Freeze:
    left: int
    arbitration_id: int


class HubServer:
    """The bus, as an async resource that listens on `path` (made 0600, removed at the end).

    `frames` and `bits` count what went over the wire; `endpoints` who is on it now.
    """

    def __init__(self, path: Path | str, *, bitrate: int | None = None, stall_s: float = 5.0) -> None:
        if bitrate is not None and not 1_000 <= bitrate <= 1_000_000:
            raise HubError(f"bitrate {bitrate} is not 1000 to 1000000 bit/s", advice="Give 500000, say.")
        self.path = Path(path)
        check_path(self.path)
        self._bitrate = bitrate
        self._stall_s = stall_s
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._connections: set[_Endpoint] = set()
        self._numbers = 0
        self._stalled: set[_Endpoint] = set()
        self._flowing = asyncio.Event()
        self._waiting: deque[tuple[_Endpoint, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._pacer: asyncio.Task[None] | None = None
        self._reads = True
        self._freeze: _Freeze | None = None
        self.frames = 0
        self.bits = 0

    @property
    def endpoints(self) -> int:
        return sum(one.joined for one in self._connections)

    def freeze_after(self, frames: int, *, arbitration_id: int) -> None:
        """Freeze the endpoint that sends the `frames`-th frame with this identifier from now on.

        That frame is the last that the bus has of it; later ones vanish, and it hears nothing more.
        Its connection stays, and nobody is told. Others, also new ones that send the same
        identifier, are not touched.
        """
        self._freeze = _Freeze(left=frames, arbitration_id=arbitration_id)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        listener = listen(self.path)
        self._inode = self.path.stat().st_ino
        self._server = await loop.create_unix_server(lambda: _Endpoint(self), sock=listener)
        self._flowing.set()
        if self._bitrate:
            self._pacer = asyncio.create_task(self._pace(self._bitrate), name="can_hub.pacer")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        if self._pacer:
            self._pacer.cancel()
            await asyncio.gather(self._pacer, return_exceptions=True)
        for one in list(self._connections):
            one.transport.abort()
        while self._connections:
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    # --- what endpoints tell ---------------------------------------------------------------------

    def connected(self, endpoint: _Endpoint) -> None:
        """A connection was made; it has a while to greet."""
        self._connections.add(endpoint)
        self._numbers += 1
        endpoint.number = self._numbers
        if len(self._connections) > MOST_ENDPOINTS:
            self.drop(endpoint, f"is over the {MOST_ENDPOINTS} that the hub takes")
            return
        loop = asyncio.get_running_loop()
        endpoint.timer = loop.call_later(GREET_WITHIN_S, self.drop, endpoint, "did not greet")

    def join(self, endpoint: _Endpoint) -> None:
        """It greeted: from here on it hears the bus, and is told so."""
        if endpoint.timer:
            endpoint.timer.cancel()
        endpoint.timer = None
        endpoint.joined = True
        endpoint.transport.write(GREETING.pack(MAGIC, VERSION, 0, 0, self._bitrate or 0))
        if not self._reads:
            endpoint.transport.pause_reading()
        log.debug("can_hub.endpoint_joined", endpoint=endpoint.number)

    def leave(self, endpoint: _Endpoint) -> None:
        """Its connection has gone."""
        if endpoint.timer:
            endpoint.timer.cancel()
        self._connections.discard(endpoint)
        self.flows(endpoint)

    def drop(self, endpoint: _Endpoint, why: str) -> None:
        """Disconnect it at once."""
        log.warning("can_hub.endpoint_dropped", endpoint=endpoint.number, why=why)
        endpoint.joined = False
        endpoint.transport.abort()

    def stalled(self, endpoint: _Endpoint) -> None:
        """Its buffer is full: the bus waits for it, but not for ever."""
        self._stalled.add(endpoint)
        self._flowing.clear()
        self._judge_reading()
        self._watch(endpoint)

    def flows(self, endpoint: _Endpoint) -> None:
        """It has read (or gone)."""
        if endpoint not in self._stalled:
            return
        self._stalled.discard(endpoint)
        if endpoint.timer:
            endpoint.timer.cancel()
        endpoint.timer = None
        if not self._stalled:
            self._flowing.set()
        self._judge_reading()

    def _watch(self, endpoint: _Endpoint) -> None:
        left = endpoint.transport.get_write_buffer_size()

        def look() -> None:
            if endpoint.transport.get_write_buffer_size() < left:
                self._watch(endpoint)
            else:
                self.drop(endpoint, f"has read nothing for {self._stall_s:g} s")

        endpoint.timer = asyncio.get_running_loop().call_later(self._stall_s, look)

    def _judge_reading(self) -> None:
        reads = not self._stalled and len(self._waiting) < MOST_WAITING_FRAMES
        if reads == self._reads:
            return
        self._reads = reads
        for one in self._connections:
            # A frozen endpoint's frames go nowhere, so that it has nothing to wait for.
            if one.joined and not one.frozen and not one.transport.is_closing():
                (one.transport.resume_reading if reads else one.transport.pause_reading)()

    # --- frames ----------------------------------------------------------------------------------

    def take(self, sender: _Endpoint, chunk: bytes) -> None:
        """Whole frames from an endpoint."""
        bits = 0
        for number, (can_id, dlc) in enumerate(HEAD.iter_unpack(chunk)):
            if not is_frame(can_id, dlc):
                self.drop(sender, "sent what is no classic CAN frame")
                chunk = chunk[: number * FRAME_BYTES]
                break
            bits += bits_of(can_id, dlc)
            if self._freeze and can_id & 0x1FFF_FFFF == self._freeze.arbitration_id:
                self._freeze.left -= 1
                if self._freeze.left <= 0:
                    self._freeze = None
                    sender.frozen = True
                    chunk = chunk[: (number + 1) * FRAME_BYTES]
                    log.info("can_hub.endpoint_frozen", endpoint=sender.number)
                    break
        self.frames += len(chunk) // FRAME_BYTES
        self.bits += bits
        if not self._bitrate:
            self._deliver(sender, chunk)
            return
        for start in range(0, len(chunk), FRAME_BYTES):
            self._waiting.append((sender, chunk[start : start + FRAME_BYTES]))
        self._arrived.set()
        self._judge_reading()

    def _deliver(self, sender: _Endpoint, chunk: bytes) -> None:
        for one in self._connections:
            if not one.joined or one.frozen or one.transport.is_closing():
                continue
            if one is not sender:
                one.transport.write(chunk)
            elif one.hears_itself:
                own = bytearray(chunk)
                own[5::FRAME_BYTES] = bytes([OWN]) * (len(chunk) // FRAME_BYTES)
                one.transport.write(bytes(own))

    async def _pace(self, bitrate: int) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        while True:
            # A wire that was busy is behind by no more than this process overslept; an idle one, not at all.
            late_s = LATE_S if self._waiting else 0.0
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            sender, frame = self._waiting.popleft()
            [(can_id, dlc)] = HEAD.iter_unpack(frame)
            free_at = max(free_at, loop.time() - late_s) + bits_of(can_id, dlc) / bitrate
            early_s = free_at - loop.time()
            if early_s > EARLY_S:
                await asyncio.sleep(early_s)
            await self._flowing.wait()
            self._deliver(sender, frame)
            self._judge_reading()


@contextlib.contextmanager
def hub_in_thread(
    path: Path | str, *, bitrate: int | None = None, stall_s: float = 5.0
) -> Iterator[HubServer]:
    """A hub in a thread and event loop of its own, for callers without a loop; raises HubError."""
    started: concurrent.futures.Future[tuple[HubServer, asyncio.AbstractEventLoop, asyncio.Event]]
    started = concurrent.futures.Future()

    async def main() -> None:
        stop = asyncio.Event()
        async with HubServer(path, bitrate=bitrate, stall_s=stall_s) as hub:
            started.set_result((hub, asyncio.get_running_loop(), stop))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="can_hub", daemon=True)
    thread.start()
    hub, loop, stop = started.result(START_WITHIN_S)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_WITHIN_S)
