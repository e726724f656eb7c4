"""Enrolment against an office that loses answers, refuses, and is not there."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from edge_agent.addresses import UnsafeAddress
from edge_agent.config import AgentConfig, load_config
from edge_agent.office.enrol import (
    EnrolmentFailed,
    NotEnrolled,
    OfficeUnreachable,
    credentials_path,
    enrol,
    read_credentials,
    who_we_are,
)
from edge_agent.trust.manifest_key import load_or_make_key
from shared.certificates import key_sha256
from shared.errors import ConfigError
from shared.trust.keys import load_role_key, new_key


class Office:
    """Answers enrolments as the real one does: a token works once, or again with the same secrets."""

    def __init__(self) -> None:
        self.tokens = {"good-token": "truck-1", "next-token": "truck-1", "others-token": "truck-2"}
        self.enrolled: dict[str, tuple[str, ...]] = {}
        self.asked: list[dict[str, Any]] = []
        self.lose_answers = 0
        self.raw: bytes | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Office:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("post /api/v1/enrolments http/1.1")
            length = next(int(line[16:]) for line in head.split("\r\n") if line.startswith("content-length"))
            asked = json.loads(await reader.readexactly(length))
            self.asked.append(asked)
            status, body = self._answer(asked)
            if self.lose_answers:
                self.lose_answers -= 1
                return
            raw = json.dumps(body).encode()
            writer.write(answer(status, raw) if self.raw is None else self.raw)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        token = asked["enrolment_token"]
        key = x509.load_pem_x509_csr(asked["csr"].encode()).public_key()
        assert isinstance(key, EllipticCurvePublicKey)
        secrets = (asked["http_token"], asked["mqtt_password"], key_sha256(key))
        if token not in self.tokens or self.enrolled.setdefault(token, secrets) != secrets:
            return 403, {"code": "bad_enrolment_token", "detail": "the token is wrong, used or expired"}
        return 200, {"device_id": self.tokens[token], "mqtt_host": "127.0.0.1", "mqtt_port": 1883}


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    async with Office() as running:
        yield running


def config_for(folder: Path, port: int, first: str = "") -> AgentConfig:
    (folder / "key.pem").write_bytes(new_key()[1])
    secret = folder / "ecu.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x01" * 32)
    file = folder / "agent.toml"
    file.write_text(
        f"""
{first}
data_dir = "data"
[office]
url = "http://127.0.0.1:{port}/"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
[vehicle]
source = "bench"
[[component]]
name = "brake"
kind = "k"
hardware = "h"
flasher = "stm32-uds"
interface = "virtual"
channel = "x"
tx_id = 1
rx_id = 2
security_secret_file = "ecu.secret"
"""
    )
    return load_config(file)


async def test_a_truck_makes_its_own_secrets_and_keeps_them_to_itself(office: Office, tmp_path: Path) -> None:
    config = config_for(tmp_path, office.port)
    enrolled = await enrol(config, " good-token\n")
    [asked] = office.asked
    csr, manifest_key = asked.pop("csr"), asked.pop("manifest_key")
    assert asked == {
        "enrolment_token": "good-token",
        "http_token": enrolled.http_token,
        "mqtt_password": enrolled.mqtt_password,
    }
    assert "PRIVATE" not in csr + manifest_key, "the keys stay on the truck"
    assert load_role_key(manifest_key.encode()) == load_or_make_key(config.data_dir).public_key
    assert len({enrolled.http_token, enrolled.mqtt_password}) == 2
    assert min(len(enrolled.http_token), len(enrolled.mqtt_password)) >= 43
    assert who_we_are(config) == enrolled
    file = credentials_path(config.data_dir)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.data_dir.stat().st_mode) == 0o700
    assert "good-token" not in file.read_text()
    shown = repr(enrolled) + repr(read_credentials(config.data_dir))
    assert enrolled.http_token not in shown
    assert enrolled.mqtt_password not in shown


async def test_a_lost_answer_is_asked_for_again_with_the_same_secrets(office: Office, tmp_path: Path) -> None:
    config = config_for(tmp_path, office.port)
    office.lose_answers = 2
    for _ in range(2):
        with pytest.raises(OfficeUnreachable) as lost:
            await enrol(config, "good-token")
        assert lost.value.retryable
        with pytest.raises(NotEnrolled):
            who_we_are(config)
    enrolled = await enrol(config, "good-token")
    assert enrolled.device_id == "truck-1"
    for other in office.asked[1:]:
        # A signature of ECDSA is another each time; that the key is the same the office has checked.
        assert {**other, "csr": ""} == {**office.asked[0], "csr": ""}
    assert await enrol(config, "good-token") == enrolled, "and once more does no harm"


async def test_the_secrets_are_on_the_disk_before_the_office_hears_of_them(
    office: Office, tmp_path: Path
) -> None:
    config = config_for(tmp_path, office.port)
    office.lose_answers = 1
    with pytest.raises(OfficeUnreachable):
        await enrol(config, "good-token")
    pending = read_credentials(config.data_dir).pending
    assert pending is not None
    key = serialization.load_pem_private_key(pending.client_key.encode(), None).public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    assert office.enrolled["good-token"] == (pending.http_token, pending.mqtt_password, key_sha256(key))


async def test_another_token_brings_other_secrets_and_the_old_ones_stay_until_then(
    office: Office, tmp_path: Path
) -> None:
    config = config_for(tmp_path, office.port)
    first = await enrol(config, "good-token")
    with pytest.raises(EnrolmentFailed):
        await enrol(config, "wrong-token")
    assert who_we_are(config) == first
    second = await enrol(config, "next-token")
    assert second.mqtt_password != first.mqtt_password
    assert who_we_are(config) == second


@pytest.mark.parametrize("token", ["", "  ", "a\nb", "токен", "x" * 501])
async def test_what_is_no_token_is_refused_unasked(office: Office, tmp_path: Path, token: str) -> None:
    with pytest.raises(EnrolmentFailed) as refused:
        await enrol(config_for(tmp_path, office.port), token)
    assert refused.value.code == "bad_token"
    assert office.asked == []


async def test_a_used_token_says_what_the_office_says(office: Office, tmp_path: Path) -> None:
    office.enrolled["good-token"] = ("somebody", "else", "")
    with pytest.raises(EnrolmentFailed, match="wrong, used or expired") as refused:
        await enrol(config_for(tmp_path, office.port), "good-token")
    assert refused.value.code == "bad_enrolment_token"
    assert not refused.value.retryable


async def test_a_token_of_another_truck_is_refused(office: Office, tmp_path: Path) -> None:
    config = config_for(tmp_path, office.port, 'device_id = "truck-1"')
    with pytest.raises(EnrolmentFailed, match="the token is of truck truck-2") as refused:
        await enrol(config, "others-token")
    assert refused.value.code == "wrong_truck"
    with pytest.raises(NotEnrolled):
        who_we_are(config)


async def test_credentials_of_another_truck_are_refused(office: Office, tmp_path: Path) -> None:
    await enrol(config_for(tmp_path, office.port), "others-token")
    with pytest.raises(ConfigError, match="device_id is truck-1, the office enrolled truck-2"):
        who_we_are(config_for(tmp_path, office.port, 'device_id = "truck-1"'))


def answer(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (answer(503, b'{"detail":"the broker is away"}'), OfficeUnreachable, "the broker is away"),
        (answer(429, b'{"detail":"slowly"}'), OfficeUnreachable, "slowly"),
        (answer(422, b'{"detail":"bad token","code":"invalid"}'), EnrolmentFailed, "bad token"),
        (answer(404, b"{}"), EnrolmentFailed, "no reason given"),
        (answer(302, b"{}"), EnrolmentFailed, "no reason given"),
        (answer(200, b"<html>log in</html>"), OfficeUnreachable, "not as an office"),
        (answer(200, b"[]"), OfficeUnreachable, "not as an office"),
        (answer(200, b"{}"), OfficeUnreachable, "device_id"),
        (answer(200, b'{"device_id":"a/b","mqtt_host":"h","mqtt_port":1}'), OfficeUnreachable, "device_id"),
        (answer(200, b'{"device_id":"a\\n","mqtt_host":"h","mqtt_port":1}'), OfficeUnreachable, "device_id"),
        (answer(200, b'{"device_id":"a","mqtt_host":"h","mqtt_port":0}'), OfficeUnreachable, "mqtt_port"),
        (answer(200, b"\xff" * 70_000), OfficeUnreachable, "without an end"),
        (b"\x16\x03\x01\r\n\r\n", OfficeUnreachable, "does not answer"),
        (b"", OfficeUnreachable, "does not answer"),
    ],
)
async def test_an_answer_that_is_no_enrolment_changes_nothing(
    office: Office, tmp_path: Path, raw: bytes, error: type[Exception], says: str
) -> None:
    config = config_for(tmp_path, office.port)
    office.raw = raw
    with pytest.raises(error, match=says):
        await enrol(config, "good-token")
    with pytest.raises(NotEnrolled):
        who_we_are(config)
    office.raw = None
    assert (await enrol(config, "good-token")).device_id == "truck-1"


async def test_an_office_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OfficeUnreachable, match=r"127\.0\.0\.1:9/ does not answer") as unreachable:
        await enrol(config_for(tmp_path, 9), "good-token")
    assert "same token" in unreachable.value.advice


def test_credentials_that_others_can_read_are_not_used(tmp_path: Path) -> None:
    config = config_for(tmp_path, 9)
    config.data_dir.mkdir()
    credentials_path(config.data_dir).write_text("{}")
    credentials_path(config.data_dir).chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        who_we_are(config)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"enrolled": 7}', b'{"enrolled": {"device_id": "a"}}']
)
def test_spoiled_credentials_are_named(tmp_path: Path, content: bytes) -> None:
    config = config_for(tmp_path, 9)
    config.data_dir.mkdir()
    credentials_path(config.data_dir).touch(mode=0o600)
    credentials_path(config.data_dir).write_bytes(content)
    with pytest.raises(ConfigError, match=r"credentials.json can't be read"):
        who_we_are(config)


async def test_secrets_never_travel_in_the_clear(tmp_path: Path) -> None:
    from dataclasses import replace

    config = config_for(tmp_path, 9)
    plain = replace(config, office=replace(config.office, url="http://office.example"))
    with pytest.raises(UnsafeAddress):
        await enrol(plain, "good-token")
