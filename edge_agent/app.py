"""The agent's composition root: opens what it needs, runs named tasks, stops without leaving an ECU torn.

One agent per data folder: the store's kernel lock refuses a second one. A stop waits while an ECU is
between two images, because a bootloader without an application is a truck that stands; a killed agent
goes on from its journal all the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from edge_agent.addresses import tls_context
from edge_agent.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.counters import Counters
from edge_agent.downloader import Downloader
from edge_agent.enrol import Enrolled, who_we_are
from edge_agent.inbox import FEATURES
from edge_agent.kept import KeptImages
from edge_agent.liveness import Live, write_live
from edge_agent.mqtt_connection import Broker
from edge_agent.mqtt_link import MqttLink
from edge_agent.store import Store
from edge_agent.threads import finish_in_thread
from edge_agent.updater import ComponentAccess, Updater, no_kill
from edge_agent.vehicle import BenchVehicle, FileVehicle, Vehicle
from edge_agent.verifier import Verifier
from firmware_flashers.registry import open_component
from shared.logs import get_log

log = get_log("edge_agent.app")

AGENT_VERSION = version("quarry-ota")
STOP_WITHIN_S = 14 * 60.0
"""How long a stop waits for an ECU that is being flashed; the service file's limit is a minute more."""
LOOK_EVERY_S = 0.2
LIVE_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are in the data folder."""

    data_dir: Path

    @property
    def store(self) -> Path:
        return self.data_dir / "agent.db"

    @property
    def counters(self) -> Path:
        return self.data_dir / "counters.json"

    @property
    def images(self) -> Path:
        return self.data_dir / "images"


async def run_agent(
    config: AgentConfig,
    *,
    stop: asyncio.Event | None = None,
    kill_points: Callable[[str], None] | None = None,
    stop_within_s: float = STOP_WITHIN_S,
) -> None:
    """Run until `stop` is set, or cancelled; a set `stop` waits for an ECU that is being flashed.

    A cancellation ends at once: it is what a power cut is to the ECU, and the journal goes on from it.
    `kill_points` is called at named points, for chaos tests. Raises NotEnrolled, ConfigError, StoreBusy
    (another agent runs here), StoreFailed.
    """
    stop = stop or asyncio.Event()
    us = await asyncio.to_thread(who_we_are, config)
    with structlog.contextvars.bound_contextvars(device_id=us.device_id):
        async with AsyncExitStack() as stack:
            link, updater = await _assemble(config, us, stack, kill_points or no_kill)
            log.info("agent.started", version=AGENT_VERSION, components=len(config.components))
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(updater.run(), name="agent.updater"),
                    tasks.create_task(link.run(), name="agent.link"),
                    tasks.create_task(_tell_what_changed(updater, link), name="agent.manifests"),
                    tasks.create_task(_show_liveness(config.data_dir, us, link), name="agent.liveness"),
                ]
                await stop.wait()
                await _wait_until_whole(updater, stop_within_s)
                for task in running:
                    task.cancel()
        log.info("agent.stopped")


async def _assemble(
    config: AgentConfig, us: Enrolled, stack: AsyncExitStack, kill_point: Callable[[str], None]
) -> tuple[MqttLink, Updater]:
    places = Places(data_dir=config.data_dir)
    office = config.office
    host = office.mqtt_host or us.mqtt_host
    encrypted = office.wants_tls(host)
    tls = await asyncio.to_thread(tls_context, office.ca_file)
    clock = Clock()
    # First of all: its lock says that we are alone here.
    store = await stack.enter_async_context(Store.open(places.store, now=clock.now))
    downloader = await stack.enter_async_context(
        Downloader(
            places.images,
            tls=tls,
            allow_plain=office.allow_plain,
            origin=office.url if office.images_through_url else None,
            most_stored_bytes=config.downloads.most_stored_bytes,
            margin_bytes=config.downloads.free_margin_bytes,
            idle_timeout_s=config.downloads.idle_timeout_s,
        )
    )
    updater = Updater(
        store,
        downloader=downloader,
        verifier=Verifier(
            keys=config.trust.keys,
            threshold=config.trust.threshold,
            clock=clock,
            counters=await Counters.open(places.counters),
        ),
        components=_components(config),
        vehicle=_vehicle(config, clock),
        policy=config.policy,
        clock=clock,
        kept=KeptImages(places.images),
        kill_point=kill_point,
    )
    link = MqttLink(
        Broker(
            host=host,
            port=office.mqtt_port or us.mqtt_port,
            device_id=us.device_id,
            password=us.mqtt_password,
            tls=tls if encrypted else None,
        ),
        store,
        agent_version=AGENT_VERSION,
        features=sorted(FEATURES),
        manifest=updater.manifest,
    )
    return link, updater


def _components(config: AgentConfig) -> Mapping[str, ComponentAccess]:
    return {
        ecu.component: ComponentAccess(
            kind=ecu.kind, hardware=ecu.hardware, open=partial(open_component, ecu)
        )
        for ecu in config.components
    }


def _vehicle(config: AgentConfig, clock: Clock) -> Vehicle:
    if config.vehicle.path is None:
        log.warning("vehicle.is_a_bench", advice="Never on a truck: nothing is asked before a flash.")
        return BenchVehicle()
    return FileVehicle(config.vehicle.path, clock)


async def _tell_what_changed(updater: Updater, link: MqttLink) -> None:
    """A manifest after each update that ended."""
    while True:
        await updater.ended.wait()
        updater.ended.clear()
        link.send_manifest()


async def _wait_until_whole(updater: Updater, most_s: float) -> None:
    """Return when no ECU is between two images, or after `most_s`: then the journal must go on later."""
    if updater.touching:
        log.warning("agent.stop_delayed", why="an ECU is being flashed", most_s=most_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            while updater.touching:
                await asyncio.sleep(LOOK_EVERY_S)
    if updater.touching:
        log.error("agent.stopped_while_flashing", why=f"the ECU was not ready after {most_s:g} s")


async def _show_liveness(data_dir: Path, us: Enrolled, link: MqttLink) -> None:
    """Keep the file that `quarry agent status` reads; written when something in it changed."""
    shown: Live | None = None
    started_at = datetime.now(UTC)
    while True:
        live = Live(
            device_id=us.device_id,
            agent_version=AGENT_VERSION,
            pid=os.getpid(),
            started_at=started_at,
            connected=link.connected,
            link_error=link.last_error,
        )
        if live != shown:
            # Only for people: an agent whose disk is full must go on.
            with suppress(OSError):
                await finish_in_thread(write_live, data_dir, live)
                shown = live
        await asyncio.sleep(LIVE_EVERY_S)
