"""Both repositories of a fleet and one truck, in memory: what tests attack, benches time and demos show.

Made by the product's own builders with fresh Ed25519 keys, so that a truck provisioned from `store()`
accepts what is honest. Every private key lies in `keys` by "repository/role/number": an attacker of
one takes it from there. `served` is what the truck's link brings; a test may put anything into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.uptane.director import DirectorSigners, direct, direct_offline
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.offline import offline_file
from shared.trust.uptane.publication import publish
from shared.trust.uptane.release_document import ReleaseSpec, ReleaseTarget, Requirement
from shared.trust.uptane.repository import Repository, RoleKeys, begin, progress, sign
from shared.trust.uptane.repository_edit import (
    add_target,
    delegate,
    firmware_target,
    release_target,
    rotate_key,
)
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import RepositoryName, TrustedStore, provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import Outcome, verify

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
BUILT_AT = datetime(2026, 11, 1, tzinfo=UTC)
FAMILIES = ("brake-controller", "hoist-controller")
_THRESHOLDS = {
    "image/root": (3, 2),
    "image/targets": (2, 2),
    "image/snapshot": (1, 1),
    "image/timestamp": (1, 1),
    "director/root": (3, 2),
    "director/targets": (1, 1),
    "director/snapshot": (1, 1),
    "director/timestamp": (1, 1),
    "director/time": (1, 1),
    "director/offline": (2, 2),
}
_FAMILY_KEYS = (3, 2)


def image_bytes(kind: str, version: str) -> bytes:
    """The content of a firmware; nothing here flashes it."""
    return f"{kind} {version} ".encode() * 64


class UptaneWorld:
    """A truck `truck-7` with `ecus` ECUs of as many families, and its two repositories."""

    def __init__(self, *, ecus: int = 2, now: datetime = NOW) -> None:
        kinds = [FAMILIES[n] if n < len(FAMILIES) else f"controller-{n}" for n in range(ecus)]
        self.now = now
        self.vehicle = Vehicle(
            vehicle_id="truck-7",
            ecus=tuple(
                Ecu(serial=f"SN-{n}", kind=kind, hardware=f"H{n}", installed_counter=1)
                for n, kind in enumerate(kinds)
            ),
        )
        self.keys: dict[str, CryptoSigner] = {}
        self.served: dict[tuple[RepositoryName, str], bytes] = {}
        self.directed = 0
        for role, (count, _) in _THRESHOLDS.items():
            self.add_keys(role, count)
        self.add_keys("ecu/document", 1)
        self.director = begin("director", self._roles("director"), now, sides=self._sides("time", "offline"))
        self.image = begin("image", self._roles("image"), now)
        for ecu in self.vehicle.ecus:
            self.add_keys(f"image/{ecu.kind}", _FAMILY_KEYS[0])
            keys = RoleKeys(keys=self._public(f"image/{ecu.kind}"), threshold=_FAMILY_KEYS[1])
            self.image = delegate(self.image, ecu.kind, keys, [ecu.hardware], now)
        self.publish()
        self.direct(None)

    def add_keys(self, role: str, count: int) -> None:
        """Fresh keys for a role, numbered on."""
        have = len(self.signers(role))
        for number in range(have + 1, have + count + 1):
            self.keys[f"{role}/{number}"] = CryptoSigner(Ed25519PrivateKey.generate())

    def signers(self, role: str) -> tuple[CryptoSigner, ...]:
        """The private keys of a role, "image/root"."""
        return tuple(key for name, key in self.keys.items() if name.rpartition("/")[0] == role)

    def _public(self, role: str) -> tuple[Key, ...]:
        return tuple(signer.public_key for signer in self.signers(role))

    def _roles(self, repository: str) -> dict[str, RoleKeys]:
        return {
            role: self._keys_of(f"{repository}/{role}")
            for role in ("root", "targets", "snapshot", "timestamp")
        }

    def _sides(self, *names: str) -> dict[str, RoleKeys]:
        return {name: self._keys_of(f"director/{name}") for name in names}

    def _keys_of(self, role: str) -> RoleKeys:
        return RoleKeys(keys=self._public(role), threshold=_THRESHOLDS[role][1])

    def publish(self) -> None:
        """Sign every draft of both repositories and serve the result."""
        self.image = publish(
            self._signed(self.image),
            snapshot_signers=self.signers("image/snapshot"),
            timestamp_signers=self.signers("image/timestamp"),
            now=self.now,
        )
        self.director = publish(self._signed(self.director), now=self.now)
        self.served.update({("image", name): raw for name, raw in self.image.published.items()})
        self.served.update({("director", name): raw for name, raw in self.director.published.items()})

    def _signed(self, repository: Repository) -> Repository:
        by_id = {signer.public_key.keyid: signer for signer in self.keys.values()}
        for one in progress(repository):
            for keyid in one.unsigned:
                if keyid in by_id:
                    repository, _ = sign(repository, by_id[keyid], one.role)
        return repository

    def image_of(self, kind: str, version: str) -> bytes:
        """The content of a firmware; a world whose ECUs are real ones gives them real images."""
        return image_bytes(kind, version)

    def spec(self, ecu: Ecu, version: str, counter: int) -> FirmwareSpec:
        """A firmware for an ECU."""
        data = self.image_of(ecu.kind, version)
        return FirmwareSpec(
            kind=ecu.kind,
            hardware=(ecu.hardware,),
            version=version,
            release_counter=counter,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def ecu_document(self, spec: FirmwareSpec) -> bytes:
        """The document that an ECU with a verifying bootloader asks for."""
        return make_document(spec, self.keys["ecu/document/1"], self.now + timedelta(days=365))

    def release(
        self,
        version: str,
        counter: int,
        *,
        needs: Sequence[Requirement] = (),
        document: Callable[[FirmwareSpec], bytes | None] = lambda _: None,
        change: Callable[[ReleaseSpec], ReleaseSpec] = lambda one: one,
    ) -> ReleaseSpec:
        """Sign, publish and serve firmware of this version for every ECU, and the release of them all.

        `document` gives an ECU's own document (`ecu_document`), None for an ECU that verifies nothing.
        `change` may say more of the release before it is signed.
        """
        specs = [self.spec(ecu, version, counter) for ecu in self.vehicle.ecus]
        release = ReleaseSpec(
            name="haul",
            version=version,
            compatibility=tuple(needs),
            targets=tuple(
                ReleaseTarget(
                    kind=spec.kind,
                    hardware=spec.hardware,
                    version=spec.version,
                    release_counter=spec.release_counter,
                    length=spec.length,
                    sha256=spec.sha256,
                    order=order,
                )
                for order, spec in enumerate(specs)
            ),
        )
        release = change(release)
        whole = release_target(release)
        for target in [*(firmware_target(spec, document(spec)) for spec in specs), whole]:
            self.image, _ = add_target(self.image, target, self.now)
        self.publish()
        self.served["image", served_name(whole.path, whole.hashes["sha256"])] = release.dump()
        for spec in specs:
            data = self.image_of(spec.kind, version)
            self.served["image", served_name(spec.target_path, spec.sha256)] = data
        return release

    def direct(self, release: ReleaseSpec | None, *, life: timedelta = timedelta(days=1)) -> None:
        """Have the director select a release for the truck, or nothing."""
        self.directed += 1
        signers = DirectorSigners(
            targets=self.signers("director/targets"),
            snapshot=self.signers("director/snapshot"),
            timestamp=self.signers("director/timestamp"),
        )
        files = direct(self.vehicle, release, version=self.directed, signers=signers, now=self.now, life=life)
        self.served.update({("director", name): raw for name, raw in files.items()})

    def direct_offline(self, release: ReleaseSpec, *, version: int = 1, days: int = 90) -> None:
        """Put a selection by the offline role where a USB bundle has it."""
        self.served["director", offline_file(self.vehicle.vehicle_id)] = direct_offline(
            self.vehicle,
            release,
            version=version,
            signers=self.signers("director/offline"),
            now=self.now,
            life=timedelta(days=days),
        )

    def rotate(self, role: str, number: int = 1) -> None:
        """Replace a key of a role ("image/timestamp") in the drafts; publish() puts it out."""
        repository, _, name = role.partition("/")
        old = self.keys.pop(f"{role}/{number}")
        new = CryptoSigner(Ed25519PrivateKey.generate())
        self.keys[f"{role}/{number}"] = new
        if name == "root":
            self.keys[f"{role}-old/{number}"] = old
        keyid = old.public_key.keyid
        if repository == "image":
            self.image = rotate_key(self.image, name, keyid, new.public_key, self.now)
        else:
            self.director = rotate_key(self.director, name, keyid, new.public_key, self.now)

    def store(self) -> TrustedStore:
        """The store of a truck that was provisioned with the first roots."""
        return provision(
            director_root=self.director.published["1.root.json"],
            image_root=self.image.published["1.root.json"],
        )

    def fetch(self, wanted: Wanted) -> bytes | None:
        """What the link brings; a byte more than wanted shows that there was more."""
        raw = self.served.get((wanted.repository, wanted.name))
        return None if raw is None else raw[: wanted.most_bytes + 1]

    def verify(
        self,
        store: TrustedStore,
        *,
        wall: datetime | None = None,
        proved: datetime | None = None,
        policy: TimePolicy | None = None,
        offline: bool = False,
    ) -> Outcome:
        """A whole verification on the truck."""
        reading = Reading(wall=wall or self.now, proved=proved)
        policy = policy or TimePolicy(built_at=BUILT_AT)
        return drive(verify(store, self.vehicle, reading, policy, offline=offline), self.fetch)

    def refusal(self, store: TrustedStore, **clock: Any) -> str | None:
        """The code by which a verification refuses, None when it does not."""
        refused = self.verify(store, **clock).refused
        return None if refused is None else refused.code
