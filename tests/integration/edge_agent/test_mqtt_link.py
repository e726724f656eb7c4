"""The link against a real broker and a real store: nothing lost, nothing stuck, for ever coming back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import bcrypt
import pytest

from control_plane.embedded.nats import EmbeddedNats, office_user, truck_user
from edge_agent.office.mqtt_connection import CONNACK_WITHIN_S, Broker
from edge_agent.office.mqtt_link import MOST_IN_BATCH, MqttLink
from edge_agent.store.journal import Change, Entry, Report
from edge_agent.store.store import Store
from shared import topics
from shared.backoff import Backoff
from shared.errors import OtaError
from shared.messages import Ack, Command, CommandTarget, Hello, Installed, Manifest, Rejected, StatusBatch
from shared.states import Step, TruckStatus
from sim.link import Link

DEVICE = "truck-1"
WAIT_S = 30.0
QUICK = Backoff(first_s=0.05, most_s=0.2)
RESEND = Backoff(first_s=0.3, most_s=0.3)
PATIENT = Backoff(first_s=600, most_s=600)


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def broker_at(folder: Path, port: int | None = None) -> EmbeddedNats:
    users = [
        truck_user(DEVICE, hashed("truck-secret")),
        truck_user("truck-2", hashed("other-secret")),
        office_user("office", hashed("office-secret")),
    ]
    return EmbeddedNats(folder, users=users, port=port)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    async with broker_at(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "agent.db") as opened:
        yield opened


@dataclass
class OfficeEnd:
    """What the office hears, and its ways to speak."""

    client: aiomqtt.Client
    hellos: list[Hello] = field(default_factory=list)
    manifests: list[Manifest] = field(default_factory=list)
    batches: list[StatusBatch] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        async for message in self.client.messages:
            match message.topic.value.split("/"):
                case ["status", _, "hello"]:
                    self.hellos.append(Hello.from_json(message.payload))
                case ["status", _, "manifest"]:
                    self.manifests.append(Manifest.from_json(message.payload))
                case ["status", _, "update"]:
                    self.batches.append(StatusBatch.from_json(message.payload))
            self.heard.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.heard.clear()
                await self.heard.wait()

    async def order(self, raw: bytes | Command, device_id: str = DEVICE) -> None:
        payload = raw if isinstance(raw, bytes) else raw.to_json()
        await self.client.publish(topics.commands(device_id), payload, qos=1)

    async def ack(self, *accepted: str, rejected: tuple[Rejected, ...] = ()) -> None:
        payload = Ack(accepted=accepted, rejected=rejected).to_json()
        await self.client.publish(topics.acks(DEVICE), payload, qos=1)

    def ids(self, batch: int = -1) -> list[str]:
        return [status.message_id for status in self.batches[batch].statuses]


@asynccontextmanager
async def office(port: int) -> AsyncIterator[OfficeEnd]:
    async with aiomqtt.Client(
        "127.0.0.1", port, username="office", password="office-secret", identifier="office"
    ) as client:
        end = OfficeEnd(client)
        for topic in topics.CENTRE_READS:
            await client.subscribe(topic, qos=1)
        listening = asyncio.create_task(end.listen())
        try:
            yield end
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def manifest_of(store: Store) -> Callable[[], Awaitable[Manifest]]:
    async def make() -> Manifest:
        part = Installed(component="brake", kind="k", hardware="h")
        return Manifest(
            store_id=store.store_id,
            seq=await store.next_manifest_seq(),
            components=(part,),
            at=datetime.now(UTC),
        )

    return make


def link_of(store: Store, port: int, **more: object) -> MqttLink:
    settings = Broker(host="127.0.0.1", port=port, device_id=DEVICE, password="truck-secret")
    given: dict[str, object] = {"reconnect": QUICK, "resend": RESEND, "manifest": manifest_of(store)}
    return MqttLink(
        settings,
        store,
        agent_version="0.1.0",
        features=("install",),
        **(given | more),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(link: MqttLink) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(link.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.01)


def command(job_id: str = "job-1", revision: int = 1) -> Command:
    target = CommandTarget(
        component="brake", version="1.0", sha256="0" * 64, length=1, document="{}", url="http://127.0.0.1/"
    )
    return Command(
        command_id=f"{job_id}-{revision}",
        job_id=job_id,
        attempt=1,
        revision=revision,
        kind="install",
        targets=(target,),
    )


async def entry_of(store: Store, job_id: str = "job-1") -> Entry:
    entry = await store.entry(job_id, 1)
    assert entry is not None
    return entry


async def tell(store: Store, steps: int, reason: str = "") -> None:
    """Queue so many step statuses of job-1."""
    await store.take_command(command())
    entry = await entry_of(store)
    report = Report(status=TruckStatus.DOWNLOADING, step=Step.WAITING, reason=reason or None)
    await store.record(*[Change(entry=entry, report=report)] * steps)


async def test_a_truck_says_hello_and_what_it_holds(broker: EmbeddedNats, store: Store) -> None:
    await store.take_command(command(revision=7))
    async with office(broker.port) as end, running(link_of(store, broker.port)):
        await end.until(lambda: bool(end.hellos and end.manifests))
    hello = end.hellos[0]
    assert hello.online
    assert (hello.store_id, hello.agent_version, hello.features) == (store.store_id, "0.1.0", ("install",))
    assert hello.revisions == {"job-1": 7}
    assert end.manifests[0].components[0].component == "brake"


async def test_hello_is_retained_and_a_clean_end_takes_it_back(broker: EmbeddedNats, store: Store) -> None:
    link = link_of(store, broker.port)
    async with running(link):

        async def is_connected() -> bool:
            return link.connected

        await until(is_connected)
        async with office(broker.port) as late:
            await late.until(lambda: [hello.online for hello in late.hellos] == [True])
    assert not link.connected
    async with office(broker.port) as later:
        await later.until(lambda: [hello.online for hello in later.hellos] == [False])


async def test_a_truck_that_vanishes_is_taken_back_by_its_will(broker: EmbeddedNats, store: Store) -> None:
    async with (
        office(broker.port) as end,
        Link("127.0.0.1", broker.port) as cell,
        running(link_of(store, cell.port)),
    ):
        await end.until(lambda: bool(end.hellos))
        cell.cut()
        await end.until(lambda: not end.hellos[-1].online)
        cell.restore()
        await end.until(lambda: end.hellos[-1].online)
    async with office(broker.port) as later:
        await later.until(lambda: [hello.online for hello in later.hellos] == [False])


async def test_a_command_is_kept_before_the_broker_forgets_it(broker: EmbeddedNats, tmp_path: Path) -> None:
    """A truck that dies between receipt and store gets the command again, and takes it once."""
    taken: list[str] = []

    class Dying(Store):
        async def take_command(self, command: Command) -> None:
            taken.append(command.command_id)
            if len(taken) == 1:
                raise StoreBroke("the disk is full")
            await super().take_command(command)

    class StoreBroke(OtaError):
        retryable = True

    async with Dying.open(tmp_path / "agent.db") as store, office(broker.port) as end:
        async with running(link_of(store, broker.port, resend=PATIENT)):
            await end.until(lambda: bool(end.hellos))
            await end.order(command())
            # The broker's own ack_wait (5 s) brings it again: it has had no PUBACK.
            await end.until(lambda: bool(end.batches))
        assert taken == ["job-1-1", "job-1-1"]
        assert [entry.job_id for entry in await store.jobs()] == ["job-1"]


async def test_a_command_that_came_before_the_crash_is_sent_again_after_the_next_hello(
    broker: EmbeddedNats, tmp_path: Path
) -> None:
    """The process dies before its store has the command: hello tells so, by not naming the job."""

    class Dying(Store):
        async def take_command(self, command: Command) -> None:
            raise MemoryError

    async with office(broker.port) as end:
        async with (
            Dying.open(tmp_path / "agent.db") as store,
            running(link_of(store, broker.port)) as task,
        ):
            await end.until(lambda: bool(end.hellos))
            await end.order(command())
            await asyncio.wait({task}, timeout=WAIT_S)
            with pytest.raises(BaseExceptionGroup) as died:
                task.result()
            assert died.group_contains(MemoryError)
        seen = len(end.hellos)
        async with Store.open(tmp_path / "agent.db") as store, running(link_of(store, broker.port)):
            await end.until(lambda: any(hello.online for hello in end.hellos[seen:]))
            assert end.hellos[-1].revisions == {}
            await end.order(command())
            await end.until(lambda: bool(end.batches))
            assert [entry.job_id for entry in await store.jobs()] == ["job-1"]


@pytest.mark.parametrize(
    "payload", [b"", b"not json", b"{}", b"[]", b'{"v":1}', b"\xff" * 100, b'{"v":2,"job_id":"x"}']
)
async def test_a_bad_command_is_logged_and_the_next_one_is_taken(
    broker: EmbeddedNats, store: Store, payload: bytes
) -> None:
    async with office(broker.port) as end, running(link_of(store, broker.port)):
        await end.until(lambda: bool(end.hellos))
        await end.order(payload)
        await end.order(command())
        await end.until(lambda: bool(end.batches))
    assert [entry.job_id for entry in await store.jobs()] == ["job-1"]


async def test_another_trucks_commands_never_arrive(broker: EmbeddedNats, store: Store) -> None:
    async with office(broker.port) as end, running(link_of(store, broker.port)):
        await end.until(lambda: bool(end.hellos))
        await end.order(command("job-of-another"), device_id="truck-2")
        await end.order(command())
        await end.until(lambda: bool(end.batches))
    assert [entry.job_id for entry in await store.jobs()] == ["job-1"]


async def test_a_status_is_sent_until_it_is_acked_and_then_no_more(
    broker: EmbeddedNats, store: Store
) -> None:
    await tell(store, 1)
    async with office(broker.port) as end, running(link_of(store, broker.port)):
        await end.until(lambda: len(end.batches) >= 3)
        first = end.ids(0)
        assert len(first) == 2
        assert end.ids(1) == first, "the same statuses, with the same ids"
        await end.ack(*first)
        await until(lambda: nothing_waits(store))
        sent = len(end.batches)
        await tell(store, 1)
        await end.until(lambda: len(end.batches) > sent)
        assert not set(end.ids()) & set(first)


async def nothing_waits(store: Store) -> bool:
    return await store.pending_statuses() == 0


async def test_acks_that_come_twice_or_name_strangers_change_nothing(
    broker: EmbeddedNats, store: Store
) -> None:
    await tell(store, 1)
    async with office(broker.port) as end, running(link_of(store, broker.port, resend=PATIENT)):
        await end.until(lambda: bool(end.batches))
        first, second = end.ids()
        await end.ack("somebody-elses")
        await end.client.publish(topics.acks(DEVICE), b"no ack at all", qos=1)
        await end.ack(first)
        await end.ack(first)
        await end.ack(first, second)
        await until(lambda: nothing_waits(store))
        await tell(store, 1)
        await end.until(lambda: len(end.batches) == 2)


async def test_one_batch_is_under_way_until_all_of_it_is_acked(broker: EmbeddedNats, store: Store) -> None:
    await tell(store, MOST_IN_BATCH + 9)
    async with office(broker.port) as end, running(link_of(store, broker.port, resend=PATIENT)):
        await end.until(lambda: bool(end.batches))
        assert len(end.ids()) == MOST_IN_BATCH
        await end.ack(*end.ids()[:-1])
        await until(lambda: waits(store, 11))
        assert len(end.batches) == 1
        await end.ack(end.ids()[-1])
        await end.until(lambda: len(end.batches) == 2)
        assert len(end.ids()) == 10
        seqs = [status.seq for batch in end.batches for status in batch.statuses]
        assert seqs == sorted(set(seqs))


async def waits(store: Store, number: int) -> bool:
    return await store.pending_statuses() == number


async def test_large_statuses_travel_in_small_batches(broker: EmbeddedNats, store: Store) -> None:
    await tell(store, 60, reason="Ж" * 2000)
    async with office(broker.port) as end, running(link_of(store, broker.port, resend=PATIENT)):
        seen: set[str] = set()
        while len(seen) < 61:
            await end.until(lambda seen=seen: bool(end.batches) and not set(end.ids()) & seen)  # type: ignore[misc]
            seen |= set(end.ids())
            await end.ack(*end.ids())
        assert max(len(batch.to_json()) for batch in end.batches) <= 64 * 1024 + 200


async def test_a_rejected_status_is_dropped_and_the_rest_goes_on(broker: EmbeddedNats, store: Store) -> None:
    await tell(store, 1)
    async with office(broker.port) as end, running(link_of(store, broker.port, resend=PATIENT)):
        await end.until(lambda: bool(end.batches))
        bad, good = end.ids()
        await end.ack(good, rejected=(Rejected(message_id=bad, reason="no such job"),))
        await until(lambda: nothing_waits(store))
        await tell(store, 1)
        await end.until(lambda: len(end.batches) == 2)
        assert bad not in end.ids()


async def test_a_broker_that_restarts_is_found_again(tmp_path: Path, store: Store) -> None:
    async with AsyncExitStack() as first:
        broker = await first.enter_async_context(broker_at(tmp_path / "broker"))
        port = broker.port
        link = link_of(store, port)
        task = await first.enter_async_context(running(link))
        end = await first.enter_async_context(office(port))
        await end.until(lambda: bool(end.hellos))
        await broker.__aexit__()

        async def is_lost() -> bool:
            return not link.connected

        await until(is_lost)
        await tell(store, 1)
        assert not task.done()
        async with broker_at(tmp_path / "broker", port), office(port) as end:
            await end.until(lambda: any(hello.online for hello in end.hellos) and bool(end.batches))
            assert len(end.ids()) == 2
            await end.ack(*end.ids())
            await until(lambda: nothing_waits(store))
        await broker.__aenter__()


async def test_a_link_that_is_cut_again_and_again_still_brings_every_status(
    broker: EmbeddedNats, store: Store
) -> None:
    await tell(store, 900)
    got: dict[str, int] = {}
    rng = random.Random(3)

    async def acknowledge(end: OfficeEnd) -> None:
        seen = 0
        while True:
            await end.until(lambda seen=seen: len(end.batches) > seen)  # type: ignore[misc]
            seen += 1
            got.update({status.message_id: status.seq for status in end.batches[seen - 1].statuses})
            await end.ack(*end.ids(seen - 1))

    async with office(broker.port) as end, Link("127.0.0.1", broker.port) as cell:
        acknowledging = asyncio.create_task(acknowledge(end))
        async with running(link_of(store, cell.port, resend=QUICK)):
            cuts = 0
            async with asyncio.timeout(WAIT_S):
                while not await nothing_waits(store):
                    cell.restore()
                    # Somewhere between the CONNACK and the second ack.
                    cell.cut_after(rng.randrange(1, 4000))
                    cuts += 1
                    while not cell.is_cut and not await nothing_waits(store):
                        await asyncio.sleep(0.01)
        acknowledging.cancel()
        await asyncio.gather(acknowledging, return_exceptions=True)
    assert sorted(got.values()) == list(range(1, 902))
    assert cuts > 3


async def test_a_wrong_password_is_tried_again_quietly_and_leaves_no_socket(
    broker: EmbeddedNats, store: Store
) -> None:
    settings = Broker(host="127.0.0.1", port=broker.port, device_id=DEVICE, password="wrong")
    link = MqttLink(
        settings,
        store,
        agent_version="0.1.0",
        features=(),
        manifest=manifest_of(store),
        reconnect=Backoff(first_s=0.01, most_s=0.01),
    )
    before = open_files()
    async with running(link) as task:

        async def is_refused() -> bool:
            return link.last_error != ""

        await until(is_refused)
        assert not task.done()
    assert "no connection to the broker" in link.last_error
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_server_that_says_nothing_is_left_without_a_socket(store: Store) -> None:
    """Cancelled while it waits for the broker's CONNACK."""
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    before = open_files()
    async with running(link_of(store, server.sockets[0].getsockname()[1])):
        async with asyncio.timeout(WAIT_S):
            await came.wait()
    assert open_files() <= before + 1
    server.close()
    await server.wait_closed()


CONNACK = b"\x20\x02\x00\x00"


@pytest.mark.parametrize(
    "says",
    [
        pytest.param(b"", id="before the CONNACK"),
        pytest.param(CONNACK[:1], id="within the CONNACK"),
        pytest.param(CONNACK, id="before the SUBACK"),
        pytest.param(CONNACK + b"\x90\x03\x00\x01\x01" + b"\x90\x03\x00\x02\x01", id="before the PUBACK"),
    ],
)
async def test_a_reset_while_it_connects_is_noticed_at_once(store: Store, says: bytes) -> None:
    """The next try must not wait for a time-out, and no socket is left."""
    seen = 0

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        await reader.read(1)
        writer.write(says)
        await writer.drain()
        # Until the truck has heard all of that and asked for more.
        if len(says) >= len(CONNACK):
            await reader.read(1000)
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    before = open_files()
    link = link_of(store, server.sockets[0].getsockname()[1])
    async with running(link), asyncio.timeout(CONNACK_WITHIN_S / 2):
        while seen < 4:
            await asyncio.sleep(0.01)
    assert link.last_error
    server.close()
    await server.wait_closed()
    assert open_files() <= before


async def test_a_manifest_follows_every_change_and_survives_a_failing_source(
    broker: EmbeddedNats, store: Store
) -> None:
    make = manifest_of(store)
    calls = 0

    async def failing_first() -> Manifest:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OtaError("the ECU is being flashed")
        return await make()

    link = link_of(store, broker.port, manifest=failing_first)
    async with office(broker.port) as end, running(link):
        await end.until(lambda: len(end.manifests) == 1)
        link.send_manifest()
        await end.until(lambda: len(end.manifests) == 2)
    assert [one.seq for one in end.manifests] == [1, 2]
