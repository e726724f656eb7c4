"""Deltas at the desk: from what trucks may run, worth their bytes, and never out before their image."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli import delta_child, release_delta
from cli.office import OfficeClient, OfficeRefused
from cli.release_delta import DeltaNotMade, add_deltas, send_deltas, worthwhile_delta
from cli.release_files import FileTrouble
from cli.repository_folder import RepositoryFolder
from shared.delta import apply_delta
from shared.release import FirmwareSpec
from shared.trust.uptane.repository import Repository
from shared.trust.uptane.repository_edit import add_target, firmware_target, withdraw
from sim.uptane_world import UptaneWorld

COMMON = random.Random(31).randbytes(20_000)


def image(version: str) -> bytes:
    """A build; versions differ by little."""
    return COMMON[:400] + f"version {version} ".encode() * 3 + COMMON[400:]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Desk:
    """An image repository in a folder, edited as `quarry release` edits it; keys are a test world's."""

    def __init__(self, folder: Path) -> None:
        self.world = UptaneWorld()
        self.held = RepositoryFolder(folder)
        folder.mkdir()
        self.held.create(self.world.image)

    @property
    def kind(self) -> str:
        return self.world.vehicle.ecus[0].kind

    @property
    def hardware(self) -> str:
        return self.world.vehicle.ecus[0].hardware

    def add(self, version: str, counter: int, **more: Any) -> dict[str, int | None]:
        """Draft an image; by base, the deltas that were made, None where there is none."""
        content = more.pop("content", image(version))
        spec = FirmwareSpec(
            kind=more.pop("kind", self.kind),
            hardware=more.pop("hardware", (self.hardware,)),
            version=version,
            release_counter=counter,
            length=len(content),
            sha256=sha(content),
        )
        target = firmware_target(spec)
        self.world.image, _ = add_target(self.world.image, target, self.world.now)
        self.held.keep_image(target, content)
        made = add_deltas(self.held, self.world.image, target, content, **more)
        self.held.save(self.world.image)
        return {one.base.split("/")[1] if "/" in one.base else one.base: one.length for one in made}

    def publish(self) -> None:
        self.world.publish()
        self.held.save(self.world.image)

    def withdraw(self, version: str, counter: int) -> None:
        path = f"{self.kind}/{version}/{sha(image(version))}.bin"
        self.world.image, _ = withdraw(self.world.image, path, self.world.now)
        self.held.save(self.world.image)

    def lies(self, where: str) -> set[tuple[str, str]]:
        """(from, to) of the deltas in `public` or `waiting`, by versions."""
        names = {sha(image(f"1.{n}.0")): f"1.{n}.0" for n in range(9)}
        found = [one.name.split(".") for one in (self.held.path / where / "deltas").glob("*")]
        return {(names.get(base, "?"), names[new]) for base, new in found}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "repo")


def test_a_delta_goes_out_with_its_image_and_away_with_it(desk: Desk) -> None:
    """Delta and old image give the new one away, so nobody may have it before it is published."""
    assert desk.add("1.0.0", 1) == {}
    desk.publish()
    made = desk.add("1.1.0", 2)
    assert list(made) == ["1.0.0"]
    assert made["1.0.0"] is not None
    assert (desk.lies("waiting"), desk.lies("public")) == ({("1.0.0", "1.1.0")}, set())
    desk.publish()
    assert (desk.lies("waiting"), desk.lies("public")) == (set(), {("1.0.0", "1.1.0")})
    [file] = (desk.held.public / "deltas").iterdir()
    assert file.name == f"{sha(image('1.0.0'))}.{sha(image('1.1.0'))}"
    out = b"".join(
        apply_delta(io.BytesIO(image("1.0.0")), io.BytesIO(file.read_bytes()), length=len(image("1.1.0")))
    )
    assert out == image("1.1.0")
    assert file.stat().st_size == made["1.0.0"]
    desk.withdraw("1.1.0", 2)
    assert desk.lies("public") == {("1.0.0", "1.1.0")}, "it is withdrawn when that is published"
    desk.publish()
    assert desk.lies("public") == set()


def test_a_draft_that_is_withdrawn_takes_its_deltas_along(desk: Desk) -> None:
    desk.add("1.0.0", 1)
    desk.publish()
    desk.add("1.1.0", 2)
    desk.withdraw("1.1.0", 2)
    assert (desk.lies("waiting"), desk.lies("public")) == (set(), set())


def test_the_newest_older_images_of_the_kind_are_the_bases(desk: Desk) -> None:
    for number in range(5):
        desk.add(f"1.{number}.0", number + 1, most=0)
    desk.publish()
    desk.add("1.8.0", 99, most=0)
    assert list(desk.add("1.7.0", 50)) == ["1.4.0", "1.3.0", "1.2.0"]
    assert list(desk.add("1.6.0", 49, most=1)) == ["1.4.0"]
    assert desk.add("1.5.0", 48, most=0) == {}


def test_images_for_other_ecus_are_no_bases(desk: Desk) -> None:
    hoist = desk.world.vehicle.ecus[1]
    desk.add("1.0.0", 1, kind=hoist.kind, hardware=(hoist.hardware,))
    desk.add("1.1.0", 1)
    assert list(desk.add("1.2.0", 2)) == ["1.1.0"]


def test_a_base_whose_file_is_lost_or_spoiled_is_passed_over(desk: Desk) -> None:
    for number in range(3):
        desk.add(f"1.{number}.0", number + 1, most=0)
    desk.publish()
    lost, spoiled = (
        next(desk.held.public.rglob(f"{sha(image(version))}*")) for version in ("1.0.0", "1.1.0")
    )
    lost.unlink()
    spoiled.write_bytes(b"?" * spoiled.stat().st_size)
    assert list(desk.add("1.3.0", 4)) == ["1.2.0"]


def test_other_files_may_be_the_bases(desk: Desk, tmp_path: Path) -> None:
    desk.add("1.0.0", 1)
    (tmp_path / "factory.bin").write_bytes(image("0.9.0"))
    (tmp_path / "same.bin").write_bytes(image("1.1.0"))
    made = desk.add("1.1.0", 2, bases=[tmp_path / "factory.bin", tmp_path / "same.bin"])
    assert made["factory.bin"] is not None
    assert made["same.bin"] is None
    assert desk.lies("waiting") == {("?", "1.1.0")}
    with pytest.raises(FileTrouble):
        desk.add("1.2.0", 3, bases=[tmp_path / "nothing.bin"])


def test_what_saves_little_is_not_made(desk: Desk) -> None:
    with pytest.raises(DeltaNotMade, match="it would have"):
        worthwhile_delta(COMMON, random.Random(3).randbytes(20_000))
    assert len(worthwhile_delta(image("1.0.0"), image("1.1.0"))) < 1000
    desk.add("1.0.0", 1, content=random.Random(4).randbytes(9000))
    assert desk.add("1.1.0", 2) == {"1.0.0": None}
    assert desk.lies("waiting") == set()


def test_a_release_goes_out_without_the_library(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bsdiff4.py").write_text("raise ModuleNotFoundError('bsdiff4')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    desk.add("1.0.0", 1)
    assert desk.add("1.1.0", 2) == {"1.0.0": None}
    with pytest.raises(DeltaNotMade) as refused:
        worthwhile_delta(b"a" * 100, b"b" * 100)
    assert "release" in refused.value.advice


def test_a_search_that_takes_too_long_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_delta, "SEARCHED_WITHIN_S", 0.0)
    desk.add("1.0.0", 1)
    assert desk.add("1.1.0", 2) == {"1.0.0": None}
    with pytest.raises(DeltaNotMade, match="takes more than"):
        worthwhile_delta(b"a" * 100, b"b" * 100)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(ValueError("too little in common"), "too little in common"), (MemoryError(), "not enough memory")],
)
def test_the_search_says_why_it_found_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
) -> None:
    def search(base: bytes, image: bytes) -> bytes:
        raise error

    monkeypatch.setattr(delta_child, "make_delta", search)
    assert delta_child.main(Path(__file__), Path(__file__), tmp_path / "out") == delta_child.NONE
    assert sentence in capsys.readouterr().err


def test_why_a_search_failed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "bsdiff4.py").write_text("raise ValueError('no such images')\n")
    with pytest.raises(DeltaNotMade, match="no such images"):
        worthwhile_delta(b"a" * 100, b"b" * 100)


class Office(OfficeClient):
    """Takes deltas, or refuses them."""

    def __init__(self, refusal: OfficeRefused | None = None) -> None:
        self.refusal = refusal
        self.taken: dict[tuple[str, str], bytes] = {}

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        assert (method, path) == ("PUT", "/deltas")
        if self.refusal is not None:
            raise self.refusal
        params: Mapping[str, str] = more["params"]
        self.taken[params["base_sha256"], params["sha256"]] = more["content"]
        return {}


def test_deltas_of_a_single_document_are_sent_to_the_office(tmp_path: Path) -> None:
    office = Office()
    paths = [tmp_path / "1.0.0.bin", tmp_path / "1.1.0.bin", tmp_path / "noise.bin"]
    for path, content in zip(
        paths, (image("1.0.0"), image("1.1.0"), random.Random(9).randbytes(500)), strict=True
    ):
        path.write_bytes(content)
    made = send_deltas(office, image("1.1.0"), paths)
    assert [one.length is not None for one in made] == [True, False, False]
    [(pair, delta)] = office.taken.items()
    assert pair == (sha(image("1.0.0")), sha(image("1.1.0")))
    assert len(delta) == made[0].length
    assert str(made[0]) == f"delta from 1.0.0.bin: {len(delta)} bytes of {len(image('1.1.0'))}"
    assert str(made[1]) == "no delta from 1.1.0.bin: it is the same image"


def test_a_delta_that_the_office_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(image("1.0.0"))
    refusal = OfficeRefused("the image is not here", status=404, code="gone", advice="")
    [made] = send_deltas(Office(refusal), image("1.1.0"), [tmp_path / "old.bin"])
    assert (made.length, made.why) == (None, "the image is not here")


def test_an_empty_repository_and_a_directors_have_none(tmp_path: Path) -> None:
    world = UptaneWorld(ecus=1)
    held = RepositoryFolder(tmp_path / "director")
    held.path.mkdir()
    director: Repository = world.director
    held.create(director)
    assert not (held.public / "deltas").exists()
