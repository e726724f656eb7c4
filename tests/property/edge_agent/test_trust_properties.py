"""Alarms and numbers over any history; any flipped bit; any name of a file in a bundle."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.metadata_source import BundleSource
from edge_agent.trust.selection import TruckEcu, TruckEcus
from edge_agent.trust.trust_store import sealed, unsealed
from edge_agent.trust.vehicle_manifest import VehicleManifests
from shared.messages import Installed
from shared.trust.uptane.errors import MetadataRefused
from shared.trust.uptane.manifest import read_manifest
from shared.trust.uptane.steps import Wanted

NOW = datetime(2026, 11, 25, tzinfo=UTC)
ECUS = TruckEcus(ecus=(), gateway=TruckEcu(component="", serial="gw", kind="gateway", hardware="g"))


async def _silent() -> list[Installed]:
    return []


async def _away(_: bytes) -> str | None:
    return "away"


async def _history(folder: Path, acts: list[str]) -> None:
    """No alarm is lost before the office has it, and no number is given twice, whatever comes."""
    key = load_or_make_key(folder)
    raised: set[str] = set()
    told: set[str] = set()
    numbers: list[tuple[str, int]] = []
    made: list[bytes] = []
    state = await ManifestState.open(folder)
    for act in acts:
        manifests = VehicleManifests(
            vehicle_id="t",
            ecus=ECUS,
            signer=key,
            state=state,
            known=await KnownImages.open(folder),
            installed=_silent,
            now=lambda: NOW,
            send=_away,
        )
        match act:
            case "make":
                made.append(await manifests.make())
                read = read_manifest(made[-1]).signed
                numbers.append((read.store_id, read.seq))
            case "restart":
                state = await ManifestState.open(folder)
            case "accept" | "accept late":
                if made:
                    one = made[-1] if act == "accept" else made[0]
                    await state.accepted(one.decode())
                    told |= set(read_manifest(one).signed.ecus[0].signed.attacks)
            case "cut":
                await state.number()
            case code:
                await manifests.alarm(code)
                raised.add(code)
        assert raised - told <= set(state.state.alarms)
        assert set(state.state.alarms) <= raised
    assert len(set(numbers)) == len(numbers)
    assert [seq for _, seq in numbers] == sorted(seq for _, seq in numbers)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["make", "restart", "accept", "accept late", "cut", "a", "b", "c"]), max_size=14)
)
def test_no_alarm_is_lost_and_no_number_given_twice(acts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_history(Path(folder), acts))


@given(st.binary(max_size=200), st.data())
def test_a_flipped_bit_is_damage(content: bytes, data: st.DataObject) -> None:
    raw = bytearray(sealed(content))
    assert unsealed(bytes(raw)) == content
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(ValueError, match="not those"):
        unsealed(bytes(raw))


@given(st.binary(max_size=100), st.integers(0, 200))
def test_a_cut_file_is_damage(content: bytes, cut: int) -> None:
    raw = sealed(content)
    if cut < len(raw):
        with pytest.raises(ValueError, match="not those"):
            unsealed(raw[:cut])


_PARTS = st.sampled_from(
    ["..", ".", "", "a", "inside.json", "link", "loop", "\0", "..\\x", "image", "x" * 300]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PARTS, min_size=1, max_size=5).map("/".join))
def test_no_name_leads_out_of_a_bundle(name: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "usb"
        (folder / "image" / "a").mkdir(parents=True)
        (Path(made) / "inside.json").write_bytes(b"secret")
        for place in (folder / "image", folder / "image" / "a"):
            (place / "inside.json").write_bytes(b"open")
        (folder / "image" / "link").symlink_to(made)
        (folder / "image" / "loop").symlink_to(folder / "image" / "loop")
        wanted = Wanted(repository="image", name=name, most_bytes=100)
        with suppress(MetadataRefused):
            assert asyncio.run(BundleSource(folder=folder).fetch(wanted)) in (None, b"open")
