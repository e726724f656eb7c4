"""The real broker over TLS with client certificates: who gets in, as whom, and when no more."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.access import certificate_store
from control_plane.access.accounts import OfficeAccount
from control_plane.access.authority import Authority, load_authority, read_csr
from control_plane.access.broker_tls import BrokerCertificates, BrokerWatch
from control_plane.access.certificates import CertificateService
from control_plane.access.service import AccessService
from control_plane.config import OfficeConfig
from control_plane.db import Database
from control_plane.devices.service import DeviceService
from control_plane.embedded.nats import EmbeddedNats
from shared import topics
from shared.certificates import OFFICE_URI

PEM = serialization.Encoding.PEM
REFUSED = 0x80
LIFE = timedelta(days=90)


@dataclass
class Truck:
    """A truck's secrets, its key and its certificate."""

    device_id: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate: str = ""

    def csr(self) -> str:
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return made.sign(self.key, hashes.SHA256()).public_bytes(PEM).decode()


@dataclass
class Yard:
    """An authority, a database's access and a real broker that asks for certificates."""

    folder: Path
    authority: Authority
    certificates: BrokerCertificates
    access: AccessService
    broker: EmbeddedNats
    database: Database
    account: OfficeAccount

    async def enrol(self, device_id: str) -> Truck:
        truck = Truck(device_id)
        async with self.database.transaction() as connection:
            with contextlib.suppress(Exception):
                await DeviceService(self.database).create(connection, device_id=device_id, by="admin")
        await self.again(truck)
        return truck

    async def again(self, truck: Truck) -> None:
        token = (await self.access.new_enrolment_token(truck.device_id)).token
        made = await self.access.enrol(
            enrolment_token=token,
            http_token=secrets.token_urlsafe(32),
            mqtt_password=truck.password,
            csr=truck.csr(),
        )
        assert made.certificate is not None
        truck.certificate = made.certificate

    def client(
        self,
        truck: Truck | None,
        *,
        certificate: str | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        **more: Any,
    ) -> aiomqtt.Client:
        """A connection with this truck's certificate and password, unless something else is said."""
        context = ssl.create_default_context(cadata=self.authority.chain)
        if truck is not None:
            file = self.folder / f"{secrets.token_hex(4)}.pem"
            private = (key or truck.key).private_bytes(
                PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            file.write_bytes(private + (certificate or truck.certificate).encode())
            context.load_cert_chain(file)
        wanted: dict[str, Any] = {
            "username": "nobody" if truck is None else truck.device_id,
            "password": "x" if truck is None else truck.password,
            "identifier": f"c{secrets.token_hex(4)}",
        }
        return aiomqtt.Client(
            "127.0.0.1", self.broker.port, tls_context=context, timeout=3, **{**wanted, **more}
        )

    async def gets_in(self, *args: Any, **kwargs: Any) -> bool:
        try:
            async with self.client(*args, **kwargs):
                return True
        except aiomqtt.MqttError:
            return False

    @contextlib.asynccontextmanager
    async def office(self) -> AsyncIterator[aiomqtt.Client]:
        async with aiomqtt.Client(
            "127.0.0.1",
            self.broker.port,
            username=self.account.user,
            password=self.account.password,
            identifier="office",
            tls_context=await asyncio.to_thread(self.certificates.office_context),
            timeout=10,
        ) as client:
            yield client


@pytest.fixture
async def yard(
    tmp_path: Path, database: Database, authority: Authority, office_account: OfficeAccount
) -> AsyncIterator[Yard]:
    config = OfficeConfig(data=tmp_path, mqtt_tls=True, mqtt_client_certificates="required")
    certificates = BrokerCertificates(config, authority)
    assert certificates.prepare()
    office = office_account.broker_user(OFFICE_URI)
    async with EmbeddedNats(tmp_path / "nats", users=[office], tls=certificates.tls) as broker:
        service = CertificateService(authority, life=LIFE, grace=LIFE)
        access = AccessService(database, broker, office=office, certificates=service, by_certificate=True)
        yield Yard(
            folder=tmp_path,
            authority=authority,
            certificates=certificates,
            access=access,
            broker=broker,
            database=database,
            account=office_account,
        )


async def granted(client: aiomqtt.Client, topic: str) -> bool:
    [code] = await client.subscribe(topic, qos=1)
    return (code if isinstance(code, int) else code.value) < REFUSED


async def next_of(client: aiomqtt.Client) -> tuple[str, Any]:
    async with asyncio.timeout(20):
        message = await anext(aiter(client.messages))
    return str(message.topic), message.payload


async def test_a_certificate_is_its_truck_and_no_other(yard: Yard) -> None:
    one, two = await yard.enrol("truck-1"), await yard.enrol("truck-2")
    # Whatever name it gives in CONNECT.
    async with (
        yard.office() as office,
        yard.client(two) as victim,
        yard.client(one, username="truck-2") as truck,
    ):
        for topic in topics.CENTRE_READS:
            assert await granted(office, topic)
        for topic in topics.truck_reads("truck-2"):
            assert await granted(victim, topic)
            assert not await granted(truck, topic)
        for topic in (*topics.CENTRE_READS, "#", "$SYS/#", "$JS/#", "$MQTT/#"):
            assert not await granted(truck, topic)
        for topic in topics.truck_reads("truck-1"):
            assert await granted(truck, topic)
        for topic in (*topics.truck_writes("truck-2"), *topics.truck_reads("truck-2")):
            await truck.publish(topic, b"forged", qos=1)
        await truck.publish("telemetry/truck-1", b"real", qos=1)
        assert await next_of(office) == ("telemetry/truck-1", b"real")
        await office.publish(topics.commands("truck-2"), b"yours", qos=1)
        assert await next_of(victim) == (topics.commands("truck-2"), b"yours")


async def test_what_does_not_get_in(yard: Yard, tmp_path_factory: pytest.TempPathFactory) -> None:
    one, two = await yard.enrol("truck-1"), await yard.enrol("truck-2")
    now = datetime.now(UTC)
    foreign = load_authority(OfficeConfig(data=tmp_path_factory.mktemp("foreign")))
    csr = read_csr(one.csr())
    unrecorded = yard.authority.for_truck("truck-1", csr, now=now, life=LIFE).pem
    # On the broker's list, and ended a second ago.
    ended = yard.authority.for_truck("truck-1", csr, now=now, life=timedelta(seconds=-1))
    await yard.database.run(lambda c: certificate_store.add(c, "truck-1", ended, "renewal"))
    await yard.access.load_accounts()
    of_a_stranger = foreign.for_truck("truck-1", csr, now=now, life=LIFE).pem
    broker = yard.certificates.tls.certificate.read_bytes()
    broker_key = serialization.load_pem_private_key(broker, None)
    assert isinstance(broker_key, ec.EllipticCurvePrivateKey)
    attacks: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "no certificate": ((None,), {}),
        "no certificate, a good password": ((None,), {"username": "truck-1", "password": one.password}),
        "another's password": ((one,), {"password": two.password}),
        "no password": ((one,), {"password": None, "username": None}),
        "a signed one that the office never issued": ((one,), {"certificate": unrecorded}),
        "an ended one": ((one,), {"certificate": ended.pem}),
        "another authority's": ((one,), {"certificate": of_a_stranger}),
        "the broker's own": ((one,), {"certificate": broker.decode(), "key": broker_key}),
    }
    for name, (args, kwargs) in attacks.items():
        assert not await yard.gets_in(*args, **kwargs), name
    assert await yard.gets_in(one)


async def test_the_broker_is_who_it_says(yard: Yard, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = await yard.enrol("truck-1")
    foreign = load_authority(OfficeConfig(data=tmp_path_factory.mktemp("foreign")))
    for name, context in (
        ("another authority", ssl.create_default_context(cadata=foreign.chain)),
        ("the system's", ssl.create_default_context()),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", yard.broker.port, ssl=context)
        assert name
    assert await yard.gets_in(one)
    # The office believes the very certificate and no other of the same authority.
    pair = yard.authority.for_broker(["127.0.0.1"], now=datetime.now(UTC), life=LIFE)
    context = await asyncio.to_thread(yard.certificates.office_context)
    (yard.folder / "broker.pem").write_bytes(pair.key + pair.certificate)
    await yard.access.load_accounts()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", yard.broker.port, ssl=context)


async def test_a_revoked_truck_is_thrown_out_and_stays_out(yard: Yard) -> None:
    one, two = await yard.enrol("truck-1"), await yard.enrol("truck-2")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(aiomqtt.MqttError))
        client = await stack.enter_async_context(yard.client(one))
        async with yard.client(two) as other:
            await yard.access.revoke("truck-1", by="anna")
            with pytest.raises(aiomqtt.MqttError):
                await next_of(client)
            assert await granted(other, topics.commands("truck-2")), "the others stay connected"
    assert not await yard.gets_in(one)
    # Let in again by a person: with the new certificate only.
    old = one.certificate
    one.password = secrets.token_urlsafe(32)
    await yard.again(one)
    assert await yard.gets_in(one)
    assert not await yard.gets_in(one, certificate=old)


async def test_enrolling_anew_ends_the_old_connection(yard: Yard) -> None:
    one = await yard.enrol("truck-1")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(aiomqtt.MqttError))
        old = await stack.enter_async_context(yard.client(one))
        two = await yard.enrol("truck-1")
        with pytest.raises(aiomqtt.MqttError):
            await next_of(old)
    assert not await yard.gets_in(one)
    assert await yard.gets_in(two)


async def test_the_brokers_certificate_is_renewed_while_it_runs(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await yard.enrol("truck-1")
    watch = BrokerWatch(yard.certificates, yard.access)

    async def shown() -> str:
        context = ssl.create_default_context(cadata=yard.authority.chain)
        _, writer = await asyncio.open_connection("127.0.0.1", yard.broker.port, ssl=context)
        serial = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return str(serial)

    first = await shown()
    assert await watch.step() > 0
    assert await shown() == first, "not due yet"
    # More than half of what a certificate lives now is over.
    monkeypatch.setattr("control_plane.access.broker_tls.BROKER_LIFE", timedelta(days=400))
    async with yard.client(one) as client:
        await watch.step()
        second = await shown()
        assert second != first
        assert await granted(client, topics.commands("truck-1")), "nobody was thrown out"
    async with yard.office():
        pass


async def test_the_loopback_port_of_the_other_protocol_takes_no_password(yard: Yard) -> None:
    one = await yard.enrol("truck-1")
    name = next(user.name for user in yard.broker._users if "truck-1" in user.name)
    reader, writer = await asyncio.open_connection("127.0.0.1", yard.broker._client_port)
    await reader.readline()
    connect = f'CONNECT {{"user":"{name}","pass":"{one.password}","verbose":true}}\r\n'
    writer.write(connect.encode())
    async with asyncio.timeout(10):
        assert b"Authorization Violation" in await reader.readline()
    writer.close()


async def test_beyond_loopback_it_listens_with_tls(tmp_path: Path, authority: Authority) -> None:
    config = OfficeConfig(
        data=tmp_path, mqtt_tls=True, mqtt_host="0.0.0.0", mqtt_public_host="broker.quarry.example"
    )
    certificates = BrokerCertificates(config, authority)
    certificates.prepare()
    async with EmbeddedNats(tmp_path / "nats", users=[], host="0.0.0.0", tls=certificates.tls) as broker:
        context = ssl.create_default_context(cadata=authority.chain)
        _, writer = await asyncio.open_connection(
            "127.0.0.1", broker.port, ssl=context, server_hostname="broker.quarry.example"
        )
        writer.close()


async def test_a_given_certificate_is_used(tmp_path: Path, authority: Authority) -> None:
    pair = authority.for_broker(["broker.quarry.example"], now=datetime.now(UTC), life=LIFE)
    (tmp_path / "c.pem").write_bytes(pair.certificate)
    (tmp_path / "k.pem").write_bytes(pair.key)
    config = OfficeConfig(
        data=tmp_path,
        mqtt_tls=True,
        mqtt_certificate=str(tmp_path / "c.pem"),
        mqtt_certificate_key=str(tmp_path / "k.pem"),
    )
    certificates = BrokerCertificates(config, authority)
    certificates.prepare()
    assert certificates.trucks_ca == "", "trucks believe it by their own trust"
    async with EmbeddedNats(tmp_path / "nats", users=[], tls=certificates.tls) as broker:
        context = await asyncio.to_thread(certificates.office_context)
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=context)
        writer.close()
