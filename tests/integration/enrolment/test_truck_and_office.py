"""A real office (PostgreSQL, broker with TLS that asks for certificates) and the truck's own side of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from cli.main import dispatch
from control_plane.app import Office
from control_plane.config import OfficeConfig
from edge_agent.addresses import tls_context
from edge_agent.app import run_agent
from edge_agent.clock import Clock
from edge_agent.config import AgentConfig, load_config
from edge_agent.credentials import (
    Credentials,
    Enrolled,
    read_credentials,
    who_we_are,
    write_credentials,
)
from edge_agent.liveness import read_live
from edge_agent.office import office_call
from edge_agent.office import renewal as renewal_module
from edge_agent.office.broker_access import broker_of
from edge_agent.office.certificates import read_certificate
from edge_agent.office.enrol import EnrolmentFailed, enrol
from edge_agent.office.mqtt_link import MqttLink
from edge_agent.office.renewal import CertificateRenewal
from edge_agent.store.store import Store
from shared.backoff import Backoff
from shared.messages import Manifest
from shared.trust.keys import new_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = Backoff(first_s=0.05, most_s=0.2)


@dataclass
class Desk:
    """The office as an operator has it."""

    office: Office
    api: httpx.AsyncClient

    async def token(self, device_id: str) -> str:
        await self.api.post("/api/v1/devices", json={"device_id": device_id})
        answer = await self.api.post(f"/api/v1/devices/{device_id}/enrolment-tokens")
        return str(answer.json()["token"])

    async def states(self, device_id: str) -> list[str]:
        answer = await self.api.get(f"/api/v1/devices/{device_id}/certificates")
        return [one["state"] for one in answer.json()["items"]]

    async def online(self, device_id: str) -> bool:
        return bool((await self.api.get(f"/api/v1/devices/{device_id}")).json()["online"])


@asynccontextmanager
async def running(data: Path, **more: Any) -> AsyncIterator[Desk]:
    config = OfficeConfig(data=data, http_port=0, mqtt_port=0, **more)
    async with Office(config) as office:
        bearer = {"Authorization": f"Bearer {office.token_file.read_text().strip()}"}
        async with httpx.AsyncClient(base_url=office.url, headers=bearer, trust_env=False) as api:
            yield Desk(office, api)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    """One office for all trucks of this module."""
    data = tmp_path_factory.mktemp("office")
    async with running(data, mqtt_tls=True, mqtt_client_certificates="required") as made:
        yield made


def truck_config(folder: Path, url: str) -> AgentConfig:
    folder.mkdir()
    (folder / "key.pem").write_bytes(new_key()[1])
    secret = folder / "ecu.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x01" * 32)
    file = folder / "agent.toml"
    file.write_text(
        f"""
data_dir = "data"
[office]
url = "{url}"
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


async def until(what: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            found = what()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def link_of(config: AgentConfig) -> AsyncIterator[MqttLink]:
    async with Store.open(config.data_dir / "agent.db") as store:

        async def manifest() -> Manifest:
            return Manifest(store_id=store.store_id, seq=1, at=datetime.now(UTC), components=())

        broker = broker_of(config, who_we_are(config))
        link = MqttLink(
            broker, store, agent_version="1", features=("install",), manifest=manifest, reconnect=QUICK
        )
        task = asyncio.create_task(link.run())
        try:
            yield link
        finally:
            task.cancel()
            await asyncio.wait({task})


def renewing(
    config: AgentConfig, link: MqttLink, days: float = 0, kill_point: Callable[[str], None] = lambda _: None
) -> CertificateRenewal:
    """The truck's task, by a clock that is so many days ahead."""
    return CertificateRenewal(
        config,
        Clock(wall=lambda: datetime.now(UTC) + timedelta(days=days)),
        linked=lambda: link.connected,
        reconnect=link.reconnect,
        tls=lambda: tls_context(config.office.ca_file),
        kill_point=kill_point,
    )


def serial_of(config: AgentConfig) -> str:
    return read_certificate(who_we_are(config).certificate).serial


async def test_a_truck_is_enrolled_renews_its_certificate_and_is_revoked(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = truck_config(tmp_path / "truck", desk.office.url)
    token = await desk.token("truck-1")
    enrolled = await enrol(config, token)
    assert enrolled.mqtt_tls, "the office says that its broker speaks TLS"
    assert enrolled.certificate
    assert (await enrol(config, token)).certificate == enrolled.certificate, "and the same again"
    with pytest.raises(EnrolmentFailed) as used:
        await enrol(truck_config(tmp_path / "thief", desk.office.url), token)
    assert used.value.code == "enrolment_token_used"

    async with link_of(config) as link:
        await until(lambda: link.connected)
        await until(lambda: desk.online("truck-1"))
        assert await renewing(config, link).step() == renewal_module.LOOK_EVERY_S
        assert serial_of(config) == read_certificate(enrolled.certificate).serial, "not due yet"

        serials = [serial_of(config)]
        for days in (69, 91):
            made_at = link._made_at
            task = renewing(config, link, days)
            await task.step()
            assert task.error == ""
            serials.append(serial_of(config))
            # The link is made anew with it, by itself.
            await until(lambda: link.connected and link._made_at != made_at)  # noqa: B023
        assert len(set(serials)) == 3
        assert await desk.states("truck-1") == ["live", "live", "replaced"]
        assert oct((config.data_dir / "credentials.json").stat().st_mode)[-3:] == "600"

        capsys.readouterr()
        data = ["--data", str(desk.office.config.data), "--json"]
        assert await asyncio.to_thread(dispatch, ["device", "certificates", "truck-1", *data]) == 0
        assert {one["serial"] for one in json.loads(capsys.readouterr().out)} == set(serials)
        assert await asyncio.to_thread(dispatch, ["device", "revoke", "truck-1", *data]) == 0
        taken = {"device_id": "truck-1", "credential": True, "certificates": 3}
        assert json.loads(capsys.readouterr().out) == taken
        await until(lambda: not link.connected)
        # It may try as often as it likes.
        await until(lambda: "broker" in link.last_error)
        assert not link.connected
        task = renewing(config, link, 200)
        assert await task.step() == renewal_module.RETRY.most_s
        assert "revoked" in task.error
    assert await desk.states("truck-1") == ["revoked"] * 3
    capsys.readouterr()
    status = ["agent", "status", "--config", str(config.source), "--json"]
    assert await asyncio.to_thread(dispatch, status) == 0
    shown = json.loads(capsys.readouterr().out)["certificate"]
    assert (shown["serial"], shown["standing"]) == (serials[-1], "good")


class Killed(BaseException):
    """The process ends here: nothing catches it."""


async def test_a_renewal_that_was_cut_anywhere_goes_on_with_the_same_key(desk: Desk, tmp_path: Path) -> None:
    config = truck_config(tmp_path / "truck", desk.office.url)
    await enrol(config, await desk.token("truck-2"))
    before = who_we_are(config)

    def dies_at(point: str) -> Callable[[str], None]:
        def reached(now: str) -> None:
            if now == point:
                raise Killed

        return reached

    async with link_of(config) as link:
        await until(lambda: link.connected)
        for _ in range(3):
            for point in ("renewal.key_kept", "renewal.answered"):
                with pytest.raises(Killed):
                    await renewing(config, link, 70, kill_point=dies_at(point)).step()
                assert who_we_are(config) == before, "the old pair stays in force"
        assert await desk.states("truck-2") == ["live", "live"], "one more was given, not three"
        kept = read_credentials(config.data_dir).renewing
        assert kept is not None
        with pytest.raises(Killed):
            await renewing(config, link, 70, kill_point=dies_at("renewal.in_force")).step()
        assert who_we_are(config).client_key == kept.client_key
        assert read_credentials(config.data_dir).renewing is None
    # Started again, it uses the new one.
    async with link_of(config) as link:
        await until(lambda: link.connected)
    assert await desk.states("truck-2") == ["live", "live"]


async def test_a_renewal_that_meets_a_new_enrolment_leaves_that_alone(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = truck_config(tmp_path / "truck", desk.office.url)
    await enrol(config, await desk.token("truck-3"))
    post = office_call.post

    async def meanwhile(*args: Any, **kwargs: Any) -> dict[str, Any]:
        answer = await post(*args, **kwargs)
        await enrol(config, await desk.token("truck-3"))
        return answer

    monkeypatch.setattr(renewal_module, "post", meanwhile)
    async with link_of(config) as link:
        await renewing(config, link, 70).step()
    fresh = read_credentials(config.data_dir)
    assert fresh.enrolled is not None
    assert fresh.pending is not None
    assert fresh.enrolled.client_key == fresh.pending.client_key
    assert fresh.renewing is None
    async with link_of(config) as link:
        await until(lambda: link.connected)


async def test_the_whole_agent_connects_with_its_certificate(desk: Desk, tmp_path: Path) -> None:
    config = truck_config(tmp_path / "truck", desk.office.url)
    await enrol(config, await desk.token("truck-4"))
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(config, stop=stop))
    try:
        await until(lambda: desk.online("truck-4"))
        assert not agent.done()
        await desk.api.post("/api/v1/devices/truck-4/revocation")
        await until(lambda: (live := read_live(config.data_dir)) is not None and "broker" in live.link_error)
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await agent


async def enrolled_by_an_agent_of_before(config: AgentConfig, desk: Desk) -> None:
    """Without a request for a certificate, and without a word of TLS in its file."""
    own = {"http_token": secrets.token_urlsafe(32), "mqtt_password": secrets.token_urlsafe(32)}
    body = {"enrolment_token": await desk.token("truck-1"), **own}
    answer = (await desk.api.post("/api/v1/enrolments", json=body)).json()
    enrolled = Enrolled(
        device_id=answer["device_id"],
        mqtt_host=answer["mqtt_host"],
        mqtt_port=answer["mqtt_port"],
        http_token=own["http_token"],
        mqtt_password=own["mqtt_password"],
    )
    write_credentials(config.data_dir, Credentials(enrolled=enrolled))


async def test_a_fleet_of_before_goes_over_to_certificates_by_itself(tmp_path: Path) -> None:
    data = tmp_path / "office"
    async with running(data) as desk:
        config = truck_config(tmp_path / "truck", desk.office.url)
        await enrolled_by_an_agent_of_before(config, desk)
        async with link_of(config) as link:
            # On loopback, plain stays the default.
            await until(lambda: link.connected)
    async with running(data, mqtt_tls=True, mqtt_client_certificates="required") as desk:
        config = replace(config, office=replace(config.office, url=desk.office.url))
        async with link_of(config) as link:
            await renewing(config, link).step()
        assert await desk.states("truck-1") == ["live"]
        async with link_of(config) as link:
            await until(lambda: link.connected)
            await until(lambda: desk.online("truck-1"))
        # Without its certificate the token gives it no second one.
        stolen = msgspec.structs.replace(who_we_are(config), certificate="", client_key="", ca_chain="")
        write_credentials(config.data_dir, Credentials(enrolled=stolen))
        async with link_of(config) as link:
            task = renewing(config, link)
            await task.step()
            assert "last certificate did not sign" in task.error
            await until(lambda: "certificate" in link.last_error)
