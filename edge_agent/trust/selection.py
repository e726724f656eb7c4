"""From a verified selection to what is flashed where: ECU serials to this truck's components. Pure.

The selection decides; the configuration says which component an ECU is, and must agree on kind and
hardware. A command's word only adds where the bytes are, and must agree with what was signed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.delivery.local_image import URL as BROUGHT
from edge_agent.errors import DocumentMismatch, UnknownComponent
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.trust_config import GATEWAY, UptaneTrust
from firmware_flashers.jetson_settings import JetsonSettings
from firmware_flashers.registry import Component
from shared.messages import CommandTarget, Delta, Installed
from shared.release import FirmwareSpec, Incompatible
from shared.trust.document import read_unverified
from shared.trust.uptane.matching import Assignment
from shared.trust.uptane.release_document import ReleaseTarget
from shared.trust.uptane.selection import Selection
from shared.trust.uptane.vehicle import Ecu, Vehicle


@dataclass(frozen=True, kw_only=True)
class TruckEcu:
    """One ECU of the configuration, and the serial by which the inventory knows it."""

    component: str
    serial: str
    kind: str
    hardware: str


@dataclass(frozen=True, kw_only=True)
class TruckEcus:
    """All of them. `gateway` is the gateway's own report: a component's, or of itself alone."""

    ecus: tuple[TruckEcu, ...]
    gateway: TruckEcu

    @classmethod
    def of(cls, components: Sequence[Component], trust: UptaneTrust) -> TruckEcus:
        """By the configuration."""
        made: dict[str, TruckEcu] = {}
        gateway = TruckEcu(component="", serial=trust.gateway_serial, kind=GATEWAY, hardware=GATEWAY)
        for one in components:
            made[one.component] = TruckEcu(
                component=one.component,
                serial=trust.serial_of(one.component),
                kind=one.kind,
                hardware=one.hardware,
            )
            if isinstance(one, JetsonSettings):
                gateway = made[one.component]
        return cls(ecus=tuple(made.values()), gateway=gateway)

    def vehicle(self, vehicle_id: str, installed: Sequence[Installed], known: KnownImages) -> Vehicle:
        """What a verification must know: release counters of what the ECUs say that they run."""
        says = {one.component: one for one in installed}
        return Vehicle(
            vehicle_id=vehicle_id,
            ecus=tuple(
                Ecu(
                    serial=ecu.serial,
                    kind=ecu.kind,
                    hardware=ecu.hardware,
                    installed_counter=_counter_of(says.get(ecu.component), known),
                )
                for ecu in self.ecus
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TrustedTarget:
    """What one component shall have, wholly verified, and where its bytes are.

    `target` is the release's word (order, group, attempts). `document` is the signed document that an ECU
    with a verifying bootloader checks itself; None where neither the image's target nor a command has one.
    """

    component: str
    ecu: Ecu
    spec: FirmwareSpec
    target: ReleaseTarget
    url: str
    document: bytes | None = None
    delta: Delta | None = None


def targets_of(
    selection: Selection,
    ecus: TruckEcus,
    *,
    url_of: Callable[[Assignment], str],
    commanded: Sequence[CommandTarget] = (),
) -> tuple[TrustedTarget, ...]:
    """The selection for this truck's components, in the release's order.

    `commanded` are the targets of the command that triggered it, if one did: its URLs come before
    `url_of`'s, but not the one of an image that was brought by hand. A document that it brings must be the
    one that was signed with the image, where that has one. Raises UnknownComponent, Incompatible, and
    DocumentMismatch when the command means another release than was selected.
    """
    by_serial = {ecu.serial: ecu for ecu in ecus.ecus}
    said = {one.component: one for one in commanded}
    made: list[TrustedTarget] = []
    for one in selection.assignments:
        ours = by_serial.get(one.ecu.serial)
        if ours is None:
            raise UnknownComponent(f"no component of this truck has the serial {one.ecu.serial!r}")
        if (ours.kind, ours.hardware) != (one.ecu.kind, one.ecu.hardware):
            raise Incompatible(
                f"{ours.component} is configured as {ours.kind} {ours.hardware}, "
                f"{one.ecu.serial} was verified as {one.ecu.kind} {one.ecu.hardware}"
            )
        one.spec.check_fits(kind=ours.kind, hardware=ours.hardware)
        command = said.pop(ours.component, None)
        if command is None and commanded:
            raise DocumentMismatch(f"{ours.component} is in the release, but not in the command")
        made.append(_target(ours.component, one, command, url_of))
    if said:
        raise DocumentMismatch(f"{', '.join(said)}: in the command, but not in the release")
    return tuple(made)


def _target(
    component: str,
    one: Assignment,
    command: CommandTarget | None,
    url_of: Callable[[Assignment], str],
) -> TrustedTarget:
    spec = one.spec
    if command is None:
        return TrustedTarget(
            component=component,
            ecu=one.ecu,
            spec=spec,
            target=one.target,
            url=url_of(one),
            document=one.document,
        )
    for name, signed, said in (
        ("version", spec.version, command.version),
        ("sha256", spec.sha256, command.sha256),
        ("length", spec.length, command.length),
    ):
        if signed != said:
            raise DocumentMismatch(f"{component}: {name}: the command says {said}, {signed} is selected")
    return TrustedTarget(
        component=component,
        ecu=one.ecu,
        spec=spec,
        target=one.target,
        url=url_of(one) if command.url == BROUGHT else command.url,
        document=_document(component, one, command),
        delta=command.delta,
    )


def _document(component: str, one: Assignment, command: CommandTarget) -> bytes | None:
    """What the ECU is given to verify: signed with the image, else the command's."""
    if not command.document:
        return one.document
    said = command.document.encode()
    if one.document is not None and one.document != said:
        raise DocumentMismatch(f"{component}: the command's document is not the one that was signed")
    if read_unverified(said) != one.spec:
        raise DocumentMismatch(f"{component}: the command's document is of another firmware")
    return said


def _counter_of(installed: Installed | None, known: KnownImages) -> int | None:
    if installed is None or installed.in_bootloader:
        return None
    spec = known.spec_of(installed.sha256)
    return None if spec is None or spec.kind != installed.kind else spec.release_counter
