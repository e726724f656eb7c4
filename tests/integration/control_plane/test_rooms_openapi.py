"""The description of the API: complete, with examples, and honest about errors."""

from __future__ import annotations

import httpx
from fastapi import FastAPI


async def test_every_model_shows_examples_and_every_door_its_errors(
    rooms_app: FastAPI, anyone: httpx.AsyncClient
) -> None:
    answer = await anyone.get("/openapi.json")
    assert answer.status_code == 200
    description = answer.json()
    own = {
        name: model
        for name, model in description["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")
    }
    assert {"DeviceIn", "DeviceOut", "Enrolment", "WholeFirmware", "Problem"} <= own.keys()
    for name, model in own.items():
        fields = model["properties"].values()
        shown = [one for one in fields if "examples" in one or "$ref" in one or "items" in one]
        assert shown, f"{name} has no example"
        assert model.get("description"), name
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert {"403", "404", "503"} <= operation["responses"].keys(), (method, path)
            problems = operation["responses"]["404"]["content"]
            assert "application/problem+json" in problems, (method, path)
    form = description["paths"]["/api/v1/firmwares"]["post"]["requestBody"]["content"]
    assert set(form["multipart/form-data"]["schema"]["required"]) == {"document", "image"}
    assert "get" in description["paths"]["/files/{sha256}"]
