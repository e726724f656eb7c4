"""The only speaker of MQTT on the truck: commands in, statuses out, for ever coming back.

- A command is acknowledged to the broker only when the store has it; one that can't be read is
  logged and acknowledged, for it would come again for ever.
- One batch of statuses is under way at a time. Samples go only while no status waits, and are forgotten
  when the broker has them. A status is sent until the office's own ack for it has
  come: the broker's says nothing about the office's database.
- `hello` is retained and the last will takes it back, so that the office always knows who is there.
- A connection that breaks is made anew with growing, jittered delays, without an end.

MQTT 3.1.1 with a clean session: after `hello` the office sends what this truck must know, so that
nothing old waits for it in the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from edge_agent.errors import LinkLost
from edge_agent.office.mqtt_connection import GOODBYE_WITHIN_S, Broker, Connection, Will, connect
from edge_agent.store.samples import Waiting
from shared import topics
from shared.backoff import Backoff
from shared.errors import OtaError
from shared.logs import get_log
from shared.messages import (
    MOST_STATUSES,
    Ack,
    Command,
    Hello,
    Manifest,
    Rejected,
    Status,
    StatusBatch,
    Telemetry,
)
from shared.since_310 import BaseExceptionGroup, TaskGroup, timeout
from shared.wire import MAX_MESSAGE_BYTES

log = get_log("edge_agent.mqtt_link")

MOST_IN_BATCH = 50
"""Statuses in the first batch of a connection; it doubles with each ack and halves without one."""
MOST_BATCH_BYTES = MAX_MESSAGE_BYTES // 2
RECONNECT = Backoff(first_s=1.0, most_s=120.0, jitter=0.5)
RESEND = Backoff(first_s=10.0, most_s=300.0, jitter=0.3)
STEADY_AFTER_S = 60.0
REST_S = 60.0
"""The longest rest while nothing is to be sent; a lost wake-up costs no more."""


class OutboxStore(Protocol):
    """What the link needs of `edge_agent.store.store.Store`."""

    store_id: str
    outbox_wake: asyncio.Event

    async def take_command(self, command: Command) -> object: ...

    async def next_statuses(self, limit: int, *, most_bytes: int) -> Sequence[Status]: ...

    async def acked(self, accepted: Sequence[str], rejected: Sequence[Rejected]) -> None: ...

    async def revisions(self) -> dict[str, int]: ...

    async def next_samples(self, *, most_bytes: int) -> Waiting | None: ...

    async def samples_sent(self, upto: int) -> None: ...


def _nobody() -> None:
    """Nobody is woken."""


class MadeAnew(LinkLost):
    """The connection was ended on purpose, to be made again at once."""


class MqttLink:
    """The link as a task: `run` until cancelled. `connected` says whether `hello` is out.

    `metadata_versions` are for `hello`; `woken` is called when the link is made and when a command came.
    """

    def __init__(
        self,
        broker: Broker,
        store: OutboxStore,
        *,
        agent_version: str,
        features: Sequence[str],
        manifest: Callable[[], Awaitable[Manifest]],
        metadata_versions: Callable[[], Mapping[str, int]] = dict,
        woken: Callable[[], None] = _nobody,
        reconnect: Backoff = RECONNECT,
        resend: Backoff = RESEND,
    ) -> None:
        self._broker = broker
        self._store = store
        self._agent_version = agent_version
        self._features = tuple(features)
        self._manifest = manifest
        self._metadata_versions = metadata_versions
        self._woken = woken
        self._reconnect = reconnect
        self._resend = resend
        self._commands = topics.commands(broker.device_id)
        self._acks = topics.acks(broker.device_id)
        self._hello_topic = topics.status(broker.device_id, "hello")
        self._manifest_due = asyncio.Event()
        self._again = asyncio.Event()
        self._under_way: set[str] = set()
        self._answered = asyncio.Event()
        self._made_at: float | None = None
        self.connected = False
        self.last_error = ""
        self.pulse: Callable[[], None] = lambda: None

    def reconnect(self) -> None:
        """Make the connection anew, politely: this truck has something newer to show."""
        self._again.set()

    def send_manifest(self) -> None:
        """What is installed may have changed: tell it, now or at the next connect."""
        self._manifest_due.set()

    async def run(self) -> None:
        """Hold the link until cancelled."""
        failures = 0
        while True:
            self.pulse()
            self._made_at = None
            try:
                await self._hold()
            except MadeAnew:
                log.info("mqtt.link_made_anew")
                continue
            except LinkLost as error:
                # A link that came up and fell at once, time and again, must be left alone for longer.
                failures = 1 if self._held_s() >= STEADY_AFTER_S else failures + 1
                delay_s = self._reconnect.delay_s(failures - 1)
                if error.message != self.last_error:
                    log.warning("mqtt.link_lost", error=error.message, next_try_in_s=round(delay_s, 1))
                self.last_error = error.message
            finally:
                self.connected = False
            await asyncio.sleep(delay_s)

    def _held_s(self) -> float:
        """How long the connection that has just ended had been up."""
        return 0.0 if self._made_at is None else asyncio.get_running_loop().time() - self._made_at

    async def _hold(self) -> NoReturn:
        """One connection, from its begin to its end. Raises LinkLost when it breaks."""
        # Whatever asks for it from here on is newer than what this connection is made with.
        self._again.clear()
        will = Will(topic=self._hello_topic, payload=self._hello(online=False, revisions={}))
        async with connect(self._broker, will) as connection:
            try:
                async with TaskGroup() as tasks:
                    # From the first moment on, for it is what notices that the link breaks.
                    tasks.create_task(self._receive(connection), name="mqtt.receive")
                    await self._greet(connection)
                    self._made_at = asyncio.get_running_loop().time()
                    self.connected = True
                    self.last_error = ""
                    log.info("mqtt.link_made", host=self._broker.host, port=self._broker.port)
                    self._manifest_due.set()
                    self._woken()
                    tasks.create_task(self._until_again(), name="mqtt.again")
                    tasks.create_task(self._send_statuses(connection), name="mqtt.statuses")
                    tasks.create_task(self._send_manifests(connection), name="mqtt.manifests")
            except asyncio.CancelledError:
                await self._say_goodbye(connection)
                raise
            except BaseExceptionGroup as group:
                broken, other = group.split(LinkLost)
                if broken is None or other is not None:
                    raise
                raise _first(broken) from group
            raise LinkLost("the link to the broker ended")

    async def _until_again(self) -> NoReturn:
        await self._again.wait()
        raise MadeAnew("there is a newer certificate to show")

    async def _greet(self, connection: Connection) -> None:
        """Listen, then say who is here: the office answers a `hello` at once. Raises LinkLost."""
        for topic in (self._commands, self._acks):
            await connection.subscribe(topic)
        hello = self._hello(online=True, revisions=await self._store.revisions())
        await connection.publish(self._hello_topic, hello, retain=True)

    def _hello(self, *, online: bool, revisions: dict[str, int]) -> bytes:
        return Hello(
            online=online,
            store_id=self._store.store_id,
            agent_version=self._agent_version,
            features=self._features,
            revisions=revisions,
            metadata_versions=dict(self._metadata_versions()) if online else {},
        ).to_json()

    async def _say_goodbye(self, connection: Connection) -> None:
        """Tell that this truck leaves: the broker keeps the will to itself after a clean end."""
        with contextlib.suppress(LinkLost):
            bye = self._hello(online=False, revisions=await self._store.revisions())
            await connection.publish(self._hello_topic, bye, retain=True, within_s=GOODBYE_WITHIN_S)

    async def _receive(self, connection: Connection) -> None:
        async for message in connection.messages():
            payload = message.payload
            try:
                if message.topic.value == self._commands:
                    await self._take_command(payload)
                elif message.topic.value == self._acks:
                    await self._take_ack(payload)
            except OtaError as error:
                log.warning(
                    "mqtt.message_refused",
                    topic=message.topic.value,
                    error=error.message,
                    begins=payload[:200].decode("utf-8", "replace"),
                )
                if error.retryable:
                    # Not acknowledged: the broker sends it again later.
                    continue
            connection.acknowledge(message)

    async def _take_command(self, payload: bytes) -> None:
        command = Command.from_json(payload)
        await self._store.take_command(command)
        self._woken()
        log.info(
            "command.received",
            job_id=command.job_id,
            kind=command.kind,
            attempt=command.attempt,
            revision=command.revision,
        )

    async def _take_ack(self, payload: bytes) -> None:
        ack = Ack.from_json(payload)
        for one in ack.rejected:
            log.warning("status.rejected", message_id=one.message_id, reason=one.reason)
        await self._store.acked(ack.accepted, ack.rejected)
        done = {*ack.accepted, *(one.message_id for one in ack.rejected)}
        if self._under_way & done:
            self._under_way -= done
            self._answered.set()

    async def _send_statuses(self, connection: Connection) -> None:
        topic = topics.status(self._broker.device_id, "update")
        tries = 0
        batch_size = MOST_IN_BATCH
        while True:
            self.pulse()
            # Cleared before the look, so that a status that comes in between wakes us.
            self._store.outbox_wake.clear()
            statuses = await self._store.next_statuses(batch_size, most_bytes=MOST_BATCH_BYTES)
            if not statuses:
                tries = 0
                if not await self._send_samples(connection):
                    await _set_within(self._store.outbox_wake, REST_S)
                continue
            batch = StatusBatch(store_id=self._store.store_id, statuses=tuple(statuses))
            self._under_way = {status.message_id for status in statuses}
            self._answered.clear()
            await connection.publish(topic, batch.to_json())
            if await self._answered_within(self._resend.delay_s(tries)):
                tries = 0
                batch_size = min(MOST_STATUSES, batch_size * 2)
            else:
                tries += 1
                batch_size = max(1, batch_size // 2)
                log.info("statuses.unanswered", statuses=len(self._under_way), tries=tries)

    async def _send_samples(self, connection: Connection) -> bool:
        """One message of samples; False when none wait."""
        waiting = await self._store.next_samples(most_bytes=MOST_BATCH_BYTES)
        if waiting is None:
            return False
        message = Telemetry(store_id=self._store.store_id, samples=waiting.samples)
        await connection.publish(topics.telemetry(self._broker.device_id), message.to_json())
        await self._store.samples_sent(waiting.upto)
        return True

    async def _answered_within(self, most_s: float) -> bool:
        """Whether the office's ack for the whole batch came in time."""
        try:
            async with timeout(most_s):
                while self._under_way:
                    await self._answered.wait()
                    self._answered.clear()
        except TimeoutError:
            return False
        return True

    async def _send_manifests(self, connection: Connection) -> None:
        topic = topics.status(self._broker.device_id, "manifest")
        failures = 0
        while True:
            await self._manifest_due.wait()
            self._manifest_due.clear()
            try:
                manifest = await self._manifest()
                await connection.publish(topic, manifest.to_json())
                failures = 0
            except LinkLost:
                self._manifest_due.set()
                raise
            except OtaError as error:
                log.warning("manifest.failed", error=error.message)
                self._manifest_due.set()
                await asyncio.sleep(self._resend.delay_s(failures))
                failures += 1


async def _set_within(event: asyncio.Event, most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with timeout(most_s):
            await event.wait()


def _first(group: BaseExceptionGroup[LinkLost]) -> LinkLost:
    """The first single error of a group, however deep."""
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one
