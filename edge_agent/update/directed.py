"""The trust chain as the authority of updates: what the director selects and was signed offline.

A command is only a trigger. Its targets must be those of the verified selection; its URLs, its deltas and its
documents help to bring what was selected. The selection's id stands in the journal's row, and it is verified
again from the disk right before each act. Until an ECU was touched it must be good at that moment; where it
is not any more, the metadata is fetched anew, and must select the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from edge_agent.errors import (
    DocumentMismatch,
    LinkLost,
    NothingSelected,
    NotSelected,
    OlderRelease,
    TooSlow,
    UnknownComponent,
)
from edge_agent.store.journal import Entry
from edge_agent.threads import finish_in_thread
from edge_agent.trust.metadata import SelectionChanged
from edge_agent.trust.metadata_source import LinkCut, OfficeUnreached, SlowRetrieval
from edge_agent.trust.selection import targets_of
from edge_agent.trust.trust_chain import TrustChain
from edge_agent.trust.verifier import Verifier
from edge_agent.update.authority import Documents, Order, Orders, has_begun
from edge_agent.update.kept import Kept, KeptImages
from firmware_flashers.base import NotNow
from shared.errors import OtaError
from shared.ids import is_local_job
from shared.logs import get_log
from shared.messages import Installed
from shared.release import Incompatible
from shared.trust.document import TrustError, WrongImage
from shared.trust.uptane.errors import MetadataRefused, NotCompatible, StoreUnreadable
from shared.trust.uptane.safety_policy import SafetyPolicy
from shared.trust.uptane.selection import Selection

log = get_log("edge_agent.directed")

MOST_BUNDLES = 8
BUNDLE_KEPT_S = 7 * 86400.0
"""A bundle that no job goes on with: a person may have its job begun anew."""


def bundles_folder(data_dir: Path) -> Path:
    """Where metadata that was brought by hand lies, by the id of its job."""
    return data_dir / "bundles"


class DirectedAuthority:
    """See `Authority`. `verifier` keeps the release counters, and judges by its keys what was installed, or
    had begun, before the trust chain was switched on. `installed` is what ECUs said of themselves just now.
    """

    by_release = True

    def __init__(
        self,
        chain: TrustChain,
        *,
        verifier: Verifier,
        kept: KeptImages,
        bundles: Path,
        installed: Callable[[], Awaitable[Sequence[Installed]]],
    ) -> None:
        self._chain = chain
        self._installed = installed
        self._metadata = chain.metadata
        self._verifier = verifier
        self._documents = Documents(verifier, {one.component: one for one in chain.ecus.ecus})
        self._kept = kept
        self._bundles = bundles
        self._needed: frozenset[str] = frozenset()
        self._jobs: frozenset[str] | None = None
        self._policies: dict[str, SafetyPolicy] = {}

    def needed(self) -> Collection[str]:
        """Selections that a live update or a kept image refers to."""
        return self._needed

    async def in_use(self, live: Iterable[Entry]) -> None:
        """See Authority."""
        live = tuple(live)
        selected = frozenset(one.selection for one in live if one.selection is not None)
        self._needed = selected | await self._kept.selections()
        self._policies = {one: policy for one, policy in self._policies.items() if one in selected}
        jobs = frozenset(one.job_id for one in live)
        if jobs != self._jobs:
            self._jobs = jobs
            await finish_in_thread(_tidy, self._bundles, jobs)

    async def look(self, entry: Entry) -> Orders:
        """See Authority. Raises NotSelected, too: the director has nothing for this truck (yet)."""
        selection_id, selection = await self._select(entry)
        return self._orders(entry, selection_id, selection, begun=False)

    async def again(self, entry: Entry) -> Orders:
        """See Authority."""
        begun = has_begun(entry)
        if entry.selection is None:
            if begun:
                return await self._documents.again(entry)
            raise NothingSelected(f"job {entry.job_id} is from before the trust chain was switched on")
        try:
            selection = await self._metadata.verify_again(entry.selection, begun=begun)
        except (MetadataRefused, StoreUnreadable) as stale:
            log.info("directed.selection_stale", job_id=entry.job_id, code=stale.code, why=stale.message)
            selection = await self._renewed(entry, stale)
        return self._orders(entry, entry.selection, selection, begun=begun)

    async def safety(self, entry: Entry) -> SafetyPolicy | None:
        """See Authority. A selection's id is made of its release's hash: what it said once it says always."""
        known = self._policies.get(entry.selection or "")
        return known if known is not None else (await self.again(entry)).safety

    async def way_back(self, component: str, kept: Kept) -> Order:
        """See Authority: by what was trusted when the image was installed, whatever was rotated since."""
        if kept.selection is None:
            return await self._documents.way_back(component, kept)
        selection = await self._metadata.verify_again(kept.selection, begun=True)
        for one in targets_of(selection, self._chain.ecus, url_of=self._chain.url_of):
            if one.component == component and one.spec.sha256 == kept.sha256:
                document = kept.document.encode() if one.document is None else one.document
                return Order(component=component, spec=one.spec, document=document, url=one.url)
        raise DocumentMismatch(f"the image that is kept of {component} is not what was selected for it")

    async def ran(self, order: Order) -> None:
        """See Authority: in both places, so that neither can forget it alone."""
        await self._verifier.ran(order.component, order.spec)
        serial = next(one.serial for one in self._chain.ecus.ecus if one.component == order.component)
        try:
            await self._chain.keeper.ran(serial, order.spec.release_counter)
        except StoreUnreadable as error:
            # It is said in the manifest already; an ECU that runs its image must not wait for a person.
            log.warning("directed.counter_not_kept", component=order.component, why=error.message)

    async def refused(self, error: OtaError) -> None:
        """See Authority: an alarm of the next vehicle manifest. Of metadata, Metadata tells it."""
        if isinstance(error, DocumentMismatch | OlderRelease | WrongImage | TooSlow):
            await self._chain.manifests.alarm(error.code)

    # --- what is selected ---------------------------------------------------------------------

    async def _select(self, entry: Entry) -> tuple[str, Selection]:
        """Fetch and verify; what is on the disk will do where nobody can be reached and it is good still."""
        bundle = await self._bundle(entry)
        # Before it is judged: an ECU that wakes up meanwhile was silent when the release was held against it.
        says = {one.component for one in await self._installed()}
        if bundle is not None:
            done = await self._metadata.refresh_from(bundle)
        else:
            done = await self._metadata.refresh()
        selection, refused = done.outcome.selection, done.outcome.refused
        if selection is not None and done.selection_id is not None:
            return done.selection_id, selection
        match refused:
            case None:
                raise NotSelected(f"the director selects nothing for this truck, job {entry.job_id} came")
            case OfficeUnreached() | LinkCut() | SlowRetrieval():
                cached = await self._cached(entry)
                if cached is not None:
                    return cached
                if isinstance(refused, SlowRetrieval):
                    raise refused
                raise LinkLost(f"the metadata can't be had ({refused.code}): {refused.message}") from refused
            case NotCompatible():
                # Nobody knows what an ECU runs that sleeps: that is no word against the release.
                silent = [one.component for one in self._chain.ecus.ecus if one.component not in says]
                if silent:
                    raise NotNow(
                        f"{', '.join(silent)} did not answer, and the release asks what runs there",
                        code="ecu_silent",
                        advice="Switch the ECUs on; it goes on by itself.",
                        touched=False,
                    ) from refused
                raise refused
            case _:
                raise refused

    async def _bundle(self, entry: Entry) -> Path | None:
        folder = self._bundles / entry.job_id
        there = is_local_job(entry.job_id) and await finish_in_thread(folder.is_dir)
        return folder if there else None

    async def _cached(self, entry: Entry) -> tuple[str, Selection] | None:
        for selection_id in await self._metadata.kept_selections():
            # What is not good any more, or means something else, is passed over.
            with suppress(TrustError, Incompatible, UnknownComponent):
                selection = await self._metadata.verify_again(selection_id, begun=False)
                self._orders(entry, selection_id, selection, begun=False)
                return selection_id, selection
        return None

    async def _renewed(self, entry: Entry, stale: TrustError) -> Selection:
        """The same selection with fresh metadata. Raises SelectionChanged for another one."""
        selection_id, selection = await self._select(entry)
        if selection_id != entry.selection:
            raise SelectionChanged(
                "selection", f"{entry.selection} was selected for job {entry.job_id}, now {selection_id} is"
            ) from stale
        return selection

    def _orders(self, entry: Entry, selection_id: str, selection: Selection, *, begun: bool) -> Orders:
        chain = self._chain
        targets = targets_of(selection, chain.ecus, url_of=chain.url_of, commanded=entry.targets)
        if not begun:
            for one in targets:
                self._verifier.check_counter(one.component, one.spec)
        self._policies[selection_id] = selection.release.safety
        return Orders(
            targets=tuple(
                Order(
                    component=one.component,
                    spec=one.spec,
                    document=one.document or b"",
                    url=one.url,
                    delta=one.delta,
                    planned=one.target,
                )
                for one in targets
            ),
            selection=selection_id,
            safety=selection.release.safety,
        )


def _tidy(bundles: Path, jobs: Collection[str]) -> None:
    """Remove old bundles that no job goes on with; what can't be removed is only room."""
    with suppress(OSError):
        idle = [one for one in bundles.iterdir() if one.name not in jobs]
        idle.sort(key=lambda one: one.stat().st_mtime, reverse=True)
        now = time.time()
        for at, folder in enumerate(idle):
            if at >= MOST_BUNDLES or now - folder.stat().st_mtime > BUNDLE_KEPT_S:
                log.info("directed.bundle_removed", job_id=folder.name)
                shutil.rmtree(folder, ignore_errors=True)
