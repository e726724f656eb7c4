"""From a verified selection to components: serial, kind, hardware and the command's word must all agree."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from edge_agent.errors import DocumentMismatch, UnknownComponent
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.selection import TruckEcu, TruckEcus, TrustedTarget, targets_of
from edge_agent.trust.trust_files import selection_id
from shared.messages import CommandTarget, Installed
from shared.release import FirmwareSpec, Incompatible
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from shared.trust.uptane.selection import Selection
from sim.uptane_world import UptaneWorld

SIGNER = load_signer(new_key()[0])
GATEWAY = TruckEcu(component="", serial="gateway", kind="gateway", hardware="gateway")


@pytest.fixture(scope="module")
def selection() -> Selection:
    world = UptaneWorld()
    world.direct(world.release("1.1.0", 2))
    made = world.verify(world.store()).selection
    assert made is not None
    return made


@pytest.fixture
def ecus(selection: Selection) -> TruckEcus:
    return TruckEcus(
        ecus=tuple(
            TruckEcu(component=f"c{n}", serial=one.ecu.serial, kind=one.ecu.kind, hardware=one.ecu.hardware)
            for n, one in enumerate(selection.assignments)
        ),
        gateway=GATEWAY,
    )


def commanded(spec: FirmwareSpec, component: str, **changed: object) -> CommandTarget:
    made = CommandTarget(
        component=component,
        version=spec.version,
        sha256=spec.sha256,
        length=spec.length,
        document=make_document(spec, SIGNER, datetime(2030, 1, 1, tzinfo=UTC)).decode(),
        url=f"http://office/{component}",
    )
    return msgspec.structs.replace(made, **changed)


def targets(selection: Selection, ecus: TruckEcus, *commands: CommandTarget) -> tuple[TrustedTarget, ...]:
    return targets_of(selection, ecus, url_of=lambda one: f"office/{one.served_name}", commanded=commands)


def test_without_a_command_the_repository_has_the_bytes(selection: Selection, ecus: TruckEcus) -> None:
    made = targets(selection, ecus)
    assert [one.component for one in made] == ["c0", "c1"]
    for one, assignment in zip(made, selection.assignments, strict=True):
        assert one.spec == assignment.spec
        assert one.target == assignment.target
        assert one.url == f"office/{assignment.served_name}"
        assert one.document is None


def test_the_order_is_the_releases(selection: Selection, ecus: TruckEcus) -> None:
    turned = replace(ecus, ecus=ecus.ecus[::-1])
    assert [one.component for one in targets(selection, turned)] == ["c0", "c1"]


def test_a_command_brings_urls_and_documents(selection: Selection, ecus: TruckEcus) -> None:
    commands = [commanded(one.spec, f"c{n}") for n, one in enumerate(selection.assignments)]
    made = targets(selection, ecus, *commands[::-1])
    assert [one.url for one in made] == ["http://office/c0", "http://office/c1"]
    assert [one.document for one in made] == [one.document.encode() for one in commands]


@pytest.mark.parametrize(
    "changed", [{"version": "9"}, {"sha256": "ab" * 32}, {"length": 1}], ids=["version", "sha256", "length"]
)
def test_a_command_that_means_another_firmware(
    selection: Selection, ecus: TruckEcus, changed: dict[str, object]
) -> None:
    first, second = selection.assignments
    commands = [commanded(first.spec, "c0"), commanded(second.spec, "c1", **changed)]
    with pytest.raises(DocumentMismatch, match=next(iter(changed))):
        targets(selection, ecus, *commands)


def test_a_document_of_another_firmware(selection: Selection, ecus: TruckEcus) -> None:
    first, second = selection.assignments
    other = commanded(first.spec, "c0").document
    commands = [commanded(first.spec, "c0"), commanded(second.spec, "c1", document=other)]
    with pytest.raises(DocumentMismatch, match="document"):
        targets(selection, ecus, *commands)


def test_a_command_for_less_or_more_than_the_release(selection: Selection, ecus: TruckEcus) -> None:
    first, second = selection.assignments
    with pytest.raises(DocumentMismatch, match="c1"):
        targets(selection, ecus, commanded(first.spec, "c0"))
    more = [commanded(first.spec, "c0"), commanded(second.spec, "c1"), commanded(second.spec, "c2")]
    with pytest.raises(DocumentMismatch, match="c2"):
        targets(selection, ecus, *more)


def test_a_serial_that_is_no_components(selection: Selection, ecus: TruckEcus) -> None:
    with pytest.raises(UnknownComponent, match="SN-1"):
        targets(selection, replace(ecus, ecus=ecus.ecus[:1]))


@pytest.mark.parametrize("field", ["kind", "hardware"])
def test_a_component_that_is_something_else(selection: Selection, ecus: TruckEcus, field: str) -> None:
    other = replace(ecus.ecus[0], **{field: "other"})
    with pytest.raises(Incompatible):
        targets(selection, replace(ecus, ecus=(other, ecus.ecus[1])))


async def test_the_vehicle_is_what_the_ecus_say(
    selection: Selection, ecus: TruckEcus, tmp_path: Path
) -> None:
    """A counter is known only of a running image that was verified here, and of its own kind."""
    known = await KnownImages.open(tmp_path)
    first, second = (one.spec for one in selection.assignments)
    await known.learn([first, second])
    known = await KnownImages.open(tmp_path)

    def counter(**says: object) -> int | None:
        fields = {"component": "c0", "kind": first.kind, "hardware": "H0", "sha256": first.sha256, **says}
        return ecus.vehicle("truck-7", [Installed(**fields)], known).ecus[0].installed_counter  # type: ignore[arg-type]

    assert counter() == 2
    assert counter(sha256="ab" * 32) is None
    assert counter(sha256=None) is None
    assert counter(in_bootloader=True) is None
    assert counter(sha256=second.sha256) is None
    assert ecus.vehicle("truck-7", [], known).ecus[0].installed_counter is None
    assert [one.serial for one in ecus.vehicle("truck-7", [], known).ecus] == ["SN-0", "SN-1"]


async def test_known_images_are_bounded_and_heal(selection: Selection, tmp_path: Path) -> None:
    spec = selection.assignments[0].spec
    known = await KnownImages.open(tmp_path)
    await known.learn([replace(spec, sha256=f"{n:064x}") for n in range(300)])
    await known.learn([spec])
    path = tmp_path / "known.json"
    known = await KnownImages.open(tmp_path)
    assert known.spec_of(spec.sha256) == spec
    assert known.spec_of(f"{0:064x}") is None
    path.write_bytes(path.read_bytes()[:-9])
    known = await KnownImages.open(tmp_path)
    assert known.spec_of(spec.sha256) is None
    await known.learn([spec])
    assert (await KnownImages.open(tmp_path)).spec_of(spec.sha256) == spec


def test_a_renewed_selection_has_the_same_id(selection: Selection) -> None:
    later = replace(selection, expires=datetime(2040, 1, 1, tzinfo=UTC))
    assert selection_id(later) == selection_id(selection)
    half = replace(selection, assignments=selection.assignments[:1])
    assert selection_id(half) != selection_id(selection)
