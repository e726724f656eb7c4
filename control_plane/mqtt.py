"""The office's one connection to the MQTT broker: a durable session that acknowledges late.

- A message is acknowledged to the broker (PUBACK, MQTT 3.1.1, 4.3.2) only after the handler has
  returned, that is when it is durable here. What a crash leaves unacknowledged comes again.
- A handler whose means are away (Unavailable) is given the same batch again with backoff; nothing
  is taken out of order and nothing is dropped meanwhile. Afterwards the subscriptions are made
  anew: the broker may have re-sent an old `hello` behind a newer one, and a new subscription brings
  the retained, that is the newest, one of each truck (3.8.4).
- `publish` ends within its time-out, either confirmed by the broker or as Unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiomqtt

from control_plane.errors import Unavailable
from control_plane.loops import OUTAGE_BACKOFF
from control_plane.metrics import Metrics
from shared.backoff import Backoff
from shared.logs import get_log

log = get_log("control_plane.mqtt")

KEEPALIVE_S = 20
MOST_BATCH = 200
MOST_WAITING = 2000
"""Messages received and not yet handled. Above it they are dropped unacknowledged, so they come again."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """One message from the broker."""

    topic: str
    payload: bytes
    retained: bool


Handler = Callable[[Sequence[Received]], Awaitable[None]]
"""Makes messages durable, in their order. Raises Unavailable when that is not possible now."""


class Mqtt:
    """The connection as a resource of one process. `run` keeps it up until cancelled.

    `subscriptions` are topic filters, QoS 1. `tls` is asked, in a thread, for each connection; None: in the
    clear.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        username: str,
        password: str,
        client_id: str,
        subscriptions: Sequence[str],
        handler: Handler,
        metrics: Metrics,
        tls: Callable[[], ssl.SSLContext] | None = None,
        timeout_s: float = 10.0,
        most_inflight: int = 100,
        backoff: Backoff = OUTAGE_BACKOFF,
    ) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._client_id = client_id
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._handler = handler
        self._metrics = metrics
        self._tls = tls
        self._timeout_s = timeout_s
        self._most_inflight = most_inflight
        self._backoff = backoff
        self._client: aiomqtt.Client | None = None

    @property
    def connected(self) -> bool:
        """Whether it is connected and subscribed."""
        return self._client is not None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand one message to the broker, QoS 1. Raises Unavailable when it is not confirmed in time."""
        client = self._client
        if client is None:
            raise Unavailable("the MQTT broker is not connected")
        try:
            async with asyncio.timeout(self._timeout_s):
                await client.publish(topic, payload, qos=1, retain=retain)
        except (aiomqtt.MqttError, OSError, TimeoutError) as error:
            raise Unavailable(f"the MQTT broker did not take a message: {error}") from error

    async def run(self) -> None:
        """Connect, receive, and come back after a loss, until cancelled."""
        failures = 0
        while True:
            try:
                async with self._connection() as client:
                    log.info("mqtt.connected", host=self._host, port=self._port, failures=failures)
                    failures = 0
                    await self._receive(client)
            except (aiomqtt.MqttError, OSError, TimeoutError) as error:
                if failures == 0:
                    log.warning("mqtt.connection_lost", error=str(error))
            except Exception:
                # Unforeseen, so told in full; the office goes on without trucks until it is back.
                log.exception("mqtt.connection_failed")
            await asyncio.sleep(self._backoff.delay_s(failures))
            failures += 1

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiomqtt.Client]:
        """One connection, subscribed; `connected` is true inside."""
        tls = None if self._tls is None else await asyncio.to_thread(self._tls)
        client = aiomqtt.Client(
            self._host,
            self._port,
            username=self._username,
            password=self._password,
            identifier=self._client_id,
            clean_session=False,
            timeout=self._timeout_s,
            keepalive=KEEPALIVE_S,
            max_queued_incoming_messages=MOST_WAITING,
            max_inflight_messages=self._most_inflight,
            max_concurrent_outgoing_calls=self._most_inflight,
            tls_context=tls,
            # The end of a longer message would wait for the broker's delayed ACK, 40 ms.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        client.pending_calls_threshold = self._most_inflight
        # aiomqtt acknowledges before its caller sees a message and has no switch for that; paho has.
        client._client.manual_ack_set(True)
        await client.__aenter__()
        try:
            await client.subscribe(self._subscriptions)
            self._client = client
            self._metrics.mqtt_connected.set(1)
            yield client
        finally:
            self._client = None
            self._metrics.mqtt_connected.set(0)
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await client.__aexit__(None, None, None)

    async def _receive(self, client: aiomqtt.Client) -> None:
        """Handle messages in batches, in order. Raises MqttError when the connection is lost."""
        async for first in client.messages:
            batch = [first]
            while len(client.messages) and len(batch) < MOST_BATCH:
                batch.append(await anext(client.messages))
            delayed = await self._handle(batch)
            for message in batch:
                client._client.ack(message.mid, message.qos)
            if delayed:
                await client.subscribe(self._subscriptions)

    async def _handle(self, batch: Sequence[aiomqtt.Message]) -> bool:
        """Give a batch to the handler until it is taken; whether it had to be given again."""
        received = [
            Received(topic=str(m.topic), payload=bytes(m.payload), retained=bool(m.retain)) for m in batch
        ]
        tries = 0
        while True:
            try:
                await self._handler(received)
            except Unavailable as error:
                if tries == 0:
                    log.warning("mqtt.handler_unavailable", error=error.message, waiting=len(batch))
            else:
                return tries > 0
            await asyncio.sleep(self._backoff.delay_s(tries))
            tries += 1
