"""Who says what a component shall have: every act asks it anew, and does only what it answers.

Two answer it. `Documents`: the command's own signed document, by provisioned keys, where the trust chain is
not switched on. `DirectedAuthority` (edge_agent.update.directed): a selection of the director that is signed
offline, too, by the trust chain. A command's own words decide nothing with either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from edge_agent.errors import UnknownComponent
from edge_agent.store.journal import Entry
from edge_agent.store.release_plan import PlannedTarget, ReleasePlan
from edge_agent.trust.verifier import Verifier
from edge_agent.update.health import bounds_of
from edge_agent.update.kept import Kept
from shared.errors import OtaError
from shared.messages import CommandTarget, Delta, Feature
from shared.release import FirmwareSpec
from shared.states import UpdateState
from shared.trust.document import TrustError
from shared.trust.uptane.release_document import ReleaseTarget
from shared.trust.uptane.safety_policy import SafetyPolicy


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one component shall have. `document` is what the ECU itself verifies, empty where nobody gave one.

    `planned` is the signed release's word on it (order, group, attempts); None where there is no release.
    """

    component: str
    spec: FirmwareSpec
    document: bytes
    url: str
    delta: Delta | None = None
    planned: ReleaseTarget | None = None

    @property
    def target(self) -> CommandTarget:
        """As it is kept beside its image."""
        return CommandTarget(
            component=self.component,
            version=self.spec.version,
            sha256=self.spec.sha256,
            length=self.spec.length,
            document=self.document.decode(),
            url=self.url,
        )


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that an update brings, verified. `selection` names what the journal must remember of it.

    `safety` is the release's signed policy; None where there is none.
    """

    targets: tuple[Order, ...]
    selection: str | None = None
    safety: SafetyPolicy | None = None

    def of(self, component: str) -> Order:
        """One component's."""
        return next(one for one in self.targets if one.component == component)

    def plan(self, plan: ReleasePlan, rules: SafetyPolicy | None) -> ReleasePlan:
        """`plan` as the signed release wants it; `rules` is its policy, narrowed by this truck."""
        if rules is None:
            return plan
        groups: dict[str, int] = {}
        planned: list[PlannedTarget] = []
        for one in self.targets:
            ours = plan.target(one.component)
            signed = one.planned
            if signed is None:
                planned.append(ours)
                continue
            planned.append(
                replace(
                    ours,
                    group=groups.setdefault(signed.group, len(groups)),
                    attempts=signed.attempts,
                    needs_way_back=not rules.may_go_without_way_back,
                    health=bounds_of(signed.health, ours.health),
                )
            )
        return replace(plan, targets=tuple(planned))


class Authority(Protocol):
    """Who may say it. TrustError, Incompatible and UnknownComponent say no: then nothing is done."""

    @property
    def by_release(self) -> bool:
        """Whether it speaks of releases only, an update of one ECU being one, too."""
        ...

    async def look(self, entry: Entry) -> Orders:
        """At the begin: what this command may bring. Raises LinkLost where that can't be asked now."""
        ...

    async def again(self, entry: Entry) -> Orders:
        """The same once more, right before an act. What has begun is asked for its authority alone."""
        ...

    async def safety(self, entry: Entry) -> SafetyPolicy | None:
        """The signed policy of what it brings, to wait by: whether that is good still, `again` says."""
        ...

    async def way_back(self, component: str, kept: Kept) -> Order:
        """The firmware of a kept image, which ran on this component: it may return."""
        ...

    async def ran(self, order: Order) -> None:
        """The component runs it, for good: older ones are refused from here on. Raises StoreFailed."""
        ...

    async def refused(self, error: OtaError) -> None:
        """An act ended by this: who watches over trust may want to know. Never raises."""
        ...

    async def in_use(self, live: Iterable[Entry]) -> None:
        """These updates are under way: what they need is kept."""
        ...


class FitsKindAndHardware(Protocol):
    """What is known of a component."""

    @property
    def kind(self) -> str: ...

    @property
    def hardware(self) -> str: ...


def has_begun(entry: Entry) -> bool:
    """Whether an ECU may be changed for it already: not to finish would strand it."""
    return entry.touched or entry.state in {UpdateState.CONFIRMING, UpdateState.RESTORING}


class Documents:
    """Each target's own signed document, by the provisioned keys."""

    by_release = False

    def __init__(self, verifier: Verifier, components: Mapping[str, FitsKindAndHardware]) -> None:
        self._verifier = verifier
        self._components = components

    async def look(self, entry: Entry) -> Orders:
        """See Authority. What only signed metadata can say is not taken from documents in its place."""
        if entry.command is not None and Feature.UPTANE in entry.command.requires:
            raise TrustError(
                "the command brings a signed release, and this truck has no roots to verify it by",
                code="no_roots",
                advice="Set trust.director_root and trust.image_root (quarry release director kit).",
            )
        return self._orders(entry, begun=False)

    async def again(self, entry: Entry) -> Orders:
        """See Authority."""
        return self._orders(entry, begun=has_begun(entry))

    async def safety(self, entry: Entry) -> SafetyPolicy | None:  # noqa: ARG002 - as Authority has it
        """None: a document has none."""
        return None

    async def way_back(self, component: str, kept: Kept) -> Order:
        """See Authority. Its hash is what the ECU ran, so neither its time nor its counter is asked."""
        return self._order(kept.target(component), begun=True)

    async def ran(self, order: Order) -> None:
        """See Authority."""
        await self._verifier.ran(order.component, order.spec)

    async def refused(self, error: OtaError) -> None:
        """Nothing: the job's status says it."""

    async def in_use(self, live: Iterable[Entry]) -> None:
        """Nothing: a journal row has its document with it."""

    def _orders(self, entry: Entry, *, begun: bool) -> Orders:
        return Orders(targets=tuple(self._order(one, begun=begun) for one in entry.targets))

    def _order(self, target: CommandTarget, *, begun: bool) -> Order:
        known = self._components.get(target.component)
        if known is None:
            raise UnknownComponent(f"this truck has no component {target.component!r}")
        spec = self._verifier.check_target(target, kind=known.kind, hardware=known.hardware, begun=begun)
        return Order(
            component=target.component,
            spec=spec,
            document=target.document.encode(),
            url=target.url,
            delta=target.delta,
        )
