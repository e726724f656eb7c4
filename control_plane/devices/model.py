"""A device as the office keeps it: frozen values between the store and everybody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from shared.messages import Installed

MOST_COMPONENTS = 64
"""Components of one device at most, as many as a manifest carries."""


@dataclass(frozen=True, kw_only=True)
class NewComponent:
    """A component as an operator registers it."""

    component: str
    kind: str
    hardware: str
    installed_version: str | None = None
    installed_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of a device.

    `kind` and `hardware` are what is registered: they decide what may be installed. `installed_*`,
    `in_bootloader` and `reported_at` are the truck's newest word (or, before it, the operator's).
    `reported_kind` and `reported_hardware` are set when the truck says otherwise than is registered.
    """

    component: str
    kind: str
    hardware: str
    installed_version: str | None = None
    installed_sha256: str | None = None
    reported_kind: str | None = None
    reported_hardware: str | None = None
    in_bootloader: bool = False
    reported_at: datetime | None = None

    @property
    def differs(self) -> bool:
        """The truck says that this is another kind or revision than is registered."""
        return self.reported_kind is not None or self.reported_hardware is not None


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """One truck. `version` grows with every change but its coming and going (`online`, `last_seen_at`,
    `agent_version`, `features`), so that an operator's edit does not collide with a heartbeat.
    """

    device_id: str
    name: str
    site: str
    version: int
    online: bool
    last_seen_at: datetime | None
    agent_version: str | None
    features: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    components: tuple[Component, ...]


def registered(old: Component | None, new: NewComponent) -> Component:
    """PURE: a component after an operator has registered it, anew or again.

    What the truck said stays while it is the same kind and revision; where the operator now agrees
    with what the truck had said otherwise, the difference is gone.
    """
    if old is None:
        said, same = (new.kind, new.hardware), False
    else:
        said = (old.reported_kind or old.kind, old.reported_hardware or old.hardware)
        same = (old.kind, old.hardware) == (new.kind, new.hardware) or said == (new.kind, new.hardware)
    if old is None or not same:
        old = Component(component=new.component, kind=new.kind, hardware=new.hardware)
        said = (new.kind, new.hardware)
    return replace(
        old,
        kind=new.kind,
        hardware=new.hardware,
        installed_version=new.installed_version or old.installed_version,
        installed_sha256=new.installed_sha256 or old.installed_sha256,
        reported_kind=said[0] if said[0] != new.kind else None,
        reported_hardware=said[1] if said[1] != new.hardware else None,
    )


def reported(old: Component | None, said: Installed, at: datetime) -> Component:
    """PURE: a component after the truck has spoken of it.

    The registered kind and hardware are never overwritten; a difference is kept beside them. A
    component that nobody registered is taken as the truck says.
    """
    if old is None:
        old = Component(component=said.component, kind=said.kind, hardware=said.hardware)
    return replace(
        old,
        installed_version=said.version,
        installed_sha256=said.sha256,
        reported_kind=said.kind if said.kind != old.kind else None,
        reported_hardware=said.hardware if said.hardware != old.hardware else None,
        in_bootloader=said.in_bootloader,
        reported_at=at,
    )


def by_name(components: Sequence[Component]) -> dict[str, Component]:
    """Components by their names."""
    return {one.component: one for one in components}
