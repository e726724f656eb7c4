"""Only what enough provisioned keys signed, and exactly that; a begun flash is finished all the same."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization.json import JSONSerializer

from edge_agent.clock import Clock
from edge_agent.errors import ImageMissing, OlderRelease
from edge_agent.store.journal import Entry
from edge_agent.trust.counters import Counters
from edge_agent.trust.verifier import Verifier
from edge_agent.update.authority import Documents
from shared.messages import Command, CommandTarget
from shared.release import FirmwareSpec, Incompatible
from shared.states import UpdateState
from shared.trust.document import Expired, TrustError, Unsigned, WrongImage, make_document
from shared.trust.keys import key_ring, load_signer, new_key

DATA = b"firmware" * 100
SPEC = FirmwareSpec(
    kind="brake-controller",
    hardware=("rev-b", "rev-c"),
    version="2.0.0",
    release_counter=2,
    length=len(DATA),
    sha256=hashlib.sha256(DATA).hexdigest(),
)
KEYS = [new_key() for _ in range(3)]
SIGNERS: list[CryptoSigner] = [load_signer(private) for private, _ in KEYS]
NOW = datetime(2027, 1, 1, tzinfo=UTC)


def signed_by(*signers: CryptoSigner) -> str:
    metadata: Metadata[Targets] = Metadata.from_bytes(
        make_document(SPEC, signers[0], datetime(2028, 1, 1, tzinfo=UTC))
    )
    for signer in signers[1:]:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True)).decode()


def target(document: str) -> CommandTarget:
    return CommandTarget(
        component="brakes",
        version=SPEC.version,
        sha256=SPEC.sha256,
        length=SPEC.length,
        document=document,
        url="u",
    )


def verifier(*, threshold: int = 1, now: datetime = NOW, highest: int = 0) -> Verifier:
    return Verifier(
        keys=key_ring([KEYS[0][1], KEYS[1][1]]),
        threshold=threshold,
        clock=Clock(wall=lambda: now),
        counters=Counters(Path("unused"), {"brakes": highest}),
    )


def check(one: Verifier, document: str, *, begun: bool = False, hardware: str = "rev-b") -> FirmwareSpec:
    return one.check_target(target(document), kind="brake-controller", hardware=hardware, begun=begun)


def test_enough_provisioned_keys_must_have_signed() -> None:
    one, two, stranger = SIGNERS
    assert check(verifier(threshold=2), signed_by(one, two)) == SPEC
    for document in (signed_by(one), signed_by(one, stranger), signed_by(stranger)):
        with pytest.raises(Unsigned):
            check(verifier(threshold=2), document)
    with pytest.raises(ValueError, match="threshold"):
        verifier(threshold=0)


def test_an_expired_document_begins_nothing_but_what_has_begun_is_finished() -> None:
    late = verifier(now=datetime(2029, 1, 1, tzinfo=UTC))
    with pytest.raises(Expired):
        check(late, signed_by(SIGNERS[0]))
    assert check(late, signed_by(SIGNERS[0]), begun=True) == SPEC


def test_a_clock_from_1970_does_not_make_old_documents_good() -> None:
    metadata = make_document(SPEC, SIGNERS[0], datetime(2020, 1, 1, tzinfo=UTC)).decode()
    with pytest.raises(Expired):
        check(verifier(now=datetime(1970, 1, 1, tzinfo=UTC)), metadata)


def test_an_older_release_begins_nothing_but_what_has_begun_is_finished() -> None:
    newer_ran = verifier(highest=3)
    with pytest.raises(OlderRelease):
        check(newer_ran, signed_by(SIGNERS[0]))
    assert check(newer_ran, signed_by(SIGNERS[0]), begun=True) == SPEC
    assert check(verifier(highest=2), signed_by(SIGNERS[0])) == SPEC


def test_that_it_has_begun_excuses_neither_signature_nor_hardware() -> None:
    with pytest.raises(Unsigned):
        check(verifier(), signed_by(SIGNERS[2]), begun=True)
    with pytest.raises(Incompatible):
        check(verifier(), signed_by(SIGNERS[0]), begun=True, hardware="rev-a")


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b"x" + DATA[1:], b""])
async def test_only_the_signed_bytes_are_loaded(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(WrongImage):
        await verifier().check_file(path, SPEC)
    with pytest.raises(WrongImage):
        await verifier().load(path, SPEC, b"{}")
    path.write_bytes(DATA)
    await verifier().check_file(path, SPEC)
    image = await verifier().load(path, SPEC, b"{}")
    assert (image.data, image.document, image.spec) == (DATA, b"{}", SPEC)


async def test_an_image_that_is_gone_is_said_to_be_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ImageMissing):
            await verifier().check_file(path, SPEC)
        with pytest.raises(ImageMissing):
            await verifier().load(path, SPEC, b"{}")


async def test_a_release_is_not_taken_from_documents_where_there_are_no_roots() -> None:
    """Its order, its groups and its safety stand in signed metadata that this truck can't verify."""
    documents = Documents(verifier(), {"brakes": SimpleNamespace(kind="brake-controller", hardware="rev-b")})
    for requires, refused in ((("install", "doc-ed25519"), False), (("install", "release", "uptane"), True)):
        command = Command(
            command_id="c",
            job_id="j",
            attempt=1,
            revision=1,
            kind="install",
            requires=requires,
            targets=(target(signed_by(SIGNERS[0])),),
        )
        entry = Entry(
            job_id="j",
            attempt=1,
            revision=1,
            state=UpdateState.VERIFYING,
            command=command,
            created_at=NOW,
            updated_at=NOW,
        )
        if not refused:
            assert (await documents.look(entry)).of("brakes").spec == SPEC
            continue
        with pytest.raises(TrustError) as no:
            await documents.look(entry)
        assert no.value.code == "no_roots"
