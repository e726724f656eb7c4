"""Who may open which door of the director, and what its description says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

TRUCK = "truck-7"
OPERATORS = [
    ("POST", "/api/v1/image-repository"),
    ("GET", "/api/v1/image-repository"),
    ("POST", "/api/v1/image-repository/lacking"),
    ("PUT", f"/api/v1/devices/{TRUCK}/ecus"),
    ("GET", f"/api/v1/devices/{TRUCK}/ecus"),
    ("GET", f"/api/v1/devices/{TRUCK}/ecus/SN-0/history"),
    ("PUT", f"/api/v1/devices/{TRUCK}/selection"),
    ("GET", f"/api/v1/devices/{TRUCK}/selection"),
    ("GET", "/api/v1/alarms"),
    ("POST", "/api/v1/alarms/a/acknowledge"),
]
TRUCKS = [
    ("GET", "/repo/image/timestamp.json"),
    ("HEAD", "/repo/image/timestamp.json"),
    ("GET", f"/repo/director/{TRUCK}/timestamp.json"),
    ("POST", f"/api/v1/devices/{TRUCK}/vehicle-manifest"),
]


@pytest.mark.parametrize(("method", "path"), OPERATORS + TRUCKS)
async def test_nobody_opens_a_door_without_a_token(yard: Any, method: str, path: str) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=yard.app), base_url="http://office.test"
    ) as anyone:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await anyone.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(("method", "path"), OPERATORS)
async def test_a_truck_opens_no_operator_s_door(yard: Any, method: str, path: str) -> None:
    answer = await yard.truck.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("method", "path"), TRUCKS)
async def test_an_operator_is_no_truck_and_one_truck_not_another(yard: Any, method: str, path: str) -> None:
    assert (await yard.operator.request(method, path)).status_code == 403
    if TRUCK in path:
        other = await yard.add_truck("truck-8")
        assert (await other.request(method, path)).status_code == 403


async def test_the_description_shows_examples_and_errors(yard: Any) -> None:
    description = (await yard.operator.get("/openapi.json")).json()
    for name, model in description["components"]["schemas"].items():
        if name in {"HTTPValidationError", "ValidationError"} or "enum" in model:
            continue
        fields = model["properties"].values()
        assert [one for one in fields if "examples" in one or "$ref" in one or "items" in one], name
        assert model.get("description"), name
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert {"401", "403", "404", "503"} <= operation["responses"].keys(), (method, path)
