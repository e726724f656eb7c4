"""`/repo/time`: what a truck with a wrong clock asks, before it can make any other connection."""

from __future__ import annotations

import asyncio
import secrets
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from control_plane.director import time_tokens
from control_plane.director.time_tokens import MOST_WAITING, TimeTokens
from control_plane.errors import NotFound, TooMany, Unavailable
from control_plane.metrics import Metrics
from shared.trust.uptane.errors import BadTimeToken, BelowThreshold
from shared.trust.uptane.time_token import check_time_token
from sim.uptane_world import UptaneWorld

NONCE = "ab" * 24


@pytest.fixture
async def anyone(yard: Any) -> httpx.AsyncClient:
    """A truck that can't show who it is."""
    client = await yard.client("")
    del client.headers["Authorization"]
    assert isinstance(client, httpx.AsyncClient)
    return client


async def test_a_truck_proves_the_time_without_a_token_of_its_own(
    yard: Any, anyone: httpx.AsyncClient
) -> None:
    nonce = secrets.token_hex(24)
    answer = await anyone.get("/repo/time", params={"nonce": nonce})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    at, store = check_time_token(answer.content, nonce, yard.world.store())
    assert at == yard.clock[0]
    assert store.floor(at - timedelta(days=1)) == at
    with pytest.raises(BadTimeToken):
        check_time_token(answer.content, secrets.token_hex(24), store)


async def test_each_answer_is_of_its_own_moment(yard: Any, anyone: httpx.AsyncClient) -> None:
    yard.clock[0] += timedelta(hours=1)
    answer = await anyone.get("/repo/time", params={"nonce": NONCE})
    assert check_time_token(answer.content, NONCE, yard.world.store())[0] == yard.clock[0]


@pytest.mark.parametrize("nonce", [None, "", "ab" * 15, "AB" * 24, "ab" * 65, "zz" * 24, "ab" * 24 + "\n"])
async def test_what_is_no_question_is_not_signed(anyone: httpx.AsyncClient, nonce: str | None) -> None:
    answer = await anyone.get("/repo/time", params={} if nonce is None else {"nonce": nonce})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_another_keys_token_proves_nothing(world: UptaneWorld) -> None:
    tokens = TimeTokens((world.keys["director/timestamp/1"],), Metrics())
    with pytest.raises(BelowThreshold):
        check_time_token(await tokens.token(NONCE), NONCE, world.store())


async def test_without_the_key_the_question_has_no_answer() -> None:
    with pytest.raises(NotFound) as refused:
        await TimeTokens((), Metrics()).token(NONCE)
    assert refused.value.code == "no_time_role"


class _Stuck:
    """A module that does not answer."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def sign(self, payload: bytes) -> Any:
        self.go_on.wait(30)
        raise AssertionError(payload)


async def test_a_key_that_does_not_answer_holds_up_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_tokens, "SIGN_WITHIN_S", 0.5)
    stuck = _Stuck()
    tokens = TimeTokens((stuck,), Metrics(), clock=lambda: datetime(2026, 11, 25, tzinfo=UTC))  # type: ignore[arg-type]
    asked = [asyncio.create_task(tokens.token(NONCE)) for _ in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await tokens.token(NONCE)
    for one in asked:
        with pytest.raises(Unavailable):
            await one
    stuck.go_on.set()
