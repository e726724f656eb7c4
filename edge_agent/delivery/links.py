"""The truck's ways to the office, in the order of preference, and how much each may carry.

A way is a network interface or a local address that connections are made from. `interface` binds the
socket to the device (SO_BINDTODEVICE, Linux 5.7 lets anybody), so that the kernel's routes can't send
it out another way; `address` only sets the source, and needs a route by source beside it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
from anyio.abc import SocketStream

NET = Path("/sys/class/net")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One link. Bytes; None is no bound. Without interface and address: whatever way the kernel takes.

    `image_bytes`: a download with more than this still missing is not begun over it.
    """

    name: str
    interface: str | None = None
    address: str | None = None
    day_bytes: int | None = None
    image_bytes: int | None = None

    def is_up(self) -> bool:
        """False when the interface is surely away; an address that is away shows when it is bound."""
        if self.interface is None:
            return True
        try:
            # A loopback or a tunnel says "unknown" and may well carry.
            return (NET / self.interface / "operstate").read_text(encoding="ascii").strip() != "down"
        except OSError:
            return False


ANY_WAY = Way(name="any")


class BoundBackend(httpcore.AsyncNetworkBackend):
    """Makes httpcore's connections from one interface or address."""

    def __init__(self, way: Way) -> None:
        self._way = way

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As httpcore asks for it; raises its ConnectError and ConnectTimeout."""
        del local_address, socket_options
        from httpcore._backends.anyio import AnyIOStream

        try:
            with anyio.fail_after(timeout):
                return AnyIOStream(await self._connect(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"over {self._way.name}: {host} does not answer") from error
        except OSError as error:
            raise httpcore.ConnectError(f"over {self._way.name}: {error}") from error

    async def _connect(self, host: str, port: int) -> SocketStream:
        last: OSError = OSError(f"{host} has no address")
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            made = socket.socket(family, kind, protocol)
            try:
                made.setblocking(False)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._way.interface is not None:
                    device = self._way.interface.encode() + b"\0"
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
                if self._way.address is not None:
                    made.bind((self._way.address, 0))
                await asyncio.get_running_loop().sock_connect(made, address)
                return await SocketStream.from_socket(made)
            except OSError as error:
                last = error
                made.close()
            except BaseException:
                made.close()
                raise
        raise last

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """Never: images come over a network."""
        raise httpcore.ConnectError("a truck's links are no Unix sockets")

    async def sleep(self, seconds: float) -> None:
        """As httpcore asks for it."""
        await anyio.sleep(seconds)


def client_of(
    way: Way, *, tls: ssl.SSLContext | bool, timeout: httpx.Timeout, proxy: httpx.Proxy | None
) -> httpx.AsyncClient:
    """A client whose connections go this way; nothing is taken from the environment."""
    transport = httpx.AsyncHTTPTransport(
        verify=tls,
        trust_env=False,
        proxy=proxy,
        limits=httpx.Limits(max_connections=2, max_keepalive_connections=0),
    )
    if way.interface is not None or way.address is not None:
        # httpx binds an address, never a device, and not at all behind a proxy: its pool is told instead.
        transport._pool._network_backend = BoundBackend(way)
    return httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False)


class Pace:
    """A token bucket: `delay_s` says how long to wait after so many bytes. Pure, times given in seconds."""

    def __init__(self, bytes_per_s: float | None, *, burst_s: float = 1.0) -> None:
        self._rate = bytes_per_s
        self._burst = 0.0 if bytes_per_s is None else bytes_per_s * burst_s
        self._tokens = self._burst
        self._at: float | None = None

    def delay_s(self, count: int, now: float) -> float:
        """Take `count` bytes at time `now`; the debt is waited out before the next ones."""
        if self._rate is None:
            return 0.0
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)
