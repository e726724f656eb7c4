"""A USB bundle on a truck without a network: the same trust, never a lower version, told like any job.

The command runs beside the agent, as a person types it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli import app
from edge_agent.config import AgentConfig, load_config
from edge_agent.hands import asks as asks_module
from edge_agent.hands import cli_install, local_bundle
from edge_agent.hands.asks import Asks
from edge_agent.office.enrol import Credentials, Enrolled, write_credentials
from edge_agent.update.directed import bundles_folder
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from shared.trust.uptane.offline import offline_file
from shared.trust.uptane.release_document import ReleaseSpec
from sim.uptane_attacker import Attacker

TEXT = """
data_dir = "."
[office]
url = "{base}"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
{roots}
[vehicle]
source = "bench"
"""
ROOTS = """
director_root = "director.json"
image_root = "image.json"
gateway_serial = "gateway-7"
[trust.serials]
c0 = "SN-0"
c1 = "SN-1"
"""
COMPONENT = """
[[component]]
name = "{name}"
kind = "{kind}"
hardware = "{hardware}"
flasher = "stm32-uds"
interface = "virtual"
channel = "bench"
tx_id = {tx}
rx_id = {rx}
security_secret_file = "secret"
"""
NEW = {"c0": "1.2.0", "c1": "1.2.0"}


class Desk:
    """A person at the truck with a stick; the agent's part is `gateway`, whose office does not answer."""

    def __init__(self, gateway: Any, folder: Path) -> None:
        self.gateway, self.folder = gateway, folder
        self.fleet = gateway.fleet
        self.stick = folder / "stick"
        private, public = new_key()
        self.signer = load_signer(private)
        (folder / "key.pem").write_bytes(public)
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_bytes(b"\x07" * 32)
        published = self.fleet.world
        (folder / "director.json").write_bytes(published.director.published["1.root.json"])
        (folder / "image.json").write_bytes(published.image.published["1.root.json"])
        self.configure()
        enrolled = Enrolled(
            device_id="truck-7", mqtt_host="h", mqtt_port=1, http_token="t" * 40, mqtt_password="p" * 40
        )
        write_credentials(folder, Credentials(enrolled=enrolled))

    def configure(self, *, roots: bool = True) -> None:
        text = TEXT.format(base=self.fleet.office.base, roots=ROOTS if roots else "")
        for n, ecu in enumerate(self.fleet.world.vehicle.ecus):
            text += COMPONENT.format(
                name=f"c{n}", kind=ecu.kind, hardware=ecu.hardware, tx=0x7E0 + n, rx=0x7E8 + n
            )
        (self.folder / "agent.toml").write_text(text)

    @property
    def config(self) -> AgentConfig:
        return load_config(self.folder / "agent.toml")

    def release(self, version: str = "1.2.0", counter: int = 3) -> ReleaseSpec:
        release: ReleaseSpec = self.fleet.world.release(version, counter)
        return release

    def bundle(self, release: ReleaseSpec, *, version: int = 1) -> Path:
        """The stick holds all that is served, and a selection by the offline role."""
        self.fleet.world.direct_offline(release, version=version)
        return self.write(self.fleet.world.served)

    def write(self, served: dict[Any, bytes]) -> Path:
        for (repository, name), raw in served.items():
            path = self.stick / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        return self.stick

    async def typed(self, *args: str) -> Result:
        """`quarry agent install-file ...`, while the agent takes up what is asked."""
        asks = Asks(self.folder, self.gateway.store, hurry=lambda _: None)
        taking = asyncio.create_task(asks.run())
        given = ["install-file", *args, "--config", str(self.folder / "agent.toml")]
        try:
            return await asyncio.to_thread(lambda: CliRunner().invoke(app, given))
        finally:
            taking.cancel()
            await asyncio.wait({taking})

    async def brought(self, *args: str) -> str:
        """The job's id."""
        done = await self.typed(*args, "--json")
        assert done.exit_code == 0, (done.output, done.stderr, done.exception)
        job_id: str = json.loads(done.stdout)["job_id"]
        return job_id

    async def ends(self) -> Any:
        """The agent does what is in its journal, with no network."""
        return await self.gateway.ends()


@pytest.fixture
async def desk(gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    made = Desk(gateway, tmp_path)

    class Now:
        """The world's time in place of this machine's."""

        @staticmethod
        def now(_: object) -> Any:
            return gateway.fleet.wall

    monkeypatch.setattr(cli_install, "datetime", Now)
    monkeypatch.setattr(asks_module, "LOOK_EVERY_S", 0.05)
    # No network: nobody answers.
    await gateway.fleet.office.stop()
    yield made
    await gateway.fleet.office.start()


async def test_a_release_comes_by_hand_with_no_network(desk: Desk) -> None:
    bundle = desk.bundle(desk.release())
    job_id = await desk.brought(str(bundle))
    assert job_id.startswith("local-")
    done = await desk.ends()
    assert (done.status, done.error, done.job_id) == ("done", None, job_id)
    assert desk.gateway.runs == NEW
    # The stick was not needed any more.
    [entry] = await desk.gateway.store.jobs()
    assert entry.selection in await desk.gateway.kept.selections()
    assert desk.gateway.fleet.keeper.store.offline == 1
    assert {one.job_id for one in desk.gateway.seen} == {job_id}


async def test_the_stick_may_be_pulled_before_the_agent_runs(desk: Desk) -> None:
    bundle = desk.bundle(desk.release())
    await desk.brought(str(bundle))
    bundle.rename(desk.folder / "pulled")
    assert (await desk.ends()).status == "done"
    assert desk.gateway.runs == NEW


async def test_an_image_that_is_lost_meanwhile_comes_from_the_office(desk: Desk) -> None:
    """By the truck's own token, since no command has an address of it."""
    await desk.brought(str(desk.bundle(desk.release())))
    for path in desk.gateway.folder.glob("*.bin"):
        if path.name != f"{desk.gateway.mcus['c1'].spec.sha256}.bin":
            path.unlink()
    office = desk.fleet.office
    await office.start()
    try:
        desk.gateway.chain.source.__dict__["base"] = office.base
        desk.gateway.downloader._transfer._network.office.__dict__["base"] = office.base
        assert (await desk.ends()).status == "done"
    finally:
        await office.stop()
    assert desk.gateway.runs == NEW
    assert len([name for name in office.asked if name.endswith(".bin")]) == 2


async def test_an_older_bundle_does_not_come_back(desk: Desk) -> None:
    old = dict(desk.fleet.world.served)
    desk.bundle(desk.release(), version=2)
    await desk.brought(str(desk.stick))
    assert (await desk.ends()).status == "done"
    desk.fleet.world.served = old
    desk.fleet.world.direct_offline(desk.release("1.1.5", 2), version=1)
    desk.write(desk.fleet.world.served)
    done = await desk.typed(str(desk.stick))
    assert done.exit_code == 1
    assert "version 1, 2 was trusted" in str(done.exception or done.stderr)


def _no_selection(desk: Desk) -> None:
    (desk.stick / "director" / offline_file("truck-7")).unlink()


def _another_truck(desk: Desk) -> None:
    mine = desk.stick / "director" / offline_file("truck-7")
    world = desk.fleet.world
    vehicle = world.vehicle
    world.vehicle = replace(vehicle, vehicle_id="truck-8")
    world.direct_offline(world.release("1.2.0", 3))
    world.vehicle = vehicle
    mine.write_bytes(world.served["director", offline_file("truck-8")])


def _over(desk: Desk) -> None:
    desk.fleet.wall += timedelta(days=91)


def _half(desk: Desk) -> None:
    for path in (desk.stick / "image").glob("*.brake-controller.json"):
        path.unlink()


def _one_key(desk: Desk) -> None:
    bad = Attacker(desk.fleet.world, ["director/offline/1"])
    bad.direct_offline(desk.fleet.world.release("1.2.0", 3))
    (desk.stick / "director" / offline_file("truck-7")).write_bytes(
        bad.served["director", offline_file("truck-7")]
    )


def _another_image(desk: Desk) -> None:
    for path in (desk.stick / "image" / "targets").rglob("*.bin"):
        path.write_bytes(b"\x66" * path.stat().st_size)


def _no_image(desk: Desk) -> None:
    for path in (desk.stick / "image" / "targets").rglob("*.bin"):
        path.unlink()


def _a_link_out(desk: Desk) -> None:
    for path in (desk.stick / "image" / "targets").rglob("*.bin"):
        path.unlink()
        path.symlink_to("/etc/hostname")


def _a_pipe(desk: Desk) -> None:
    path = desk.stick / "image" / "timestamp.json"
    path.unlink()
    os.mkfifo(path)


BAD: dict[str, tuple[Callable[[Desk], None], str]] = {
    "no selection for this truck": (_no_selection, "metadata_missing"),
    "another truck's selection": (_another_truck, "wrong_vehicle"),
    "over": (_over, "metadata_expired"),
    "half of the metadata": (_half, "metadata_missing"),
    "one stolen key": (_one_key, "metadata_unsigned"),
    "another image": (_another_image, "wrong_image"),
    "no image": (_no_image, "bad_bundle"),
    "an image that leads out": (_a_link_out, "bad_bundle"),
    "a pipe": (_a_pipe, "metadata_unreadable"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_bundle_is_refused_at_once_by_its_name(desk: Desk, bad: str) -> None:
    spoil, code = BAD[bad]
    desk.bundle(desk.release())
    spoil(desk)
    done = await desk.typed(str(desk.stick))
    assert done.exit_code == 1
    assert getattr(done.exception, "code", None) == code, done.exception
    assert not bundles_folder(desk.folder).exists()
    assert not list((desk.folder / "asks").glob("*")) if (desk.folder / "asks").exists() else True


async def test_the_agent_verifies_for_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in its folder behind the command's own check is believed as little."""
    desk.bundle(desk.release())
    job_id = await desk.brought(str(desk.stick))
    selected = bundles_folder(desk.folder) / job_id / "director" / offline_file("truck-7")
    bad = Attacker(desk.fleet.world, ["director/offline/1"])
    bad.direct_offline(bad.release("6.6.6", 66))
    selected.write_bytes(bad.served["director", offline_file("truck-7")])
    ended = await desk.ends()
    assert (ended.status, ended.error.code) == ("error", "metadata_unsigned")
    assert desk.gateway.untouched
    assert await desk.fleet.alarms() == {"metadata_unsigned"}


async def test_a_crash_of_the_copy_leaves_no_half(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.bundle(desk.release())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_bundle, "write_whole", full)
    assert (await desk.typed(str(desk.stick))).exit_code == 1
    assert not [one for one in bundles_folder(desk.folder).glob("*") if not one.name.startswith(".")]


async def test_one_firmware_alone_is_refused_with_what_to_bring(desk: Desk) -> None:
    world = desk.fleet.world
    spec = world.spec(world.vehicle.ecus[0], "1.2.0", 3)
    document, image = desk.folder / "fw.json", desk.folder / "fw.bin"
    document.write_bytes(make_document(spec, desk.signer, world.now + timedelta(days=900)))
    image.write_bytes(desk.fleet.image(spec.kind, "1.2.0"))
    single = ("--document", str(document), "--image", str(image))
    done = await desk.typed(*single)
    assert done.exit_code == 1
    assert getattr(done.exception, "code", None) == "bundle_needed"
    assert "quarry release usb" in getattr(done.exception, "advice", "")
    # Without roots it is the way, and a bundle is not.
    desk.configure(roots=False)
    assert (await desk.typed(*single)).exit_code == 0
    assert "no roots" in str((await desk.typed(str(desk.folder))).exception)


@pytest.mark.parametrize("args", [(), ("FOLDER", "--image", "x"), ("--document", "x")])
async def test_wrong_use_is_said(desk: Desk, args: tuple[str, ...]) -> None:
    assert (await desk.typed(*args)).exit_code == 2
