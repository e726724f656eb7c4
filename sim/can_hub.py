"""A CAN bus between processes: a hub on a Unix socket that loses nothing and keeps the order.

- Every frame reaches every other endpoint, in one order for all; an FD frame those that take FD.
  Arbitration is first come, first served.
- **Back-pressure**: an endpoint that reads slowly slows the whole bus down. One that has read nothing
  for `stall_s` with its buffer full is disconnected and logged. Nothing grows beyond fixed bounds.
- With a `bitrate` each frame takes its time on the wire, its very stuff bits included (see can_bits), and
  is at most 1 ms early. The data of an FD frame whose bit rate is switched go at `data_bitrate`.
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
    FD,
    FLAGS_AT,
    FRAME_BYTES,
    GREETING,
    HEAD,
    MAGIC,
    OWN,
    VERSION,
    is_frame,
    marked_own,
    seconds_of,
    split,
)
from sim.can_socket import HubError, check_path, listen

log = get_log("sim.can_hub")

MOST_ENDPOINTS = 64
HIGH_WATER_BYTES = 64 * 1024
MOST_WAITING_FRAMES = 64
MOST_DATA_BITRATE = 12_000_000
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
        self.takes_fd = False
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
            magic, version, flags, _, _, _ = GREETING.unpack_from(data)
            if magic != MAGIC or version != VERSION:
                self._hub.drop(self, "speaks another protocol")
                return
            self.hears_itself = bool(flags & OWN)
            self.takes_fd = bool(flags & FD)
            data = data[GREETING.size :]
            self._hub.join(self)
        if self.takes_fd:
            frames, rest = split(data)
            self._rest = rest or b""
            if frames and not self.frozen:
                self._hub.take_any(self, frames)
            if rest is None:
                self._hub.drop(self, "sent what is no CAN frame")
            return
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

    Without a `bitrate` it is as fast as it can; `data_bitrate` is the same as `bitrate` when it is not
    given. `frames` counts what went over the wire, `bus_s` the seconds for which it was occupied (0
    without a bit rate); `endpoints` who is on it now. Raises HubError.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        bitrate: int | None = None,
        data_bitrate: int | None = None,
        stall_s: float = 5.0,
    ) -> None:
        if bitrate is not None and not 1_000 <= bitrate <= 1_000_000:
            raise HubError(f"bitrate {bitrate} is not 1000 to 1000000 bit/s", advice="Give 500000, say.")
        if data_bitrate is not None and not (bitrate and bitrate <= data_bitrate <= MOST_DATA_BITRATE):
            raise HubError(
                f"data_bitrate {data_bitrate} is not bitrate ({bitrate}) to {MOST_DATA_BITRATE} bit/s"
                if bitrate
                else f"data_bitrate {data_bitrate} is given without a bitrate",
                advice="Give a bitrate of 500000 and a data_bitrate of 2000000, say.",
            )
        self.path = Path(path)
        check_path(self.path)
        self._bitrate = bitrate
        self._data_bitrate = data_bitrate or bitrate
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
        self.bus_s = 0.0

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
            rates = (self._bitrate, self._data_bitrate or self._bitrate)
            self._pacer = asyncio.create_task(self._pace(*rates), name="can_hub.pacer")
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
        rates = (self._bitrate or 0, self._data_bitrate or 0)
        endpoint.transport.write(GREETING.pack(MAGIC, VERSION, 0, 0, *rates))
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
        """Whole classic frames from an endpoint."""
        wrong = any(chunk[FLAGS_AT::FRAME_BYTES])
        for number, (can_id, length) in enumerate(HEAD.iter_unpack(chunk)):
            if wrong or not is_frame(can_id, length):
                self.drop(sender, "sent what is no classic CAN frame")
                chunk = chunk[: number * FRAME_BYTES]
                break
            if self._freeze and self._freezes(sender, can_id):
                chunk = chunk[: (number + 1) * FRAME_BYTES]
                break
        self.frames += len(chunk) // FRAME_BYTES
        if not self._bitrate:
            self._deliver(sender, chunk, chunk)
            return
        self._queue(sender, [chunk[at : at + FRAME_BYTES] for at in range(0, len(chunk), FRAME_BYTES)])

    def take_any(self, sender: _Endpoint, frames: list[bytes]) -> None:
        """Whole frames, classic and FD, from an endpoint."""
        if self._freeze:
            for number, frame in enumerate(frames):
                if self._freezes(sender, HEAD.unpack_from(frame)[0]):
                    frames = frames[: number + 1]
                    break
        self.frames += len(frames)
        if not self._bitrate:
            self._deliver(sender, b"".join(frames), b"".join(one for one in frames if not one[FLAGS_AT] & FD))
            return
        self._queue(sender, frames)

    def _freezes(self, sender: _Endpoint, can_id: int) -> bool:
        """Count a frame; whether it is the last of its sender."""
        freeze = self._freeze
        if freeze is None or can_id & 0x1FFF_FFFF != freeze.arbitration_id:
            return False
        freeze.left -= 1
        if freeze.left > 0:
            return False
        self._freeze = None
        sender.frozen = True
        log.info("can_hub.endpoint_frozen", endpoint=sender.number)
        return True

    def _queue(self, sender: _Endpoint, frames: list[bytes]) -> None:
        self._waiting.extend((sender, frame) for frame in frames)
        self._arrived.set()
        self._judge_reading()

    def _deliver(self, sender: _Endpoint, frames: bytes, classic: bytes) -> None:
        """Give `frames` to the endpoints that take FD, those of them that are `classic` to the others."""
        for one in self._connections:
            if not one.joined or one.frozen or one.transport.is_closing():
                continue
            taken = frames if one.takes_fd else classic
            if one is not sender:
                if taken:
                    one.transport.write(taken)
            elif one.hears_itself:
                one.transport.write(marked_own(taken))

    async def _pace(self, bitrate: int, data_bitrate: int) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        while True:
            # A wire that was busy is behind by no more than this process overslept; an idle one, not at all.
            late_s = LATE_S if self._waiting else 0.0
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            sender, frame = self._waiting.popleft()
            occupied_s = seconds_of(frame, bitrate, data_bitrate)
            free_at = max(free_at, loop.time() - late_s) + occupied_s
            early_s = free_at - loop.time()
            if early_s > EARLY_S:
                await asyncio.sleep(early_s)
            await self._flowing.wait()
            self.bus_s += occupied_s
            self._deliver(sender, frame, b"" if frame[FLAGS_AT] & FD else frame)
            self._judge_reading()


@contextlib.contextmanager
def hub_in_thread(
    path: Path | str, *, bitrate: int | None = None, data_bitrate: int | None = None, stall_s: float = 5.0
) -> Iterator[HubServer]:
    """A hub in a thread and event loop of its own, for callers without a loop; raises HubError."""
    started: concurrent.futures.Future[tuple[HubServer, asyncio.AbstractEventLoop, asyncio.Event]]
    started = concurrent.futures.Future()

    async def main() -> None:
        stop = asyncio.Event()
        async with HubServer(path, bitrate=bitrate, data_bitrate=data_bitrate, stall_s=stall_s) as hub:
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
