"""The release engineer's desk of a scenario: both repositories, and their keys, which the office never gets.

All of it by the functions behind `quarry release`: root and targets 2 of 3, a role with keys of its own,
2 of 3, for each ECU family, the director's root 2 of 3; and the one online key that the office is given.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.publication import publish
from shared.trust.uptane.release_document import ReleaseSpec, ReleaseTarget
from shared.trust.uptane.repository import Repository, RepositoryTrouble, RoleKeys, begin, progress, sign
from shared.trust.uptane.repository_edit import add_target, delegate, firmware_target, release_target
from shared.trust.uptane.safety_policy import SafetyPolicy
from sim.scenarios.truck import Product

OFFLINE = {"root": (3, 2), "targets": (3, 2), "snapshot": (1, 1), "timestamp": (1, 1)}
"""The image repository's roles: how many keys there are, and how many must sign."""
FAMILY = (3, 2)
KEPT_DAYS = 3650


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """One version for one product, with the document that its ECU verifies."""

    product: Product
    spec: FirmwareSpec
    image: bytes
    document: bytes


class Desk:
    """Repositories for these products. Everything that is added is a draft until `publish`."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._keys: dict[str, tuple[CryptoSigner, ...]] = {}
        private, self.firmware_key = new_key()
        self._ecu_signer = load_signer(private)
        now = _now()
        online = _signers(1)
        self._online = online[0].private_bytes
        self._keys["director/root"] = _signers(3)
        roles = {"root": RoleKeys(keys=_public(self._keys["director/root"]), threshold=2)}
        roles |= {name: RoleKeys(keys=_public(online), threshold=1) for name in tuple(OFFLINE)[1:]}
        self._director = publish(self._signed(begin("director", roles, now), "director", keys=2), now=_now())
        self._image = begin("image", {name: self._make(name, *sizes) for name, sizes in OFFLINE.items()}, now)
        for one in products:
            self._image = delegate(self._image, one.kind, self._make(one.kind, *FAMILY), [one.hardware], now)
        self._files: dict[str, bytes] = {}
        self.publish(keys=2)

    def _make(self, role: str, count: int, threshold: int) -> RoleKeys:
        self._keys[role] = _signers(count)
        return RoleKeys(keys=_public(self._keys[role]), threshold=threshold)

    @property
    def roots(self) -> tuple[bytes, bytes]:
        """The director's and the image repository's first root, which trucks are provisioned with."""
        return self._director.published["1.root.json"], self._image.published["1.root.json"]

    def firmware(self, product: Product, version: str, *, counter: int, nbytes: int) -> Firmware:
        """An image, the document that its ECU asks for, and the draft that names both."""
        image = product.image(version, nbytes)
        spec = FirmwareSpec(
            kind=product.kind,
            hardware=(product.hardware,),
            version=version,
            release_counter=counter,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, self._ecu_signer, _now() + timedelta(days=KEPT_DAYS))
        target = firmware_target(spec, document)
        self._image, _ = add_target(self._image, target, _now())
        self._files[served_name(target.path, spec.sha256)] = image
        return Firmware(product=product, spec=spec, image=image, document=document)

    def release(
        self, version: str, firmwares: Sequence[Firmware], safety: SafetyPolicy, *, groups: bool = False
    ) -> ReleaseSpec:
        """The draft of a release of these; see release_of."""
        release = release_of(version, firmwares, safety, groups=groups)
        target = release_target(release)
        self._image, _ = add_target(self._image, target, _now())
        self._files[served_name(target.path, target.hashes["sha256"])] = release.dump()
        return release

    def publish(self, *, keys: int) -> None:
        """Sign every draft with so many of the keys of its role, and put them out with a new snapshot.

        Raises RepositoryTrouble when that is not enough; then nothing is published.
        """
        signed = self._signed(self._image, keys=keys)
        self._image = publish(
            signed,
            snapshot_signers=self._keys["snapshot"],
            timestamp_signers=self._keys["timestamp"],
            now=_now(),
        )

    def why_not_with(self, keys: int) -> str:
        """The tool's sentence against a publication with so many keys of each role; "" when it would do."""
        before = self._image
        try:
            self.publish(keys=keys)
        except RepositoryTrouble as error:
            return error.message
        finally:
            self._image = before
        return ""

    def _signed(self, repository: Repository, prefix: str = "", *, keys: int) -> Repository:
        for one in progress(repository):
            name = f"{prefix}/{one.role}" if prefix else one.role
            for signer in self._keys[name][:keys]:
                repository, _ = sign(repository, signer, one.role)
        return repository

    def tar(self) -> bytes:
        """What is published, as `tar -C FOLDER/public -cf - .` makes it."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, raw in {**self._image.published, **self._files}.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
        return out.getvalue()

    def provision_office(self, folder: Path) -> Path:
        """What the office is given: both roots and its online key; returns its configuration file."""
        director, image = self.roots
        (folder / "director-roots").mkdir(parents=True)
        (folder / "director-roots" / "1.root.json").write_bytes(director)
        (folder / "image.root.json").write_bytes(image)
        key = folder / "director-key"
        key.touch(0o600)
        key.write_bytes(self._online)
        config = folder / "office.toml"
        config.write_text(
            "director = true\n"
            f'director_key = "{key}"\n'
            f'director_roots = "{folder / "director-roots"}"\n'
            f'director_image_root = "{folder / "image.root.json"}"\n',
            encoding="utf-8",
        )
        return config


def release_of(
    version: str, firmwares: Sequence[Firmware], safety: SafetyPolicy, *, groups: bool = False
) -> ReleaseSpec:
    """A release of these firmwares in this order; with `groups` each is wholly proved before the next begins.

    One try on each ECU: what does not come up goes back.
    """
    return ReleaseSpec(
        name="haul",
        version=version,
        safety=safety,
        targets=tuple(
            ReleaseTarget(
                kind=one.spec.kind,
                hardware=one.spec.hardware,
                version=one.spec.version,
                release_counter=one.spec.release_counter,
                length=one.spec.length,
                sha256=one.spec.sha256,
                order=order,
                group=one.product.component if groups else "all",
                attempts=1,
            )
            for order, one in enumerate(firmwares)
        ),
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _signers(count: int) -> tuple[CryptoSigner, ...]:
    return tuple(load_signer(new_key()[0]) for _ in range(count))


def _public(signers: Sequence[CryptoSigner]) -> tuple[Key, ...]:
    return tuple(signer.public_key for signer in signers)
