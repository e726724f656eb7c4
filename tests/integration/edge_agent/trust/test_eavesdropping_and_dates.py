"""TLS: what a listener learns, dates that fail alone, a proved time. Real certificates, real handshakes."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from edge_agent.addresses import UnsafeAddress
from edge_agent.trust.trusted_time import tls_by
from shared.trust.uptane.time_policy import TimePolicy
from sim.uptane_world import UptaneWorld

THEN = datetime(2020, 6, 1, tzinfo=UTC)
"""A time that is over for every machine that runs this: certificates of then have expired on its clock."""


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make(
    folder: Path, *, begins: datetime, days: int, host: str = "127.0.0.1", stranger: bool = False
) -> Path:
    """An authority and a server's certificate; returns the file of the authority that is believed."""
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "other", "server")}

    def ca(who: str) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name("authority"))
            .issuer_name(name("authority"))
            .public_key(keys[who].public_key())
            .serial_number(1)
            .not_valid_before(datetime(2019, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2050, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(keys[who], SHA256())
        )

    server = (
        x509.CertificateBuilder()
        .subject_name(name("office"))
        .issuer_name(name("authority"))
        .public_key(keys["server"].public_key())
        .serial_number(2)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .sign(keys["ca"], SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca("other" if stranger else "ca").public_bytes(pem))
    (folder / "server.pem").write_bytes(
        server.public_bytes(pem)
        + keys["server"].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem"


@asynccontextmanager
async def relay(folder: Path, base: str) -> AsyncIterator[str]:
    """TLS before the office; yields its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    port = int(base.rsplit(":", 1)[1])
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            inner_reader, inner = await asyncio.open_connection("127.0.0.1", port)
            inner.write(head)
            writer.write(await inner_reader.read())
            await writer.drain()
            inner.close()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def over_tls(fleet: Any, base: str, ca: Path) -> None:
    fleet.metadata._office = dataclasses.replace(fleet.source, base=base, tls=partial(tls_by, ca, fleet.time))


async def test_dates_alone_have_a_name_of_their_own(fleet: Any, tmp_path: Path) -> None:
    ca = make(tmp_path, begins=THEN, days=30)
    async with relay(tmp_path, fleet.office.base) as base:
        over_tls(fleet, base, ca)
        assert await fleet.refused() == "tls_dates"
    assert await fleet.alarms() == {"tls_dates"}
    assert fleet.office.asked == []


async def test_a_token_over_plain_http_opens_tls_again(fleet: Any, tmp_path: Path) -> None:
    """By the clock the office's certificate is over; by the proved time it is good, and so is the rest."""
    world = UptaneWorld(now=THEN + timedelta(days=1))
    world.direct(world.release("1.1.0", 2))
    then = type(fleet)(world, tmp_path / "then")
    then.policy = TimePolicy(built_at=THEN)
    then.wall = datetime.now(UTC)
    then.with_time = True
    then.says_time(world.now)
    await then.office.start()
    await then.start_truck()
    ca = make(tmp_path, begins=THEN, days=30)
    async with relay(tmp_path, then.office.base) as base:
        over_tls(then, base, ca)
        assert await then.refused() is None
    assert then.time.proved == world.now
    assert await then.alarms() == set()
    await then.office.stop()


CASES: dict[str, tuple[datetime, dict[str, Any], str]] = {
    "over by the proved time, too": (THEN + timedelta(days=60), {}, "tls_dates"),
    "not good yet by the proved time": (THEN - timedelta(days=60), {}, "tls_dates"),
    "by a stranger": (THEN + timedelta(days=1), {"stranger": True}, "office_unreached"),
    "for another host": (THEN + timedelta(days=1), {"host": "127.0.0.2"}, "office_unreached"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_proved_time_opens_nothing_else(fleet: Any, tmp_path: Path, case: str) -> None:
    proved, more, code = CASES[case]
    ca = make(tmp_path, begins=THEN, days=30, **more)
    fleet.time.prove(proved)
    fleet.time.now = lambda: proved
    async with relay(tmp_path, fleet.office.base) as base:
        over_tls(fleet, base, ca)
        assert await fleet.refused() == code
    assert fleet.office.asked == []


async def test_a_proved_time_within_the_dates(fleet: Any, tmp_path: Path) -> None:
    ca = make(tmp_path, begins=THEN, days=30)
    fleet.time.prove(THEN + timedelta(days=1))
    fleet.time.now = lambda: THEN + timedelta(days=1)
    async with relay(tmp_path, fleet.office.base) as base:
        over_tls(fleet, base, ca)
        await fleet.refused()
    assert fleet.office.asked


async def test_without_a_proof_the_clock_judges(fleet: Any, tmp_path: Path) -> None:
    ca = make(tmp_path, begins=THEN, days=30, stranger=True)
    async with relay(tmp_path, fleet.office.base) as base:
        over_tls(fleet, base, ca)
        # A stranger's certificate is no matter of dates: nobody is asked what time it is.
        assert await fleet.refused() == "office_unreached"


@asynccontextmanager
async def listener(base: str) -> AsyncIterator[tuple[str, bytearray]]:
    """Somebody on the way who passes everything on, both ways, and keeps it; yields its address."""
    scheme, _, port = base.rpartition(":")
    heard = bytearray()
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(65536):
            heard.extend(block)
            writer.write(block)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", int(port))
        await asyncio.gather(pass_on(reader, inner), pass_on(inner_reader, writer), return_exceptions=True)
        tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"{scheme}:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def learnt(fleet: Any, heard: bytearray) -> set[str]:
    """What a listener knows now: the truck's token, its name, and contents of files."""
    known = {"token"} if fleet.source.token.encode() in heard else set()
    known |= {"truck"} if fleet.source.device_id.encode() in heard else set()
    return known | {"file" for body in fleet.office.served.values() if body[-64:] in heard}


async def test_eavesdrop_who_listens_learns_nothing(fleet: Any, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ca = make(tmp_path, begins=now - timedelta(days=1), days=30)
    async with relay(tmp_path, fleet.office.base) as base, listener(base) as (address, heard):
        over_tls(fleet, address, ca)
        assert await fleet.refused() is None
    assert len(heard) > 1000
    assert learnt(fleet, heard) == set()


async def test_eavesdrop_the_listener_would_have_heard_it_in_the_clear(fleet: Any) -> None:
    """The counter-proof: without TLS, which the agent takes on loopback only, all of it is there to read."""
    async with listener(fleet.office.base) as (address, heard):
        fleet.metadata._office = dataclasses.replace(fleet.source, base=address)
        assert await fleet.refused() is None
    assert learnt(fleet, heard) == {"token", "truck", "file"}


async def test_eavesdrop_beyond_loopback_nothing_goes_in_the_clear(fleet: Any) -> None:
    fleet.metadata._office = dataclasses.replace(fleet.source, base="http://192.0.2.1:8080")
    with pytest.raises(UnsafeAddress, match="is not encrypted"):
        await fleet.metadata.refresh()
