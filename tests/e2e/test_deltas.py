"""An office and a truck's whole agent, over sockets and a CAN bus: updates by deltas, and what a person at
the truck installs, as the office hears of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import control_plane.storage.files_api as files_api
from cli.release_document import document_app
from control_plane.app import Office
from control_plane.config import OfficeConfig
from control_plane.storage.answers import answer_file
from control_plane.storage.urls import UrlExpired, UrlSigner
from edge_agent.app import run_agent
from edge_agent.cli import app
from edge_agent.config import load_config
from edge_agent.office.enrol import enrol
from shared.delta import make_delta
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.images import FILLER_OFFSET, VERSION_MARK, VERSION_OFFSET, build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.truck import Bench, powered
from sim.truck_config import COMPONENT, HARDWARE, KIND, TruckEcu, TruckSettings, write_agent_config

TRUCK = "truck-001"
IMAGE_BYTES = 16 * 1024
WITHIN_S = 90.0
FACTORY = build_image("1.0.0", IMAGE_BYTES, DEFAULT_MAP.slot.start)


def build(version: str) -> bytes:
    """The factory's image but for its version and a hash: as a build in which little changed."""
    mark = VERSION_MARK + version.encode().ljust(FILLER_OFFSET - VERSION_OFFSET - len(VERSION_MARK), b"\0")
    built = mark + hashlib.sha256(mark).digest()
    return FACTORY[:VERSION_OFFSET] + built + FACTORY[VERSION_OFFSET + len(built) :]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Quarry:
    """The office, the truck, and which files the truck fetched, in order."""

    def __init__(self, folder: Path, private: bytes) -> None:
        self.folder = folder
        self.signer = load_signer(private)
        self.fetched: list[str] = []
        self.office: Office
        self.api: httpx.AsyncClient
        self.bench: Bench
        self.config: Path

    def document(self, image: bytes, version: str) -> bytes:
        spec = FirmwareSpec(
            kind=KIND,
            hardware=(HARDWARE,),
            version=version,
            release_counter=int(version.split(".")[1]),
            length=len(image),
            sha256=sha(image),
        )
        return make_document(spec, self.signer, datetime.now(UTC) + timedelta(days=90))

    async def publish(self, version: str, *, delta_from: str | None = None) -> bytes:
        """As at the release desk; returns the delta, empty where none was asked for."""
        image = build(version)
        words = ["publish", "--office", self.office.url, "--token-file", str(self.office.token_file)]
        words += ["--image", self.file(f"{version}.bin", image)]
        words += ["--document", self.file(f"{version}.json", self.document(image, version))]
        if delta_from is not None:
            words += ["--delta-from", self.file(f"{delta_from}.bin", build(delta_from))]
        done = await asyncio.to_thread(lambda: CliRunner().invoke(document_app, [*words, "--json"]))
        assert done.exit_code == 0, (done.output, done.exception)
        if delta_from is None:
            return b""
        delta = make_delta(build(delta_from), image)
        [made] = json.loads(done.stdout)["deltas"]
        assert (made["length"], made["why"]) == (len(delta), "")
        return delta

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    async def update(self, version: str) -> list[str]:
        """Bring the truck to a version; the files that it fetched for that."""
        before = len(self.fetched)
        order = {"device_id": TRUCK, "component": COMPONENT, "version": version}
        answer = await self.api.post("/api/v1/jobs", json=order)
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["job_id"]

        async def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = (await self.api.get(f"/api/v1/jobs/{job_id}")).json()
            return job if job["finished_at"] else None

        job = await self.until(ended)
        assert job["state"] == "done", job
        image = build(version)
        assert self.bench.running_content(len(image)) == image
        await self.until(lambda: self.reports(image))
        return self.fetched[before:]

    async def reports(self, image: bytes) -> bool:
        """Whether the truck has said in a manifest that it runs this."""
        device = (await self.api.get(f"/api/v1/devices/{TRUCK}")).json()
        return bool(device["online"]) and any(
            one["installed_sha256"] == sha(image) for one in device["components"]
        )

    async def until(self, condition: Any) -> Any:
        async with asyncio.timeout(WITHIN_S):
            while not (found := await condition()):
                await asyncio.sleep(0.05)
        return found


@pytest.fixture
async def quarry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Quarry]:
    """A truck as it left the factory, enrolled and online."""
    private, public = new_key()
    made = Quarry(tmp_path, private)

    async def noted(request: Any, path: Path, sha256: str) -> Any:
        made.fetched.append(sha256)
        return await answer_file(request, path, sha256)

    monkeypatch.setattr(files_api, "answer_file", noted)
    for name, content in (
        ("key.pem", public),
        ("factory.bin", FACTORY),
        ("factory.json", made.document(FACTORY, "1.0.0")),
    ):
        (tmp_path / name).write_bytes(content)
    config = OfficeConfig(data=tmp_path / "office", http_port=0, mqtt_port=0, resend_first_s=0.5)
    async with AsyncExitStack() as stack:
        made.office = await stack.enter_async_context(Office(config))
        made.api = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=made.office.url,
                headers={"Authorization": f"Bearer {made.office.token_file.read_text().strip()}"},
                timeout=20,
                trust_env=False,
            )
        )
        settings = TruckSettings(
            folder=tmp_path / "truck",
            office_url=made.office.url,
            firmware_keys=(tmp_path / "key.pem",),
            bitrate=None,
            ecus=(TruckEcu(image=tmp_path / "factory.bin", document=tmp_path / "factory.json"),),
        )
        made.bench = stack.enter_context(powered(settings))
        made.config = write_agent_config(settings, made.bench.channel)
        component = {"component": COMPONENT, "kind": KIND, "hardware": HARDWARE}
        await made.api.post("/api/v1/devices", json={"device_id": TRUCK, "components": [component]})
        token = (await made.api.post(f"/api/v1/devices/{TRUCK}/enrolment-tokens")).json()["token"]
        agent_config = load_config(made.config)
        await enrol(agent_config, token)
        stop = asyncio.Event()
        agent = asyncio.create_task(run_agent(agent_config, stop=stop))
        stack.push_async_callback(asyncio.wait, {agent}, timeout=WITHIN_S)
        stack.callback(stop.set)
        await made.until(lambda: made.reports(FACTORY))
        yield made


async def test_a_truck_fetches_differences_where_it_can_and_whole_images_else(quarry: Quarry) -> None:
    for version, base in (("1.0.0", None), ("1.1.0", "1.0.0"), ("1.2.0", "1.1.0"), ("1.3.0", "1.2.0")):
        await quarry.publish(version, delta_from=base)
    # It runs the base, but the factory left no copy of it on the gateway.
    assert await quarry.update("1.1.0") == [sha(build("1.1.0"))]
    delta = make_delta(build("1.1.0"), build("1.2.0"))
    assert len(delta) < IMAGE_BYTES / 10
    assert await quarry.update("1.2.0") == [sha(delta)]
    # The delta is spoiled where it lies: the truck sees it, and the update goes on.
    spoiled = make_delta(build("1.2.0"), build("1.3.0"))
    path = quarry.folder / "office" / "firmware" / f"{sha(spoiled)}.bin"
    path.write_bytes(spoiled[:-1] + bytes([spoiled[-1] ^ 1]))
    assert await quarry.update("1.3.0") == [sha(spoiled), sha(build("1.3.0"))]
    # And where it is lost.
    lost = await quarry.publish("1.4.0", delta_from="1.3.0")
    path.with_name(f"{sha(lost)}.bin").unlink()
    assert await quarry.update("1.4.0") == [sha(lost), sha(build("1.4.0"))]


async def test_a_delta_whose_url_is_over_is_asked_for_again_with_the_job_going_on(
    quarry: Quarry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await quarry.publish("1.1.0")
    await quarry.publish("1.2.0", delta_from="1.1.0")
    await quarry.update("1.1.0")
    delta = sha(make_delta(build("1.1.0"), build("1.2.0")))
    # The first command's URLs are refused: the truck was away for longer than they are good.
    check = UrlSigner.check
    refused: list[str] = []

    def over(signer: Any, sha256: str, expires: str, signature: str) -> None:
        if not refused or expires in refused:
            refused.append(expires)
            raise UrlExpired("this URL was good until its time, which is over")
        check(signer, sha256, expires, signature)

    monkeypatch.setattr(UrlSigner, "check", over)
    assert await quarry.update("1.2.0") == [delta]
    assert refused


async def test_what_a_person_at_the_truck_installs_is_known_in_the_office(quarry: Quarry) -> None:
    image = build("1.1.0")
    given = ["--document", quarry.file("new.json", quarry.document(image, "1.1.0"))]
    given += ["--image", quarry.file("new.bin", image)]
    typed = ["install-file", *given, "--config", str(quarry.config), "--json"]
    done = await asyncio.to_thread(lambda: CliRunner().invoke(app, typed))
    assert done.exit_code == 0, done.output
    job_id = json.loads(done.stdout)["job_id"]

    async def ended() -> Any:
        found = (await quarry.api.get("/api/v1/local-installs", params={"device_id": TRUCK})).json()["items"]
        return [one for one in found if one["state"] in {"done", "error", "cancelled"}]

    [install] = await quarry.until(ended)
    assert (install["job_id"], install["state"]) == (job_id, "done")
    [target] = install["targets"]
    assert (target["component"], target["version"], target["sha256"]) == (COMPONENT, "1.1.0", sha(image))
    assert (target["read_back_version"], target["read_back_sha256"]) == ("1.1.0", sha(image))
    assert (await quarry.api.get("/api/v1/dead-letters")).json()["items"] == []
    assert (await quarry.api.get("/api/v1/jobs")).json()["items"] == []
    # What was brought by hand is a base as well as any.
    await quarry.publish("1.1.0")
    delta = await quarry.publish("1.2.0", delta_from="1.1.0")
    assert await quarry.update("1.2.0") == [sha(delta)]
