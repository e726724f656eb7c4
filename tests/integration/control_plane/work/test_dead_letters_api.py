"""`/api/v1/dead-letters`: what could not be handled is seen whole, and decided on once."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest


async def add(desk: Any, number: int, **more: Any) -> str | None:
    fields = {
        "source": "mqtt",
        "device_id": "truck-001",
        "job_id": None,
        "message_id": f"m-{number}",
        "reason": "not readable",
        "raw": bytes([0, 255, number]),
        "reference": {"topic": "x"},
    } | more
    found: str | None = await desk.db.run(lambda c: desk.letters.add(c, **fields))
    return found


async def test_letters_are_listed_shown_and_dropped(office_api: httpx.AsyncClient, desk: Any) -> None:
    for number in range(5):
        await add(desk, number, reason=f"bad\x00 {number}")
    listed = (await office_api.get("/api/v1/dead-letters", params={"limit": 3})).json()
    rest = await office_api.get("/api/v1/dead-letters", params={"cursor": listed["next_cursor"]})
    items = listed["items"] + rest.json()["items"]
    assert [one["message_id"] for one in items] == ["m-4", "m-3", "m-2", "m-1", "m-0"]
    assert "raw_base64" not in items[0]
    path = f"/api/v1/dead-letters/{items[0]['dead_letter_id']}"
    whole = (await office_api.get(path)).json()
    assert base64.b64decode(whole["raw_base64"]) == b"\x00\xff\x04"
    assert (whole["text"], whole["reason"]) == (None, "bad\N{REPLACEMENT CHARACTER} 4")
    dropped = (await office_api.post(f"{path}/drop")).json()
    assert (dropped["resolution"], dropped["resolved_by"]) == ("dropped", "admin")
    twice = await office_api.post(f"{path}/drop")
    assert (twice.status_code, twice.json()["code"]) == (409, "already_resolved")
    left = (await office_api.get("/api/v1/dead-letters")).json()["items"]
    assert len(left) == 4
    every = (await office_api.get("/api/v1/dead-letters", params={"resolved": True})).json()["items"]
    assert len(every) == 5


async def test_a_source_without_a_resolver_can_only_be_dropped(
    office_api: httpx.AsyncClient, desk: Any
) -> None:
    letter = await add(desk, 1)
    refused = await office_api.post(f"/api/v1/dead-letters/{letter}/replay")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_replayable")
    assert (await desk.letters.get(letter)).resolution is None


@pytest.mark.parametrize("verb", ["", "/replay", "/drop"])
async def test_an_unknown_letter(office_api: httpx.AsyncClient, verb: str) -> None:
    path = f"/api/v1/dead-letters/none{verb}"
    answer = await (office_api.post(path) if verb else office_api.get(path))
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_dead_letter")


async def test_a_mad_truck_fills_no_disk(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.dead_letters.service.MOST_OPEN_PER_DEVICE", 3)
    found = [await add(desk, number) for number in range(5)]
    assert [one is not None for one in found] == [True, True, True, False, False]
    assert await add(desk, 0) is None
    assert await add(desk, 0, device_id="truck-002") is not None
    assert await desk.count("dead_letters") == 4
