"""A release: which firmware for which ECUs, in which order, ending together, and when it is safe.

It is itself a target of the image repository, signed offline with the images: what is online (the
director) can only select it whole. Canonical JSON (OLPC), read strictly: a field that this agent does
not know might be a restriction, so it is refused, and `requires` names what a reader must be able to do.

A field that came later is optional, and left out of the bytes when it is not given: releases that were signed
before it stay as they are, and a reader from before it refuses those that have it, by its name. `requires` is
for a meaning that changes without a new field.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from securesystemslib.formats import encode_canonical

from shared.release import MAX_IMAGE_BYTES, FirmwareSpec
from shared.trust.uptane.errors import BadReleaseDocument
from shared.trust.uptane.health import Health
from shared.trust.uptane.safety_policy import SafetyPolicy

MOST_RELEASE_BYTES = 64 * 1024
MOST_TARGETS = 64
WHERE = "release"
FEATURES: frozenset[str] = frozenset()
"""What this reader can do beyond format 1; a release that requires more is refused."""

_Word = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$", max_length=64)]
_Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$", max_length=64)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
_Counter = Annotated[int, Meta(ge=0, le=2**53)]


class ReleaseTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One firmware of the release, for every ECU of its kind and hardware.

    Lower `order` goes first, equal orders in any order; ECUs of one `group` end together, all new or all
    old. `attempts` bounds the tries on one ECU before the release goes back. `health` is what it must prove
    after its start beside its identity.
    """

    kind: _Word
    hardware: Annotated[tuple[_Word, ...], Meta(min_length=1, max_length=32)]
    version: _Version
    release_counter: _Counter
    length: Annotated[int, Meta(gt=0, le=MAX_IMAGE_BYTES)]
    sha256: _Sha256
    order: Annotated[int, Meta(ge=0, le=1000)] = 0
    group: _Word = "all"
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    health: Health | UnsetType = UNSET

    @property
    def spec(self) -> FirmwareSpec:
        """The firmware that it names."""
        return FirmwareSpec(
            kind=self.kind,
            hardware=self.hardware,
            version=self.version,
            release_counter=self.release_counter,
            length=self.length,
            sha256=self.sha256,
        )


class Requirement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every ECU of this kind must run at least this release counter before; the truck must have one."""

    kind: _Word
    counter_at_least: _Counter


class ReleaseSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release as it is signed. Firmware for ECUs that a truck has not is passed over there."""

    format: Literal[1] = 1
    name: _Word
    version: _Version
    targets: Annotated[tuple[ReleaseTarget, ...], Meta(min_length=1, max_length=MOST_TARGETS)]
    compatibility: Annotated[tuple[Requirement, ...], Meta(max_length=MOST_TARGETS)] = ()
    safety: SafetyPolicy = SafetyPolicy()
    requires: Annotated[tuple[_Word, ...], Meta(max_length=32)] = ()

    def target_for(self, kind: str, hardware: str) -> ReleaseTarget | None:
        """Its firmware for an ECU; None when it has none."""
        return next((one for one in self.targets if one.kind == kind and hardware in one.hardware), None)

    def dump(self) -> bytes:
        """Canonical JSON: equal releases are equal bytes."""
        text = encode_canonical(msgspec.to_builtins(self))
        assert text is not None
        return text.encode()

    @property
    def target_path(self) -> str:
        """Its name among signed targets."""
        return f"releases/{self.name}/{self.version}/{hashlib.sha256(self.dump()).hexdigest()}.json"


def read_release(raw: bytes) -> ReleaseSpec:
    """Read and check a release document. Raises BadReleaseDocument that names what is wrong."""
    if len(raw) > MOST_RELEASE_BYTES:
        raise BadReleaseDocument(WHERE, f"{len(raw)} bytes, at most {MOST_RELEASE_BYTES} are read")
    try:
        release = msgspec.json.decode(raw, type=ReleaseSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReleaseDocument(WHERE, str(error)) from error
    check_release(release)
    if release.dump() != raw:
        raise BadReleaseDocument(WHERE, "not in canonical form")
    return release


def check_release(release: ReleaseSpec) -> None:
    """Raise BadReleaseDocument where fields contradict each other."""
    if unknown := sorted(set(release.requires) - FEATURES):
        raise BadReleaseDocument(WHERE, f"requires what this agent can't do: {', '.join(unknown)}")
    seen: set[tuple[str, str]] = set()
    for target in release.targets:
        for hardware in target.hardware:
            if (target.kind, hardware) in seen:
                raise BadReleaseDocument(WHERE, f"two firmwares for {target.kind} on {hardware}")
            seen.add((target.kind, hardware))
        if target.health is not UNSET and (wrong := target.health.wrong):
            raise BadReleaseDocument(WHERE, f"{target.kind}: {wrong}")
    asked = [one.kind for one in release.compatibility]
    if len(set(asked)) != len(asked):
        raise BadReleaseDocument(WHERE, "two requirements on one kind")
