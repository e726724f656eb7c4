"""Asks vehicle, people and calendar whether an ECU may be flashed now. The judgement itself is `safety`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.clock import Clock
from edge_agent.interlocks.people import Gates, ask
from edge_agent.interlocks.safety import NOBODY, Forbidden, Policy, judge_all
from edge_agent.interlocks.vehicle import Vehicle
from shared.trust.uptane.safety_policy import SafetyPolicy


@dataclass(frozen=True, kw_only=True)
class Interlocks:
    """What must agree before each touch of an ECU.

    `addresses` are the J1939 source addresses of components, where they have one.
    """

    vehicle: Vehicle
    policy: Policy
    clock: Clock
    gates: Gates | None = None
    addresses: Mapping[str, int] = field(default_factory=dict)

    def rules(self, signed: SafetyPolicy) -> SafetyPolicy:
        """A release's policy, narrowed by what the truck's owner has said."""
        return self.policy.under(signed).rules

    async def against(
        self, *, component: str, job_id: str, begun: bool, signed: SafetyPolicy | None = None
    ) -> Forbidden | None:
        """Why not now; None: go on.

        `begun`: the ECU may have been touched, so that only the vehicle counts. `signed` is the
        policy of the release, None where it has none.
        """
        verdict = judge_all(
            await self.vehicle.state(),
            NOBODY if begun else await ask(self.gates),
            self.policy.under(signed),
            now=self.clock.now(),
            job_id=job_id,
            begun=begun,
            without=self.addresses.get(component),
        )
        return verdict if isinstance(verdict, Forbidden) else None
