"""The office's MQTT connection against the real broker: nothing is acknowledged before it is durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest

from control_plane.access.accounts import OfficeAccount, hash_password
from control_plane.embedded.nats import EmbeddedNats, truck_user
from control_plane.errors import Unavailable
from control_plane.metrics import Metrics
from control_plane.mqtt import Handler, Mqtt, Received
from shared import topics
from shared.backoff import Backoff
from shared.topics import CENTRE_READS
from sim.link import Link

QUICK = Backoff(first_s=0.05, most_s=0.2)
UPDATE, HELLO = topics.status("truck-001", "update"), topics.status("truck-001", "hello")


@pytest.fixture
async def broker(tmp_path: Path, office_account: OfficeAccount) -> AsyncIterator[EmbeddedNats]:
    users = [office_account.broker_user(), truck_user("truck-001", hash_password("t" * 43))]
    async with EmbeddedNats(tmp_path / "nats", users=users) as nats:
        yield nats


@asynccontextmanager
async def connected(
    port: int, account: OfficeAccount, handler: Handler, *, timeout_s: float = 10.0
) -> AsyncIterator[Mqtt]:
    mqtt = Mqtt(
        host="127.0.0.1",
        port=port,
        username=account.user,
        password=account.password,
        client_id=account.client_id,
        subscriptions=CENTRE_READS,
        handler=handler,
        metrics=Metrics(),
        timeout_s=timeout_s,
        backoff=QUICK,
    )
    task = asyncio.create_task(mqtt.run())
    try:
        await until(lambda: mqtt.connected)
        yield mqtt
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def truck(port: int) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        "127.0.0.1", port, username="truck-001", password="t" * 43, identifier="truck-001"
    ) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class Notes:
    """A handler that notes what it took; while `away` it takes nothing."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.refused = 0
        self.took: list[Received] = []

    async def handle(self, messages: Sequence[Received]) -> None:
        if self.away:
            self.refused += 1
            raise Unavailable("the database is away")
        self.took += messages

    def payloads(self, topic: str = UPDATE) -> list[bytes]:
        return [message.payload for message in self.took if message.topic == topic]


async def test_messages_come_in_order_and_commands_go(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    notes = Notes()
    async with connected(broker.port, office_account, notes.handle) as mqtt, truck(broker.port) as client:
        await client.subscribe(topics.commands("truck-001"), qos=1)
        for number in range(300):
            await client.publish(UPDATE, str(number).encode(), qos=1)
        await until(lambda: len(notes.took) >= 300)
        assert list(dict.fromkeys(notes.payloads())) == [str(n).encode() for n in range(300)]
        await asyncio.gather(
            *(mqtt.publish(topics.commands("truck-001"), str(n).encode()) for n in range(250))
        )
        got = set()
        async with asyncio.timeout(60):
            async for message in client.messages:
                got.add(message.payload)
                if len(got) == 250:
                    break


async def test_what_can_not_be_kept_now_is_held_in_order(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    notes = Notes(away=True)
    async with connected(broker.port, office_account, notes.handle), truck(broker.port) as client:
        for number in range(5):
            await client.publish(UPDATE, str(number).encode(), qos=1)
        await until(lambda: notes.refused > 3)
        notes.away = False
        await until(lambda: len(notes.took) >= 5)
    assert list(dict.fromkeys(notes.payloads())) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_crash_before_it_was_kept_loses_nothing(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    began = asyncio.Event()

    async def dies(messages: Sequence[Received]) -> None:
        began.set()
        await asyncio.Event().wait()

    async with truck(broker.port) as client:
        async with connected(broker.port, office_account, dies):
            await client.publish(UPDATE, b"precious", qos=1)
            await began.wait()
        await client.publish(UPDATE, b"while away", qos=1)
        notes = Notes()
        async with connected(broker.port, office_account, notes.handle):
            await until(lambda: {b"precious", b"while away"} <= set(notes.payloads()))


async def test_after_an_outage_the_newest_hello_comes_last(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    notes = Notes(away=True)
    async with connected(broker.port, office_account, notes.handle), truck(broker.port) as client:
        for word in (b"online", b"offline", b"online again"):
            await client.publish(HELLO, word, qos=1, retain=True)
        await until(lambda: notes.refused > 3)
        notes.away = False
        await until(lambda: any(m.retained and m.payload == b"online again" for m in notes.took))
    assert notes.payloads(HELLO)[-1] == b"online again"


async def test_a_lost_link_is_unavailable_in_bounded_time_and_comes_back(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    notes = Notes()
    async with (
        Link("127.0.0.1", broker.port) as link,
        connected(link.port, office_account, notes.handle, timeout_s=2.0) as mqtt,
        truck(broker.port) as client,
    ):
        link.cut()

        async def publish_on() -> None:
            while True:
                await mqtt.publish(topics.commands("truck-001"), b"x")

        async with asyncio.timeout(30):
            with pytest.raises(Unavailable):
                await publish_on()
        await until(lambda: not mqtt.connected)
        await client.publish(UPDATE, b"meanwhile", qos=1)
        link.restore()
        await until(lambda: mqtt.connected)
        await until(lambda: b"meanwhile" in notes.payloads())
        await mqtt.publish(topics.commands("truck-001"), b"x")


async def test_a_broker_that_never_confirms_is_unavailable(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    async with (
        Link("127.0.0.1", broker.port, down_bytes_per_s=None) as link,
        connected(link.port, office_account, Notes().handle, timeout_s=2.0) as mqtt,
    ):
        # Every byte of an answer is a thousand seconds away.
        link._rate = 0.001
        await mqtt.publish(topics.commands("truck-001"), b"the answer to this one still comes")
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match="did not take"):
                await mqtt.publish(topics.commands("truck-001"), b"y")


async def test_a_wrong_password_never_connects(broker: EmbeddedNats, office_account: OfficeAccount) -> None:
    wrong = OfficeAccount(user=office_account.user, password="w" * 43, client_id="c")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), connected(broker.port, wrong, Notes().handle):
            pass


async def test_a_handler_with_a_bug_does_not_end_the_connection_for_ever(
    broker: EmbeddedNats, office_account: OfficeAccount
) -> None:
    notes = Notes()
    bugs = 0

    async def handler(messages: Sequence[Received]) -> None:
        nonlocal bugs
        bugs += 1
        if bugs == 1:
            raise KeyError("a bug of ours")
        await notes.handle(messages)

    async with connected(broker.port, office_account, handler), truck(broker.port) as client:
        await client.publish(UPDATE, b"1", qos=1)
        await until(lambda: b"1" in notes.payloads())
