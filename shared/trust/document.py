"""The signed firmware document: a TUF targets role that names exactly one target.

Form: TUF specification 1.0.31, section 4.5 (targets.json); the target's `custom` object carries
`kind`, `hardware`, `version` and `release_counter`. The signature (Ed25519, offline key) is over
the canonical JSON of `signed` and so covers length, hash, kind, hardware and version. The later
trust chain puts the same target into delegated, threshold-signed roles; what a target says and
how it is read stays as it is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import CanonicalJSONSerializer, JSONSerializer

from shared.errors import OtaError
from shared.release import BadRelease, FirmwareSpec
from shared.since_310 import UTC

MAX_DOCUMENT_BYTES = 64 * 1024
"""Larger documents are refused unread."""


class TrustError(OtaError):
    """Something about a firmware's authority is not as it must be: no flash."""

    code = "untrusted"
    advice = "Do not install it. Have the release engineer sign it and publish it again."


class BadDocument(TrustError):
    """The document can't be read, or says something that can't be."""

    code = "bad_document"


class Unsigned(TrustError):
    """The document carries no valid signature by enough of the provisioned keys."""

    code = "unsigned"
    advice = "Sign it with a firmware key that this truck was provisioned with."


class Expired(TrustError):
    """The document's time is over."""

    code = "expired"
    advice = "Have the release engineer sign it again with a later expiry; check the truck's clock."


class WrongImage(TrustError):
    """The bytes are not the ones that were signed."""

    code = "wrong_image"
    advice = "Publish the image that was signed; nothing else will be flashed."


def make_document(spec: FirmwareSpec, signer: Signer, expires_at: datetime) -> bytes:
    """The document of `spec`, signed by one key. `expires_at` is UTC."""
    target = TargetFile(
        length=spec.length,
        hashes={"sha256": spec.sha256},
        path=spec.target_path,
        unrecognized_fields={
            "custom": {
                "kind": spec.kind,
                "hardware": list(spec.hardware),
                "version": spec.version,
                "release_counter": spec.release_counter,
            }
        },
    )
    expires = expires_at.astimezone(UTC).replace(microsecond=0, tzinfo=UTC)
    metadata = Metadata(Targets(version=1, expires=expires, targets={target.path: target}))
    metadata.sign(signer)
    return metadata.to_bytes(JSONSerializer(compact=True))


def verify_document(
    raw: bytes, keys: Mapping[str, Key], *, now: datetime, threshold: int = 1
) -> FirmwareSpec:
    """Read a document that is signed by at least `threshold` different keys of `keys`.

    `keys` maps key ids to the public keys that this end was provisioned with; signatures by any
    other key count nothing. `now` is UTC. Raises BadDocument, Unsigned or Expired; nothing of a
    document that fails is returned.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise BadDocument(f"document of {len(raw)} bytes is over {MAX_DOCUMENT_BYTES}")
    if threshold < 1:
        raise ValueError("a threshold below 1 would trust anything")
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(raw)
    except (DeserializationError, RepositoryError, RecursionError) as error:
        raise BadDocument(f"not a firmware document: {error}") from error
    signed = metadata.signed
    if not isinstance(signed, Targets):
        raise BadDocument(f"a document of type {type(signed).__name__}, not of targets")
    canonical = CanonicalJSONSerializer().serialize(signed)
    good = 0
    for keyid, signature in metadata.signatures.items():
        key = keys.get(keyid)
        if key is None:
            continue
        try:
            key.verify_signature(signature, canonical)
        except (UnverifiedSignatureError, VerificationError):
            continue
        good += 1
    if good < threshold:
        raise Unsigned(
            f"{good} valid signatures by provisioned keys, {threshold} needed; "
            f"signed by {', '.join(k[:12] for k in metadata.signatures) or 'nobody'}"
        )
    if now >= signed.expires:
        raise Expired(f"the document expired at {signed.expires.isoformat()}, now is {now.isoformat()}")
    return _spec(signed)


def read_unverified(raw: bytes) -> FirmwareSpec:
    """What a document claims, without any check of who says so: for display and indexing only."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise BadDocument(f"document of {len(raw)} bytes is over {MAX_DOCUMENT_BYTES}")
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(raw)
    except (DeserializationError, RepositoryError, RecursionError) as error:
        raise BadDocument(f"not a firmware document: {error}") from error
    if not isinstance(metadata.signed, Targets):
        raise BadDocument("not a document of targets")
    return _spec(metadata.signed)


def _spec(signed: Targets) -> FirmwareSpec:
    if len(signed.targets) != 1:
        raise BadDocument(f"a firmware document names one target, this one {len(signed.targets)}")
    [(path, target)] = signed.targets.items()
    return spec_of(path, target)


def spec_of(path: str, target: TargetFile) -> FirmwareSpec:
    """What one target says of its firmware. Raises BadDocument; who signed it is not looked at."""
    custom = target.unrecognized_fields.get("custom")
    if not isinstance(custom, dict):
        raise BadDocument("the target has no custom object")
    hardware = custom.get("hardware")
    if not isinstance(hardware, list) or not all(isinstance(one, str) for one in hardware):
        raise BadDocument("custom.hardware is not a list of words")
    for name, kind in (("kind", str), ("version", str), ("release_counter", int)):
        value = custom.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadDocument(f"custom.{name} is not a {kind.__name__}")
    try:
        spec = FirmwareSpec(
            kind=custom["kind"],
            hardware=tuple(hardware),
            version=custom["version"],
            release_counter=custom["release_counter"],
            length=target.length,
            sha256=target.hashes.get("sha256", ""),
        )
    except BadRelease as error:
        raise BadDocument(error.message) from error
    if path != spec.target_path:
        raise BadDocument(f"the target is named {path!r}, its own fields say {spec.target_path!r}")
    return spec
