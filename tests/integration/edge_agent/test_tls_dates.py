"""TLS by a wrong clock: what `enroll` says of it, and the MQTT link's TLS by a time that was proved."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.addresses import tls_context
from edge_agent.config import Office
from edge_agent.office.office_call import OfficeUnreachable, post
from edge_agent.trust.trusted_time import TrustedTime, tls_by

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def self_signed(folder: Path, begins: datetime, ends: datetime) -> Path:
    """A server's own certificate and key in one file, good for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path


@asynccontextmanager
async def server(certificate: Path) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with running:
        yield running.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("begins", "ends"),
    [(NOW + DAY, NOW + 9 * DAY), (NOW - 9 * DAY, NOW - DAY)],
    ids=["the clock is behind", "the clock is ahead"],
)
async def test_a_wrong_clock_is_named(tmp_path: Path, begins: datetime, ends: datetime) -> None:
    certificate = self_signed(tmp_path, begins, ends)
    async with server(certificate) as port:
        office = Office(url=f"https://localhost:{port}", ca_file=certificate)
        with pytest.raises(OfficeUnreachable, match="this gateway's clock says, 2") as error:
            await post(office, "/api/v1/enrolments", {}, tls=lambda: tls_context(certificate))
    assert error.value.code == "tls_dates"
    assert "clock" in error.value.advice


async def test_another_fault_of_a_certificate_is_no_clock(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, NOW - DAY, NOW + DAY)
    async with server(certificate) as port:
        office = Office(url=f"https://localhost:{port}")
        with pytest.raises(OfficeUnreachable) as error:
            await post(office, "/", {}, tls=lambda: tls_context(None))
    assert error.value.code == "office_unreachable"


@dataclass(frozen=True)
class Proved:
    """A time that a token proved."""

    at: datetime

    @property
    def proved(self) -> datetime:
        return self.at

    def now(self) -> datetime:
        return self.at


def handshake(port: int, context: ssl.SSLContext) -> None:
    """As the MQTT library does it: a socket, and the handshake by hand."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False) as wrapped,
    ):
        wrapped.do_handshake()


async def test_the_brokers_dates_are_judged_by_the_proved_time(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, NOW - 30 * DAY, NOW - 10 * DAY)
    good = Proved(NOW - 20 * DAY)
    late = replace(good, at=NOW)
    async with server(certificate) as port:

        async def tried(time: Any, ca_pem: str = "") -> None:
            context = tls_by(None if ca_pem else certificate, cast(TrustedTime, time), ca_pem)
            await asyncio.to_thread(handshake, port, context)

        await tried(good)
        pem = certificate.read_text().partition("-----END PRIVATE KEY-----\n")[2]
        await tried(good, pem)
        with pytest.raises(ssl.SSLCertVerificationError, match="the certificate is good from"):
            await tried(late)
