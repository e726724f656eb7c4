"""The agent's composition root: opens what it needs, runs named tasks, stops without leaving an ECU torn.

One agent per data folder: the store's kernel lock refuses a second one. A stop waits while an ECU is
between two images, because a bootloader without an application is a truck that stands; a killed agent
goes on from its journal all the same.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from edge_agent.addresses import tls_context
from edge_agent.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.delivery.budget import Budget
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network, OurOffice
from edge_agent.errors import CountersUnknown
from edge_agent.gateway.inhibit import Inhibitor
from edge_agent.gateway.memory import rest_lightly
from edge_agent.gateway.notify import Manager, Notifier, Pulses
from edge_agent.gateway.trial import prove_trial
from edge_agent.hands.asks import Asks
from edge_agent.interlocks.j1939_vehicle import J1939Vehicle
from edge_agent.interlocks.people import Gates
from edge_agent.interlocks.vehicle import BenchVehicle, FileVehicle, Vehicle
from edge_agent.liveness import Live, write_live
from edge_agent.office.broker_access import broker_of
from edge_agent.office.enrol import Enrolled, who_we_are
from edge_agent.office.mqtt_link import MqttLink
from edge_agent.office.renewal import CertificateRenewal
from edge_agent.store.inbox import FEATURES
from edge_agent.store.store import Store
from edge_agent.threads import finish_in_thread
from edge_agent.trust.counters import Counters
from edge_agent.trust.trust_chain import TrustChain, open_trust
from edge_agent.trust.trusted_time import tls_by
from edge_agent.trust.verifier import Verifier
from edge_agent.update.directed import DirectedAuthority, bundles_folder
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess, Updater, no_kill
from firmware_flashers.registry import open_component
from shared.logs import get_log
from shared.messages import Installed
from shared.since_310 import UTC, TaskGroup, timeout

log = get_log("edge_agent.app")

AGENT_VERSION = version("quarry-ota")
STOP_WITHIN_S = 14 * 60.0
"""How long a stop waits for an ECU that is being flashed; the service file's limit is a minute more."""
LOOK_EVERY_S = 0.2
LIVE_EVERY_S = 2.0
UPDATER_PULSE_S = 240.0
"""The updater's longest rest is 60 s, also beside an act on an ECU, which has its own time limits; the rest
is for the disk."""
LINK_PULSE_S = 600.0
"""The link rests 300 s at the most between two sends, and 120 s between two connections that take 60 s."""
WATCHDOG_EVERY_S = 30.0
JOURNAL_LOST = "journal_lost"
"""The alarm of a damaged database that was set aside; the office sees it by the new store_id, too."""
RECENT_S = 60.0
"""So old may be what ECUs said of themselves when metadata is judged; each is asked before it is flashed."""


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
    def budget(self) -> Path:
        return self.data_dir / "spent.json"

    @property
    def images(self) -> Path:
        return self.data_dir / "images"


async def run_agent(
    config: AgentConfig,
    *,
    stop: asyncio.Event | None = None,
    kill_points: Callable[[str], None] | None = None,
    stop_within_s: float = STOP_WITHIN_S,
    notifier: Notifier | None = None,
) -> None:
    """Run until `stop` is set, or cancelled; a set `stop` waits for an ECU that is being flashed.

    A cancellation ends at once: it is what a power cut is to the ECU, and the journal goes on from it.
    `kill_points` is called at named points, for chaos tests; `notifier` is how the service manager is told.
    Raises NotEnrolled, ConfigError, StoreBusy
    (another agent runs here), StoreFailed.
    """
    stop = stop or asyncio.Event()
    notifier = notifier or Notifier(Manager())
    us = await asyncio.to_thread(who_we_are, config)
    with structlog.contextvars.bound_contextvars(device_id=us.device_id):
        async with AsyncExitStack() as stack:
            parts = await _assemble(config, us, stack, kill_points or no_kill, stop)
            link, updater, asks = parts.link, parts.updater, parts.asks
            pulses = Pulses(time.monotonic)
            updater.pulse = pulses.beat("updater", UPDATER_PULSE_S)
            link.pulse = pulses.beat("link", LINK_PULSE_S)
            # Before the first act: an abort that a person left must not come a moment too late.
            await asks.take_all()
            log.info("agent.started", version=AGENT_VERSION, components=len(config.components))
            async with TaskGroup() as tasks:
                running = [
                    tasks.create_task(updater.run(), name="agent.updater"),
                    tasks.create_task(link.run(), name="agent.link"),
                    tasks.create_task(asks.run(), name="agent.asks"),
                    tasks.create_task(Inhibitor(lambda: updater.touching).run(), name="agent.inhibitor"),
                    tasks.create_task(feed_watchdog(notifier, pulses), name="agent.watchdog"),
                    tasks.create_task(_tell_manager(notifier, updater, link), name="agent.notifier"),
                    tasks.create_task(
                        prove_trial(
                            linked=lambda: link.connected,
                            stuck=lambda: bool(pulses.stuck()),
                            counters=Places(data_dir=config.data_dir).counters,
                            stop=stop.set,
                        ),
                        name="agent.trial",
                    ),
                    tasks.create_task(_tell_what_changed(updater, link, parts.chain), name="agent.manifests"),
                    tasks.create_task(parts.renewal.run(), name="agent.renewal"),
                    tasks.create_task(rest_lightly(), name="agent.memory"),
                    tasks.create_task(
                        _show_liveness(config.data_dir, us, link, parts.renewal), name="agent.liveness"
                    ),
                ]
                if parts.chain is not None:
                    running.append(tasks.create_task(parts.chain.run(), name="agent.trust"))
                notifier.ready()
                await stop.wait()
                notifier.stopping(stop_within_s + 60)
                await _wait_until_whole(updater, stop_within_s)
                for task in running:
                    task.cancel()
        log.info("agent.stopped")


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What runs. `chain` is None where no roots are configured: then a command's own document decides."""

    link: MqttLink
    updater: Updater
    asks: Asks
    chain: TrustChain | None
    renewal: CertificateRenewal


async def _assemble(
    config: AgentConfig,
    us: Enrolled,
    stack: AsyncExitStack,
    kill_point: Callable[[str], None],
    stop: asyncio.Event,
) -> _Parts:
    places = Places(data_dir=config.data_dir)
    office = config.office
    tls = await asyncio.to_thread(tls_context, office.ca_file)
    later = _Later()
    # First of all: its lock says that we are alone here.
    store = await stack.enter_async_context(Store.open(places.store, now=later.now, limits=config.queue))
    counters = await Counters.open(places.counters)
    kept = KeptImages(places.images)
    chain = None
    if config.trust.uptane is not None:
        chain = await open_trust(
            config,
            config.trust.uptane,
            us,
            installed=later.installed,
            recently=later.recently,
            needed=later.needed,
            ran=_ran(counters),
        )
        later.clock = chain.time.clock()
        if store.was_replaced:
            await chain.manifests.alarm(JOURNAL_LOST)
    clock = later.clock
    broker = broker_of(config, us, None if chain is None else chain.time)
    downloads = config.downloads
    network = Network(
        tls=tls if chain is None else partial(tls_by, office.ca_file, chain.time),
        allow_plain=office.allow_plain,
        origin=office.url if office.images_through_url else None,
        idle_timeout_s=downloads.idle_timeout_s,
        ways=downloads.ways,
        budget=await Budget.open(places.budget, downloads.budget, clock),
        bytes_per_s=downloads.bytes_per_s,
        proxy=None if downloads.proxy is None else downloads.proxy.for_httpx(),
        local_folders=downloads.local_folders,
        office=None if chain is None else OurOffice(base=office.url, token=us.http_token),
    )
    downloader = await stack.enter_async_context(
        Downloader(
            places.images,
            network,
            most_stored_bytes=downloads.most_stored_bytes,
            margin_bytes=downloads.free_margin_bytes,
        )
    )
    verifier = Verifier(
        keys=config.trust.keys, threshold=config.trust.threshold, clock=clock, counters=counters
    )
    if chain is not None:
        later.authority = DirectedAuthority(
            chain,
            verifier=verifier,
            kept=kept,
            bundles=bundles_folder(config.data_dir),
            installed=later.recently,
        )
        # Before the chain may tidy up: what the journal refers to must stay.
        await later.authority.in_use(await store.live())
    updater = later.updater = Updater(
        store,
        downloader=downloader,
        verifier=verifier,
        authority=later.authority,
        components=_components(config),
        vehicle=await _vehicle(config, clock, stack),
        policy=config.policy,
        gates=Gates(data_dir=config.data_dir, clock=clock, holds_folder=config.holds_folder),
        addresses=config.vehicle.addresses,
        clock=clock,
        kept=kept,
        kill_point=kill_point,
    )
    link = MqttLink(
        broker,
        store,
        agent_version=AGENT_VERSION,
        features=sorted(FEATURES),
        manifest=updater.manifest,
        metadata_versions=dict if chain is None else chain.metadata_versions,
        woken=_nobody if chain is None else chain.refresh_soon,
    )
    renewal = CertificateRenewal(
        config,
        clock,
        linked=lambda: link.connected,
        reconnect=link.reconnect,
        tls=partial(tls_context, office.ca_file)
        if chain is None
        else partial(tls_by, office.ca_file, chain.time),
    )
    asks = Asks(config.data_dir, store, hurry=updater.hurry, restart=stop.set)
    return _Parts(link=link, updater=updater, asks=asks, chain=chain, renewal=renewal)


class _Later:
    """What the store and the trust chain ask of parts that are made after them."""

    clock = Clock()
    updater: Updater | None = None
    authority: DirectedAuthority | None = None

    def now(self) -> datetime:
        return self.clock.now()

    async def installed(self) -> Sequence[Installed]:
        return () if self.updater is None else await self.updater.installed()

    async def recently(self) -> Sequence[Installed]:
        return () if self.updater is None else await self.updater.installed(oldest_s=RECENT_S)

    def needed(self) -> Collection[str]:
        return () if self.authority is None else self.authority.needed()


def _ran(counters: Counters) -> Mapping[str, int]:
    """Release counters from before the trust chain; damaged ones refuse every flash by themselves."""
    try:
        return counters.known
    except CountersUnknown as error:
        log.error("counters.not_taken_over", why=error.message, advice=error.advice)  # noqa: TRY400
        return {}


def _nobody() -> None:
    """Nobody is woken."""


def _components(config: AgentConfig) -> Mapping[str, ComponentAccess]:
    return {
        ecu.component: ComponentAccess(
            kind=ecu.kind, hardware=ecu.hardware, open=partial(open_component, ecu)
        )
        for ecu in config.components
    }


async def _vehicle(config: AgentConfig, clock: Clock, stack: AsyncExitStack) -> Vehicle:
    source = config.vehicle
    if source.bus is not None:
        vehicle = J1939Vehicle(source.bus, clock)
        vehicle.__enter__()
        stack.push_async_callback(asyncio.to_thread, vehicle.__exit__, None, None, None)
        return vehicle
    if source.path is not None:
        return FileVehicle(source.path, clock)
    log.warning("vehicle.is_a_bench", advice="Never on a truck: nothing is asked before a flash.")
    return BenchVehicle()


async def _tell_what_changed(updater: Updater, link: MqttLink, chain: TrustChain | None) -> None:
    """A manifest after each update that ended, and a signed one."""
    while True:
        await updater.ended.wait()
        updater.ended.clear()
        link.send_manifest()
        if chain is not None:
            chain.manifests.update_ended()


async def _wait_until_whole(updater: Updater, most_s: float) -> None:
    """Return when no ECU is between two images, or after `most_s`: then the journal must go on later."""
    if updater.touching:
        log.warning("agent.stop_delayed", why="an ECU is being flashed", most_s=most_s)
    with suppress(TimeoutError):
        async with timeout(most_s):
            while updater.touching:
                await asyncio.sleep(LOOK_EVERY_S)
    if updater.touching:
        log.error("agent.stopped_while_flashing", why=f"the ECU was not ready after {most_s:g} s")


async def feed_watchdog(notifier: Notifier, pulses: Pulses) -> None:
    """Feed the service manager's watchdog for as long as every loop makes progress, and no longer."""
    watchdog_s = notifier.watchdog_s
    if watchdog_s is None:
        return
    told: list[str] = []
    while True:
        stuck = pulses.stuck()
        if not stuck:
            notifier.alive()
        elif stuck != told:
            log.error("agent.stuck", loops=stuck, advice="The watchdog is not fed: a restart follows.")
        told = stuck
        await asyncio.sleep(min(watchdog_s / 4, WATCHDOG_EVERY_S))


async def _tell_manager(notifier: Notifier, updater: Updater, link: MqttLink) -> None:
    """Keep the line of `systemctl status` up to date."""
    while True:
        office = "connected" if link.connected else f"not connected: {link.last_error or 'not yet'}"
        ecus = "an ECU is being flashed; " if updater.touching else ""
        notifier.status(f"{ecus}{office}")
        await asyncio.sleep(LIVE_EVERY_S)


async def _show_liveness(data_dir: Path, us: Enrolled, link: MqttLink, renewal: CertificateRenewal) -> None:
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
            certificate_error=renewal.error,
        )
        if live != shown:
            # Only for people: an agent whose disk is full must go on.
            with suppress(OSError):
                await finish_in_thread(write_live, data_dir, live)
                shown = live
        await asyncio.sleep(LIVE_EVERY_S)
