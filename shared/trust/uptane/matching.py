"""Does what the director selects agree with what was signed offline, and with this truck?

Uptane 5.4.4.6 steps 6 to 8, 5.4.4.2 step 10 and 5.4.3.4, and beyond the Standard the release document:
a captured director can name only whole releases, since mixing signed images of several is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import TargetFile, Targets

from shared.release import FirmwareSpec
from shared.trust.document import BadDocument, spec_of
from shared.trust.uptane.ecu_document import DOCUMENT, document_of
from shared.trust.uptane.errors import (
    CounterRolledBack,
    DirectorDelegates,
    EcuTwice,
    MixedBundle,
    NoRelease,
    NotCompatible,
    PartialBundle,
    TargetsDiffer,
    UnknownEcu,
    Unreadable,
    WrongHardware,
    WrongVehicle,
)
from shared.trust.uptane.release_document import ReleaseSpec, ReleaseTarget
from shared.trust.uptane.vehicle import Ecu, Vehicle

WHERE = "director/targets"
VEHICLE = "vehicle"
RELEASES = "releases/"
ECUS = "ecus"
"""The one thing that a director says of an image which the image repository does not."""


@dataclass(frozen=True, kw_only=True)
class SignedImage:
    """What was signed offline of a directed image; `document` is for its ECU (see ecu_document.py)."""

    spec: FirmwareSpec
    document: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Directed:
    """One image that the director names, for the ECUs of these serials, and what it says of it."""

    path: str
    target: TargetFile
    ecus: tuple[Ecu, ...]

    @property
    def hardware(self) -> frozenset[str]:
        """The hardware ids of its ECUs."""
        return frozenset(ecu.hardware for ecu in self.ecus)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One ECU and the firmware that it shall have; `target` is the release's word on it.

    `document` is what the ECU itself verifies, signed with the image; None where the ECU verifies nothing.
    """

    ecu: Ecu
    spec: FirmwareSpec
    target: ReleaseTarget
    document: bytes | None = None

    @property
    def served_name(self) -> str:
        """The image's name below the image repository's address."""
        return served_name(self.spec.target_path, self.spec.sha256)


def served_name(path: str, sha256: str) -> str:
    """A target's name as it is served (consistent snapshots: HASH.FILE)."""
    folder, _, name = path.rpartition("/")
    return f"targets/{folder}/{sha256}.{name}"


def read_directed(targets: Targets, vehicle: Vehicle) -> tuple[TargetFile | None, tuple[Directed, ...]]:
    """The release and the images that the director selects for this truck. Raises MetadataRefused."""
    if targets.delegations is not None:
        raise DirectorDelegates(WHERE, "a director's targets may not delegate")
    said = targets.unrecognized_fields.get(VEHICLE)
    if said != vehicle.vehicle_id:
        raise WrongVehicle(WHERE, f"for vehicle {str(said)[:80]!r}, this is {vehicle.vehicle_id!r}")
    releases = [target for path, target in targets.targets.items() if path.startswith(RELEASES)]
    images: list[Directed] = []
    named: set[str] = set()
    for path, target in targets.targets.items():
        if path.startswith(RELEASES):
            continue
        ecus = tuple(_ecu(serial, said, vehicle) for serial, said in _ecus_of(target, path).items())
        for ecu in ecus:
            if ecu.serial in named:
                raise EcuTwice(WHERE, f"ECU {ecu.serial} is named by more than one image")
            named.add(ecu.serial)
        images.append(Directed(path=path, target=target, ecus=ecus))
    if len(releases) > 1 or (images and not releases):
        raise NoRelease(WHERE, f"{len(images)} images by {len(releases)} releases")
    return (releases[0] if releases else None), tuple(images)


def _ecus_of(target: TargetFile, path: str) -> Mapping[str, Any]:
    custom = target.custom
    ecus = custom.get(ECUS) if isinstance(custom, dict) else None
    if not isinstance(ecus, dict) or not ecus:
        raise Unreadable(WHERE, f"{path[:200]!r} names no ECU")
    return ecus


def _ecu(serial: str, said: object, vehicle: Vehicle) -> Ecu:
    ecu = vehicle.by_serial(serial)
    if ecu is None:
        raise UnknownEcu(WHERE, f"names ECU {serial[:80]!r}, which this truck has not")
    hardware = said.get("hardware") if isinstance(said, dict) else None
    if hardware != ecu.hardware:
        raise WrongHardware(
            WHERE, f"names hardware {str(hardware)[:80]!r} for {serial}, which is {ecu.hardware!r}"
        )
    return ecu


def check_same(path: str, director: TargetFile, image: TargetFile) -> None:
    """Raise TargetsDiffer unless both repositories say the same of a target that they name alike."""
    for hashes in (director.hashes, image.hashes):
        # Images are checked by SHA-256; a hash that nobody would check is not taken for one.
        if set(hashes) != {"sha256"}:
            raise TargetsDiffer(WHERE, f"{path[:200]!r} has hashes {sorted(hashes)}, not sha256 alone")
    if director.length != image.length or director.hashes != image.hashes:
        raise TargetsDiffer(WHERE, f"length or hash of {path[:200]!r} is not what was signed offline")


def check_image_target(directed: Directed, image: TargetFile, counters: Mapping[str, int]) -> SignedImage:
    """A directed image, when both repositories and its ECUs agree on it.

    `counters` are the highest release counters that ECUs ran, by serial. Raises MetadataRefused.
    """
    check_same(directed.path, directed.target, image)
    try:
        spec = spec_of(directed.path, image)
        document = document_of(image.custom, spec)
    except BadDocument as error:
        raise Unreadable("image/targets", error.message) from error
    ours = {name: said for name, said in directed.target.custom.items() if name != ECUS}
    # A director need not repeat the ECU's document: 64 of them would not fit into its targets.
    left_out = {DOCUMENT} - ours.keys()
    for name in sorted({*ours, *image.custom} - left_out):
        if ours.get(name) != image.custom.get(name):
            raise TargetsDiffer(
                WHERE, f"{name} of {directed.path!r} is {str(ours.get(name))[:80]!r}, signed is another"
            )
    for ecu in directed.ecus:
        if ecu.kind != spec.kind or ecu.hardware not in spec.hardware:
            raise WrongHardware(
                WHERE, f"{directed.path!r} is not for {ecu.serial}: {ecu.kind} on {ecu.hardware}"
            )
        if spec.release_counter < counters.get(ecu.serial, 0):
            raise CounterRolledBack(
                WHERE,
                f"{directed.path!r} has release counter {spec.release_counter}, "
                f"{ecu.serial} ran {counters[ecu.serial]} already",
            )
    return SignedImage(spec=spec, document=document)


def check_bundle(
    release: ReleaseSpec, images: Mapping[str, SignedImage], vehicle: Vehicle
) -> tuple[Assignment, ...]:
    """What each ECU of the truck shall have, in the release's order; `images` are by serial.

    Raises MixedBundle, PartialBundle or NotCompatible.
    """
    made: list[Assignment] = []
    for ecu in vehicle.ecus:
        target, image = release.target_for(ecu.kind, ecu.hardware), images.get(ecu.serial)
        if image is not None and (target is None or target.spec != image.spec):
            raise MixedBundle(
                WHERE, f"{image.spec.target_path!r} for {ecu.serial} is not of {release.target_path!r}"
            )
        if target is not None and image is None:
            raise PartialBundle(
                WHERE, f"{ecu.serial} gets nothing, {release.target_path!r} has firmware for it"
            )
        if target is not None and image is not None:
            made.append(Assignment(ecu=ecu, spec=image.spec, target=target, document=image.document))
    _check_compatible(release, vehicle)
    return tuple(sorted(made, key=lambda one: (one.target.order, one.ecu.serial)))


def _check_compatible(release: ReleaseSpec, vehicle: Vehicle) -> None:
    for need in release.compatibility:
        ecus = [ecu for ecu in vehicle.ecus if ecu.kind == need.kind]
        if not ecus:
            raise NotCompatible(WHERE, f"the release needs a {need.kind}, this truck has none")
        for ecu in ecus:
            if ecu.installed_counter is None or ecu.installed_counter < need.counter_at_least:
                raise NotCompatible(
                    WHERE,
                    f"{ecu.serial} runs release counter "
                    f"{'unknown' if ecu.installed_counter is None else ecu.installed_counter}, "
                    f"the release needs at least {need.counter_at_least}",
                )
