"""The trust chain as the composition root opens it: from a configuration file to selection and manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import AgentConfig, load_config
from edge_agent.office.enrol import Enrolled
from edge_agent.trust.selection import targets_of
from edge_agent.trust.trust_chain import TrustChain, open_trust
from shared.messages import Installed
from shared.trust.keys import new_key
from shared.trust.uptane.manifest import read_manifest

TEXT = """
data_dir = "data"
[office]
url = "{base}"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
director_root = "director.json"
image_root = "image.json"
gateway_serial = "gateway-7"
[trust.serials]
brake = "SN-0"
hoist = "SN-1"
[vehicle]
source = "bench"
"""
COMPONENT = """
[[component]]
name = "{name}"
kind = "{name}-controller"
hardware = "{hardware}"
flasher = "stm32-uds"
interface = "virtual"
channel = "bench"
tx_id = {tx}
rx_id = {rx}
security_secret_file = "secret"
"""
US = Enrolled(device_id="truck-7", mqtt_host="h", mqtt_port=1, http_token="t" * 40, mqtt_password="p" * 40)


@pytest.fixture
def config(fleet: Any, tmp_path: Path) -> AgentConfig:
    (tmp_path / "key.pem").write_bytes(new_key()[1])
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_bytes(b"\x07" * 32)
    (tmp_path / "director.json").write_bytes(fleet.world.director.published["1.root.json"])
    (tmp_path / "image.json").write_bytes(fleet.world.image.published["1.root.json"])
    text = TEXT.format(base=fleet.office.base)
    text += COMPONENT.format(name="brake", hardware="H0", tx=0x7E0, rx=0x7E8)
    text += COMPONENT.format(name="hoist", hardware="H1", tx=0x7E1, rx=0x7E9)
    (tmp_path / "agent.toml").write_text(text)
    return load_config(tmp_path / "agent.toml")


async def opened(config: AgentConfig, fleet: Any, **more: Any) -> TrustChain:
    async def installed() -> list[Installed]:
        return []

    assert config.trust.uptane is not None
    chain = await open_trust(config, config.trust.uptane, US, installed=installed, **more)
    # The world's time, whatever this machine's clock says.
    chain.time.prove(fleet.world.now)
    return chain


@asynccontextmanager
async def running(chain: TrustChain) -> AsyncIterator[None]:
    task = asyncio.create_task(chain.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not so():
            await asyncio.sleep(0.005)


async def test_from_a_configuration_to_targets(fleet: Any, config: AgentConfig) -> None:
    chain = await opened(config, fleet)
    done = await chain.metadata.refresh()
    assert done.outcome.refused is None
    assert done.selection_id is not None
    selection = await chain.metadata.verify_again(done.selection_id, begun=False)
    made = targets_of(selection, chain.ecus, url_of=chain.url_of)
    assert [one.component for one in made] == ["brake", "hoist"]
    # Where the addresses point, the office has the very bytes that were signed.
    for one in made:
        name = one.url.removeprefix(f"{fleet.office.base}/repo/image/")
        assert fleet.office.served["image", name] == fleet.image(one.spec.kind, "1.1.0")


async def test_it_refreshes_and_tells_by_itself(fleet: Any, config: AgentConfig) -> None:
    chain = await opened(config, fleet)
    async with running(chain):
        await until(lambda: len(fleet.office.manifests) == 1)
        await until(lambda: chain.keeper.store.image.timestamp > 0)
        await fleet.renew("1.2.0", 3)
        before = chain.keeper.store.director.timestamp
        chain.refresh_soon()
        await until(lambda: chain.keeper.store.director.timestamp > before)
    report = read_manifest(fleet.office.manifests[0]).signed
    assert (report.vehicle, report.primary) == ("truck-7", "gateway-7")
    assert [one.signed.serial for one in report.ecus] == ["gateway-7", "SN-0", "SN-1"]


async def test_a_damaged_store_is_told_and_the_agent_runs_on(fleet: Any, config: AgentConfig) -> None:
    await opened(config, fleet)
    path = config.data_dir / "trust" / "store.json"
    path.write_bytes(path.read_bytes()[:-1])
    chain = await opened(config, fleet)
    async with running(chain):
        await until(
            lambda: any(
                read_manifest(raw).signed.ecus[0].signed.attacks == ("trusted_store_unreadable",)
                for raw in fleet.office.manifests
            )
        )
    assert fleet.office.asked == []


async def test_an_office_that_is_away_is_waited_for(fleet: Any, config: AgentConfig) -> None:
    chain = await opened(config, fleet)
    fleet.office.answers["director/2.root.json"] = lambda _: [b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"]
    async with running(chain):
        await until(lambda: bool(fleet.office.asked))
        fleet.office.answers.clear()
        chain.refresh_soon()
        await until(lambda: chain.keeper.store.image.timestamp > 0)


async def test_counters_from_before_the_trust_chain_are_taken_over(fleet: Any, config: AgentConfig) -> None:
    chain = await opened(config, fleet, ran={"brake": 9})
    assert chain.keeper.store.counters == {"SN-0": 9}
    refused = (await chain.metadata.refresh()).outcome.refused
    assert refused is not None
    assert refused.code == "release_counter_rolled_back"


async def test_everybodys_clock_stands_on_the_floor(fleet: Any, config: AgentConfig) -> None:
    chain = await opened(config, fleet)
    assert (await chain.metadata.refresh()).outcome.refused is None
    assert chain.time.clock().now() >= fleet.world.now
