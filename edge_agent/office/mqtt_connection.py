"""One connection to the broker, made and ended cleanly: what aiomqtt and paho need to be told for that.

The only file that knows of both libraries' insides (aiomqtt 2.5, paho-mqtt 2). It promises: no socket
is left behind by a connection that failed or was cancelled; a cancellation is never lost; a message is
acknowledged when `acknowledge` is called and not before. All errors are LinkLost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiomqtt

from edge_agent.errors import LinkLost
from edge_agent.threads import finish, finish_in_thread
from shared.errors import OtaError
from shared.since_310 import timeout

MOST_WAITING = 200
"""Messages that wait in memory; the broker sends one that found no place again, for it has no ack."""
CALL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
CONNACK_WITHIN_S = 20.0
GOODBYE_WITHIN_S = 3.0
LAST_WORD_S = 0.2
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
"""A message longer than a segment would wait for the other end's delayed ACK, 40 ms, at its end."""


def _in_the_clear() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where the broker is and who we are to it.

    `tls` is asked, in a thread, for each connection: what a truck shows may have been renewed. Its None is a
    connection in the clear. It may raise OtaError: there is no connection then.
    """

    host: str
    port: int
    device_id: str
    password: str = field(repr=False)
    tls: Callable[[], ssl.SSLContext | None] = _in_the_clear
    keepalive_s: int = 60

    @property
    def client_id(self) -> str:
        """Always the same, so that a new connection takes over the old one and its will with it; known to
        this truck alone, since whoever connects by another's client id ends that one's connection.
        """
        return hashlib.sha256(f"client id {self.device_id} {self.password}".encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Will:
    """What the broker says, retained, when this connection ends without a goodbye."""

    topic: str
    payload: bytes


class Connection:
    """A connection that stands. Every method raises LinkLost when it does no more."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def subscribe(self, topic: str) -> None:
        """QoS 1; raises LinkLost when the broker refuses the topic, too."""
        with _translated("a subscription"):
            async with timeout(CALL_TIMEOUT_S):
                granted = await self._client.subscribe(topic, qos=1)
        # A refusal is 0x80 (MQTT 3.1.1, 3.9.3).
        if any((code if isinstance(code, int) else code.value) >= 0x80 for code in granted):
            raise LinkLost(f"the broker refuses {topic}: its user list lacks this truck's rights")

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, within_s: float = CALL_TIMEOUT_S
    ) -> None:
        """QoS 1; returns when the broker has it."""
        with _translated("a message"):
            async with timeout(within_s):
                await self._client.publish(topic, payload, qos=1, retain=retain)

    async def messages(self) -> AsyncIterator[aiomqtt.Message]:
        """What comes, for as long as the connection stands."""
        with _translated("a message"):
            async for message in self._client.messages:
                yield message

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """The broker may forget this message."""
        self._client._client.ack(message.mid, message.qos)


@contextlib.asynccontextmanager
async def connect(broker: Broker, will: Will) -> AsyncIterator[Connection]:
    """MQTT 3.1.1, clean session, client id = user name = device_id. Raises LinkLost."""
    try:
        tls = await finish_in_thread(broker.tls)
    except OtaError as error:
        raise LinkLost(f"no connection to the broker: {error.message}") from error
    client = aiomqtt.Client(
        broker.host,
        broker.port,
        username=broker.device_id,
        password=broker.password,
        identifier=broker.client_id,
        clean_session=True,
        protocol=aiomqtt.ProtocolVersion.V311,
        keepalive=broker.keepalive_s,
        timeout=CONNACK_WITHIN_S,
        max_queued_incoming_messages=MOST_WAITING,
        tls_context=tls,
        socket_options=[NO_DELAY],
        will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True),
        logger=logging.getLogger("edge_agent.mqtt"),
    )
    paho = client._client
    # aiomqtt acknowledges before a message is handled and can't be asked to do it later.
    paho.manual_ack_set(True)
    paho.connect_timeout = CONNECT_TIMEOUT_S
    await _enter(client, encrypted=tls is not None)
    # From here on the calls have no time-out of aiomqtt's: it is asyncio.wait_for, which in Python 3.11
    # loses a cancellation that comes together with the broker's answer.
    client.timeout = math.inf
    try:
        yield Connection(client)
    finally:
        await finish(_leave(client))


async def _enter(client: aiomqtt.Client, *, encrypted: bool) -> None:
    paho = client._client
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    told = paho.on_disconnect

    def on_disconnect(*args: Any) -> None:
        # aiomqtt ignores a connection that is reset before its CONNACK and waits for its time-out.
        if told is not None:
            told(*args)
        if not gone.done():
            gone.set_result(None)

    paho.on_disconnect = on_disconnect
    entering = asyncio.create_task(client.__aenter__(), name="mqtt.connect")
    either: set[asyncio.Future[Any]] = {entering, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # A refusal is followed by the broker's hanging up: its reason is the better word.
        await asyncio.wait({entering}, timeout=LAST_WORD_S)
        if not entering.done():
            # TLS 1.3 tells a client only afterwards that its certificate was refused (RFC 8446, 4.4.2.4).
            why = "; it may not take this truck's certificate" if encrypted else ""
            raise LinkLost(f"no connection to the broker: it hung up before its answer{why}")
        entering.result()
    except aiomqtt.MqttError as error:
        raise LinkLost(f"no connection to the broker: {error}") from error
    finally:
        if not entering.done() or entering.cancelled() or entering.exception() is not None:
            await finish(_give_up(client, entering, connects=not gone.done()))


async def _give_up(client: aiomqtt.Client, entering: asyncio.Task[aiomqtt.Client], *, connects: bool) -> None:
    """End a connection that is not wanted any more, or never came to be.

    `connects`: it has not been lost yet, so without a socket its thread is still making one.
    """
    # That thread can't be stopped, and its socket must not outlive us.
    if client._client.socket() is not None or not connects:
        entering.cancel()
    await asyncio.wait({entering})
    # Taken, so that the loop does not report it.
    _ = entering.cancelled() or entering.exception()
    _close(client)


async def _leave(client: aiomqtt.Client) -> None:
    """End a connection, politely where it still stands."""
    client.timeout = GOODBYE_WITHIN_S
    with contextlib.suppress(aiomqtt.MqttError):
        await client.__aexit__(None, None, None)
    _close(client)


def _close(client: aiomqtt.Client) -> None:
    """Close what a failed or broken connection has left open: aiomqtt leaves that to time."""
    client._client._sock_close()


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LinkLost(f"the broker does not answer {what}") from error
    except aiomqtt.MqttError as error:
        raise LinkLost(f"the link to the broker broke: {error}") from error
