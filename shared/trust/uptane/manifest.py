"""The vehicle version manifest (Uptane 5.4.2.1): what each ECU holds, signed on the truck.

Each ECU's report is signed by that ECU's key, or, since most microcontrollers here have none, by the
gateway's for it; the inventory says which key is whose. The whole is signed by the gateway (Primary).
Signatures are Ed25519 over the canonical JSON itself: RFC 8032 hashes inside, so a hash is not signed
in its place. `store_id` and `seq` take the place of a nonce: they change with every manifest, and a
truck whose database was lost begins a new store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signer

from shared.ids import ID_PATTERN
from shared.release import MAX_IMAGE_BYTES
from shared.since_310 import UTC
from shared.trust.document import TrustError

MOST_MANIFEST_BYTES = 256 * 1024
MOST_ECUS = 64
TIME_FORM = "%Y-%m-%dT%H:%M:%SZ"

_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Id = Annotated[str, Meta(pattern=ID_PATTERN, max_length=64)]
_Counter = Annotated[int, Meta(ge=0, le=2**53)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
_Signatures = Annotated[dict[str, Annotated[str, Meta(max_length=1024)]], Meta(max_length=8)]


class BadManifest(TrustError):
    """The bytes are not a manifest."""

    code = "bad_manifest"
    advice = "Look at the truck's agent: it sends what the office can't read."


class InstalledImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an ECU holds, in the words of targets metadata. `length` 0: the reporter never saw this image."""

    filename: _Text
    length: Annotated[int, Meta(ge=0, le=MAX_IMAGE_BYTES)]
    sha256: _Sha256
    release_counter: _Counter


class EcuReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ECU. `installed` None: it holds no valid image (its bootloader waits), or did not answer.

    `attacks` are codes of refusals since the last manifest (see errors.py). `at` is the newest time that
    the reporter can prove, in UTC to the second.
    """

    serial: _Text
    kind: _Text
    hardware: _Text
    installed: InstalledImage | None
    attacks: Annotated[tuple[_Text, ...], Meta(max_length=32)] = ()
    store_id: _Id
    seq: _Counter
    at: Annotated[str, Meta(max_length=20)]


class SignedReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A report and who signed it: key id to signature in hex."""

    signed: EcuReport
    signatures: _Signatures


class VehicleReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The truck's word on all of its ECUs, the gateway's own report among them."""

    kind: Literal["manifest"] = "manifest"
    vehicle: _Text
    primary: _Text
    store_id: _Id
    seq: _Counter
    at: Annotated[str, Meta(max_length=20)]
    ecus: Annotated[tuple[SignedReport, ...], Meta(max_length=MOST_ECUS)]


class SignedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest as it travels."""

    signed: VehicleReport
    signatures: _Signatures


def make_manifest(
    vehicle_id: str,
    primary: str,
    reports: Sequence[EcuReport],
    *,
    store_id: str,
    seq: int,
    at: datetime,
    gateway: Signer,
    ecu_signers: Mapping[str, Signer],
) -> bytes:
    """A manifest, signed. `ecu_signers` by serial are of ECUs with keys of their own."""
    signed = VehicleReport(
        vehicle=vehicle_id,
        primary=primary,
        store_id=store_id,
        seq=seq,
        at=say_time(at),
        ecus=tuple(
            SignedReport(signed=one, signatures=_sign(one, ecu_signers.get(one.serial, gateway)))
            for one in reports
        ),
    )
    return msgspec.json.encode(SignedManifest(signed=signed, signatures=_sign(signed, gateway)))


def read_manifest(raw: bytes) -> SignedManifest:
    """Read one; nobody has checked who signed it. Raises BadManifest."""
    if len(raw) > MOST_MANIFEST_BYTES:
        raise BadManifest(f"{len(raw)} bytes, at most {MOST_MANIFEST_BYTES} are read")
    try:
        manifest = msgspec.json.decode(raw, type=SignedManifest)
        for at in (manifest.signed.at, *(one.signed.at for one in manifest.signed.ecus)):
            read_time(at)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadManifest(f"not a manifest: {error}") from error
    return manifest


def payload_of(value: EcuReport | VehicleReport) -> bytes:
    """The bytes that are signed."""
    text = encode_canonical(msgspec.to_builtins(value))
    assert text is not None
    return text.encode()


def say_time(at: datetime) -> str:
    """A time as manifests have it."""
    return at.astimezone(UTC).strftime(TIME_FORM)


def read_time(said: str) -> datetime:
    """The time of a manifest's word. Raises ValueError."""
    return datetime.strptime(said, TIME_FORM).replace(tzinfo=UTC)


def _sign(value: EcuReport | VehicleReport, signer: Signer) -> dict[str, str]:
    made = signer.sign(payload_of(value))
    return {made.keyid: made.signature}
