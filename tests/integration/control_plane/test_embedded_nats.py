"""The real broker: each truck its own topics only, accounts changed while it runs, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest

from control_plane.access.accounts import hash_password
from control_plane.access.service import AccessService
from control_plane.db import Database
from control_plane.devices.service import DeviceService
from control_plane.embedded.child import ServerFailed
from control_plane.embedded.nats import BrokerUser, EmbeddedNats, office_user, truck_user
from shared import topics
from shared.errors import ConfigError

PASSWORDS = {name: secrets.token_urlsafe(32) for name in ("quarry.office", "truck-1", "truck-2", "wide")}
OFFICE = office_user("quarry.office", hash_password(PASSWORDS["quarry.office"]))
TRUCKS = [truck_user(name, hash_password(PASSWORDS[name])) for name in ("truck-1", "truck-2")]
REFUSED = 0x80


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    async with EmbeddedNats(tmp_path / "nats", users=[OFFICE, *TRUCKS]) as broker:
        yield broker


def _client(
    broker: EmbeddedNats,
    user: str,
    *,
    durable: bool = False,
    password: str | None = None,
    will: aiomqtt.Will | None = None,
    client_id: str | None = None,
) -> aiomqtt.Client:
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=user,
        password=PASSWORDS[user] if password is None else password,
        identifier=client_id or f"client-of-{user.replace('.', '-')}",
        clean_session=not durable,
        timeout=10,
        will=will,
    )


async def _next(client: aiomqtt.Client) -> tuple[str, bytes]:
    async with asyncio.timeout(20):
        message = await anext(aiter(client.messages))
    assert isinstance(message.payload, bytes)
    return str(message.topic), message.payload


async def _granted(client: aiomqtt.Client, topic: str) -> bool:
    [code] = await client.subscribe(topic, qos=1)
    return (code if isinstance(code, int) else code.value) < REFUSED


async def test_a_truck_reads_its_own_topics_and_no_others(broker: EmbeddedNats) -> None:
    async with _client(broker, "truck-1") as truck, _client(broker, "quarry.office") as office:
        for topic in topics.truck_reads("truck-1"):
            assert await _granted(truck, topic)
        foreign = (
            *topics.truck_reads("truck-2"),
            *topics.truck_writes("truck-2"),
            *("commands/+/ota", "commands/#", "acks/+", "status/+/hello", "#", "+/+/+", "/#"),
            *("$SYS/#", "$JS/#", "$JS/API/STREAM/LIST", "$MQTT/#", "$MQTT/sess/#", "$MQTT/rmsgs/#"),
        )
        for topic in foreign:
            assert not await _granted(truck, topic), topic
        await office.publish(topics.commands("truck-2"), b"not yours", qos=1)
        await office.publish(topics.acks("truck-2"), b"not yours", qos=1)
        await office.publish(topics.commands("truck-1"), b"yours", qos=1)
        await office.publish(topics.acks("truck-1"), b"yours too", qos=1)
        got = [await _next(truck), await _next(truck)]
        assert sorted(got) == [(topics.acks("truck-1"), b"yours too"), (topics.commands("truck-1"), b"yours")]


async def test_a_truck_writes_its_own_topics_and_no_others(broker: EmbeddedNats) -> None:
    async with (
        _client(broker, "quarry.office") as office,
        _client(broker, "truck-2") as victim,
        _client(broker, "truck-1") as truck,
    ):
        for topic in topics.CENTRE_READS:
            assert await _granted(office, topic)
        for topic in topics.truck_reads("truck-2"):
            assert await _granted(victim, topic)
        forged = (
            *topics.truck_writes("truck-2"),
            *topics.truck_reads("truck-2"),
            *topics.truck_reads("truck-1"),
            *("status/truck-1/other", "status/truck-1", "telemetry/truck-1/x", "other"),
        )
        for topic in forged:
            # MQTT 3.1.1 can't refuse a publish (3.3.5): it is taken and not delivered.
            await truck.publish(topic, b"forged", qos=1, retain="hello" in topic)
        for topic in topics.truck_writes("truck-1"):
            await truck.publish(topic, b"real", qos=1)
        got = [await _next(office) for _ in topics.truck_writes("truck-1")]
        # The broker keeps the order within a topic, not between topics.
        assert sorted(got) == sorted((topic, b"real") for topic in topics.truck_writes("truck-1"))
        await office.publish(topics.commands("truck-2"), b"real", qos=1)
        assert await _next(victim) == (topics.commands("truck-2"), b"real")
    async with _client(broker, "quarry.office") as office:
        # Nor was the forged one retained: a retained one would come first.
        await office.subscribe("status/truck-2/hello", qos=1)
        async with _client(broker, "truck-2") as truck:
            await truck.publish(topics.status("truck-2", "hello"), b"real", qos=1)
        assert await _next(office) == ("status/truck-2/hello", b"real")


async def _queue_one_for_the_office(broker: EmbeddedNats, payload: bytes) -> None:
    """A status that comes while the office is away."""
    async with _client(broker, "quarry.office", durable=True) as office:
        assert await _granted(office, "status/+/update")
    async with _client(broker, "truck-2") as truck:
        await truck.publish(topics.status("truck-2", "update"), payload, qos=1)


PURGE = "$JS/API/STREAM/PURGE/$MQTT_msgs"


async def test_no_truck_reaches_the_brokers_inside(broker: EmbeddedNats) -> None:
    # What the rights are good for: an account with wide ones can do it.
    wide = BrokerUser(
        name="wide",
        password_bcrypt=hash_password(PASSWORDS["wide"]),
        publishes=(">",),
        subscribes=(">",),
    )
    await broker.set_users([OFFICE, *TRUCKS, wide])
    for user, survives in (("wide", False), ("truck-1", True)):
        await _queue_one_for_the_office(broker, b"queued")
        async with _client(broker, user) as attacker:
            await attacker.publish(PURGE, b"", qos=1)
            if survives:
                for topic in (
                    "$JS/API/STREAM/DELETE/$MQTT_sess",
                    "$JS/API/STREAM/DELETE/$MQTT_msgs",
                    "$MQTT/x",
                ):
                    await attacker.publish(topic, b"", qos=1)
        async with _client(broker, "quarry.office", durable=True) as office:
            async with _client(broker, "truck-2") as truck:
                await truck.publish(topics.status("truck-2", "update"), b"later", qos=1)
            first = (await _next(office))[1]
            assert first == (b"queued" if survives else b"later"), user


async def test_wrong_passwords_and_unknown_names_are_refused(broker: EmbeddedNats) -> None:
    for user, password in (
        ("truck-1", "wrong"),
        ("truck-1", ""),
        ("truck-1", PASSWORDS["truck-2"]),
        ("wide", "x"),
    ):
        with pytest.raises(aiomqtt.MqttError):
            async with _client(broker, user, password=password):
                pass
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client(broker.host, broker.port, timeout=10):
            pass
    # The hash itself opens nothing.
    with pytest.raises(aiomqtt.MqttError):
        async with _client(broker, "truck-1", password=TRUCKS[0].password_bcrypt):
            pass


async def test_accounts_change_while_others_stay_connected(broker: EmbeddedNats) -> None:
    await broker.set_users([OFFICE, TRUCKS[0]])
    with pytest.raises(aiomqtt.MqttError):
        async with _client(broker, "truck-2"):
            pass
    async with _client(broker, "truck-1") as first:
        assert await _granted(first, topics.commands("truck-1"))
        await broker.set_users([OFFICE, *TRUCKS])
        async with _client(broker, "truck-2") as second, _client(broker, "quarry.office") as office:
            assert await _granted(second, topics.commands("truck-2"))
            await office.publish(topics.commands("truck-1"), b"still here", qos=1)
            assert (await _next(first))[1] == b"still here"


async def _broken_off(client: aiomqtt.Client) -> None:
    with pytest.raises(aiomqtt.MqttError):
        await _next(client)


async def test_a_replaced_password_ends_the_old_connection(broker: EmbeddedNats) -> None:
    new = secrets.token_urlsafe(32)
    will = aiomqtt.Will(topics.status("truck-1", "hello"), b"offline", qos=1, retain=True)
    async with _client(broker, "quarry.office") as office:
        assert await _granted(office, "status/+/hello")
        async with contextlib.AsyncExitStack() as stack:
            # Leaving a connection that is broken raises; that it is broken is what is shown.
            stack.enter_context(contextlib.suppress(aiomqtt.MqttError))
            old = await stack.enter_async_context(_client(broker, "truck-1", will=will))
            await broker.set_users([OFFICE, truck_user("truck-1", hash_password(new))])
            # Its last will says that the broker has let go of it.
            assert (await _next(office))[1] == b"offline"
            await _broken_off(old)
        with pytest.raises(aiomqtt.MqttError):
            async with _client(broker, "truck-1"):
                pass
        async with _client(broker, "truck-1", password=new) as truck:
            await truck.publish(topics.status("truck-1", "hello"), b"online", qos=1)
            assert (await _next(office))[1] == b"online"


async def test_hello_is_retained_and_the_will_replaces_it(broker: EmbeddedNats) -> None:
    topic = topics.status("truck-1", "hello")
    will = aiomqtt.Will(topic, b"offline", qos=1, retain=True)
    async with _client(broker, "quarry.office") as office:
        await office.subscribe("status/+/hello", qos=1)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(contextlib.suppress(aiomqtt.MqttError))
            truck = await stack.enter_async_context(_client(broker, "truck-1", will=will))
            await truck.publish(topic, b"online", qos=1, retain=True)
            assert (await _next(office))[1] == b"online"
            async with _client(broker, "quarry.office", client_id="late") as late:
                await late.subscribe("status/+/hello", qos=1)
                assert (await _next(late))[1] == b"online"
            # The link is cut: no DISCONNECT is sent (the library has no word for that).
            truck._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
            assert (await _next(office))[1] == b"offline"
            await _broken_off(truck)
    async with _client(broker, "quarry.office", client_id="later") as later:
        await later.subscribe("status/+/hello", qos=1)
        assert (await _next(later))[1] == b"offline"


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_what_waits_and_what_is_retained_outlives_the_broker(tmp_path: Path, killed: bool) -> None:
    folder = tmp_path / "nats"
    async with EmbeddedNats(folder, users=[OFFICE, *TRUCKS]) as broker:
        await _queue_one_for_the_office(broker, b"while away")
        async with _client(broker, "truck-1") as truck:
            await truck.publish(topics.status("truck-1", "hello"), b"online", qos=1, retain=True)
        if killed:
            os.kill(broker.pid, 9)
    async with (
        EmbeddedNats(folder, users=[OFFICE, *TRUCKS]) as broker,
        _client(broker, "quarry.office", durable=True) as office,
    ):
        assert await _next(office) == (topics.status("truck-2", "update"), b"while away")
        await office.subscribe("status/+/hello", qos=1)
        assert await _next(office) == (topics.status("truck-1", "hello"), b"online")


async def test_a_broker_that_is_gone_is_said_to_be(broker: EmbeddedNats) -> None:
    os.kill(broker.pid, 9)
    with pytest.raises(ServerFailed):
        await broker.set_users([OFFICE])


async def test_secrets_stay_in_private_files(broker: EmbeddedNats, tmp_path: Path) -> None:
    config = tmp_path / "nats" / "nats.conf"
    for _ in range(2):
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
        assert not any(password in config.read_text() for password in PASSWORDS.values())
        await broker.set_users([OFFICE])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_beyond_loopback_it_does_not_listen(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="mqtt_host"):
        EmbeddedNats(tmp_path, users=[], host=host)


async def test_a_truck_that_was_enrolled_connects_at_once(broker: EmbeddedNats, database: Database) -> None:
    access = AccessService(database, broker, office=OFFICE)
    async with database.transaction() as connection:
        await DeviceService(database).create(connection, device_id="truck-9", by="admin")
    await access.load_accounts()
    passwords = [secrets.token_urlsafe(32) for _ in range(2)]
    for password in passwords:
        token = (await access.new_enrolment_token("truck-9")).token
        await access.enrol(
            enrolment_token=token, http_token=secrets.token_urlsafe(32), mqtt_password=password
        )
        async with _client(broker, "truck-9", password=password) as truck:
            assert await _granted(truck, topics.commands("truck-9"))
    with pytest.raises(aiomqtt.MqttError):
        async with _client(broker, "truck-9", password=passwords[0]):
            pass
    async with _client(broker, "quarry.office") as office:
        assert await _granted(office, "status/+/hello")
