"""Somebody on the truck's link who holds some of the fleet's keys, and signs whatever helps.

An attacker sees everything that was ever served and may serve it again, or anything else. For keys
that it has not it signs all the same, by keys of its own under the right key ids.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signature, Signer
from tuf.api.metadata import Metadata

from shared.trust.uptane.repository import to_bytes
from shared.trust.uptane.store import RepositoryName
from sim.uptane_world import UptaneWorld


class Forger(CryptoSigner):
    """Signs under a key id that is not its own."""

    def __init__(self, victim: CryptoSigner) -> None:
        super().__init__(Ed25519PrivateKey.generate())
        self.victim = victim

    def sign(self, payload: bytes) -> Signature:
        """A signature that looks like the victim's and is not."""
        return Signature(self.victim.public_key.keyid, super().sign(payload).signature)


def forged(raw: bytes, change: Callable[[dict[str, Any]], None], signers: Sequence[Signer]) -> bytes:
    """Metadata whose signed part was changed, signed by `signers` alone."""
    obj = json.loads(raw)
    change(obj["signed"])
    obj["signatures"] = []
    metadata: Metadata[Any] = Metadata.from_dict(obj)
    for signer in signers:
        metadata.sign(signer, append=True)
    return to_bytes(metadata)


class Attacker(UptaneWorld):
    """A copy of a world in which only the `stolen` keys are real; what it serves is its own."""

    def __init__(self, world: UptaneWorld, stolen: Collection[str]) -> None:
        self.__dict__.update(copy.copy(world.__dict__))
        self.served = dict(world.served)
        self.keys = {name: key if name in stolen else Forger(key) for name, key in world.keys.items()}

    @classmethod
    def insider(cls, world: UptaneWorld) -> Attacker:
        """Holds every key, as a broken release process would."""
        return cls(world, world.keys)

    def publish(self) -> None:
        """Like the release tool, but nothing stops it for want of signatures."""
        for role in self.image.drafts:
            self.publish_role(role)
        self.image = replace(self.image, drafts={})
        self.relist("image")

    def publish_role(self, role: str) -> None:
        """Serve the draft of one role of the image repository."""
        draft = self.image.draft(role)
        assert draft is not None
        raw = forged(to_bytes(draft), lambda _: None, self.signers(f"image/{role}"))
        name = f"{draft.signed.version}.{role}.json"
        self.image = replace(self.image, published={**self.image.published, name: raw})
        self.served["image", name] = raw

    def newest(self, repository: RepositoryName, role: str) -> tuple[str, bytes]:
        """Name and bytes of the newest version of a role that is served."""
        names = [
            name
            for where, name in self.served
            if where == repository and name.endswith(f".{role}.json") and name[0].isdigit()
        ]
        name = max(names, key=lambda one: int(one.partition(".")[0]))
        return name, self.served[repository, name]

    def edit(self, repository: RepositoryName, role: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Serve a changed role in place of the newest, signed by what it has; listings stay as they are."""
        name = "timestamp.json" if role == "timestamp" else self.newest(repository, role)[0]
        raw = self.served[repository, name]
        self.served[repository, name] = forged(raw, change, self.signers(f"{repository}/{role}"))

    def relist(self, repository: RepositoryName, *, steps: int = 1) -> None:
        """Snapshot and timestamp anew, `steps` versions on, that list what is served."""
        _, old = self.newest(repository, "snapshot")

        def snapshot(signed: dict[str, Any]) -> None:
            signed["version"] += steps
            for listed in signed["meta"]:
                name, raw = self.newest(repository, listed.removesuffix(".json"))
                signed["meta"][listed] = _meta(int(name.partition(".")[0]), raw)

        raw = forged(old, snapshot, self.signers(f"{repository}/snapshot"))
        self.served[repository, f"{json.loads(raw)['signed']['version']}.snapshot.json"] = raw
        self.relist_snapshot(repository, steps=steps)

    def relist_snapshot(self, repository: RepositoryName, *, steps: int = 1) -> None:
        """The timestamp alone anew, `steps` versions on, listing the snapshot that is served."""
        name, raw = self.newest(repository, "snapshot")

        def timestamp(signed: dict[str, Any]) -> None:
            signed["version"] += steps
            signed["meta"]["snapshot.json"] = _meta(int(name.partition(".")[0]), raw)

        self.edit(repository, "timestamp", timestamp)

    def redirect(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the director's targets for the truck and list them."""

        def targets(signed: dict[str, Any]) -> None:
            change(signed)
            signed["version"] += 1

        _, raw = self.newest("director", "targets")
        new = forged(raw, targets, self.signers("director/targets"))
        self.served["director", f"{json.loads(new)['signed']['version']}.targets.json"] = new
        self.relist("director")

    def new_root(self, repository: RepositoryName) -> None:
        """A next root that gives every role to keys of the attacker, signed by what it has."""
        own = CryptoSigner(Ed25519PrivateKey.generate())
        name, raw = self.newest(repository, "root")
        version = int(name.partition(".")[0]) + 1

        def root(signed: dict[str, Any]) -> None:
            signed["version"] = version
            signed["keys"][own.public_key.keyid] = own.public_key.to_dict()
            for role in signed["roles"].values():
                role.update(keyids=[own.public_key.keyid], threshold=1)

        self.served[repository, f"{version}.root.json"] = forged(
            raw, root, [own, *self.signers(f"{repository}/root")]
        )


def _meta(version: int, raw: bytes) -> dict[str, Any]:
    return {"version": version, "length": len(raw), "hashes": {"sha256": hashlib.sha256(raw).hexdigest()}}
