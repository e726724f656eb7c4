"""Puts the truck's side of the Uptane trust chain together, and keeps its metadata and manifests going.

For the composition root: `open_trust` once, `run()` as a task; `metadata` for the updater, `time.clock()` for
everybody who asks what time it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from edge_agent.config import AgentConfig
from edge_agent.credentials import Enrolled
from edge_agent.threads import finish_in_thread
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.metadata import Metadata
from edge_agent.trust.metadata_source import OfficeSource
from edge_agent.trust.selection import TruckEcus
from edge_agent.trust.trust_config import UptaneTrust
from edge_agent.trust.trust_files import TrustFiles
from edge_agent.trust.trust_store import TrustKeeper, trust_folder
from edge_agent.trust.trusted_time import TimeAsker, TrustedTime, tls_by
from edge_agent.trust.vehicle_manifest import ManifestOffice, VehicleManifests
from shared.backoff import Backoff
from shared.errors import OtaError
from shared.logs import get_log
from shared.messages import Installed
from shared.since_310 import TaskGroup, timeout
from shared.trust.uptane.errors import StoreUnreadable
from shared.trust.uptane.matching import Assignment
from shared.trust.uptane.vehicle import Vehicle

log = get_log("edge_agent.trust_chain")

REFRESH_EVERY_S = 4 * 3600.0
"""Nobody has to ask for it: a rotation and a fresh floor come to a truck that gets no update, too."""

REFRESH_BACKOFF = Backoff(first_s=30.0, most_s=1800.0, jitter=0.5)


@dataclass(frozen=True, kw_only=True)
class TrustChain:
    """Everything that trusts, opened."""

    keeper: TrustKeeper
    time: TrustedTime
    known: KnownImages
    ecus: TruckEcus
    source: OfficeSource
    metadata: Metadata
    manifests: VehicleManifests
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def metadata_versions(self) -> dict[str, int]:
        """What is trusted of each repository's own roles, for `hello`; nothing when the store is damaged."""
        try:
            store = self.keeper.store
        except StoreUnreadable:
            return {}
        versions: dict[str, int] = {}
        for name, state in (("director", store.director), ("image", store.image)):
            versions |= {
                f"{name}/root": state.read_root().signed.version,
                f"{name}/timestamp": state.timestamp,
                f"{name}/snapshot": state.snapshot,
                f"{name}/targets": state.roles.get("targets", 0),
            }
        return versions

    def url_of(self, assignment: Assignment) -> str:
        """Where the office serves an image, for who has our token."""
        return f"{self.source.base.rstrip('/')}/repo/image/{assignment.served_name}"

    def refresh_soon(self) -> None:
        """A command or a returned link makes it worth while now."""
        self.wake.set()

    async def run(self) -> None:
        """Refresh for ever, and send manifests."""
        async with TaskGroup() as tasks:
            tasks.create_task(self.manifests.run(), name="agent.vehicle_manifests")
            tasks.create_task(self._refresh(), name="agent.metadata")

    async def _refresh(self) -> None:
        tries = 0
        while True:
            self.wake.clear()
            try:
                refused = (await self.metadata.refresh()).outcome.refused
            except OtaError as error:
                log.error("metadata.not_refreshed", code=error.code, why=error.message)  # noqa: TRY400
                rest_s = REFRESH_EVERY_S
            else:
                tries = 0 if refused is None else tries + 1
                rest_s = REFRESH_EVERY_S if refused is None else REFRESH_BACKOFF.delay_s(tries - 1)
            with suppress(TimeoutError):
                async with timeout(rest_s):
                    await self.wake.wait()


async def open_trust(
    config: AgentConfig,
    trust: UptaneTrust,
    us: Enrolled,
    *,
    installed: Callable[[], Awaitable[Sequence[Installed]]],
    recently: Callable[[], Awaitable[Sequence[Installed]]] | None = None,
    needed: Callable[[], Collection[str]] = tuple,
    ran: Mapping[str, int] | None = None,
) -> TrustChain:
    """Open what is in the data folder. `ran` are release counters by component, from before the trust chain.

    `installed` asks the ECUs (Updater.installed), `recently` may answer what they said a moment ago; `needed`
    names the selections that the
    journal refers to. Raises StoreFailed, ConfigError, and OSError when no key can be made.
    """
    folder = trust_folder(config.data_dir)
    serials = {trust.serial_of(component): counter for component, counter in (ran or {}).items()}
    keeper = await TrustKeeper.open(folder, trust.roots, ran=serials)
    known = await KnownImages.open(folder)
    state = await ManifestState.open(folder)
    time = TrustedTime(keeper, trust.policy)
    ecus = TruckEcus.of(config.components, trust)
    tls = partial(tls_by, config.office.ca_file, time)
    office = config.office
    manifests = VehicleManifests(
        vehicle_id=us.device_id,
        ecus=ecus,
        signer=await finish_in_thread(load_or_make_key, config.data_dir),
        state=state,
        known=known,
        installed=installed,
        now=time.now,
        send=ManifestOffice(
            base=office.url,
            device_id=us.device_id,
            token=us.http_token,
            tls=tls,
            allow_plain=office.allow_plain,
        ).send,
    )

    async def vehicle() -> Vehicle:
        return ecus.vehicle(us.device_id, await (recently or installed)(), known)

    downloads = config.downloads
    source = OfficeSource(
        base=office.url,
        device_id=us.device_id,
        token=us.http_token,
        tls=tls,
        allow_plain=office.allow_plain,
        ways=downloads.ways,
        proxy=None if downloads.proxy is None else downloads.proxy.for_httpx(),
    )
    metadata = Metadata(
        keeper=keeper,
        files=TrustFiles(folder),
        office=source,
        time=time,
        vehicle=vehicle,
        alarm=manifests.alarm,
        learn=known.learn,
        needed=needed,
        asker=None if trust.time_url is None else TimeAsker(trust.time_url, keeper, time),
    )
    return TrustChain(
        keeper=keeper,
        time=time,
        known=known,
        ecus=ecus,
        source=source,
        metadata=metadata,
        manifests=manifests,
    )
