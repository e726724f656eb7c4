"""Logind's lock is held while an ECU is between two images, and given back however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.gateway import inhibit
from edge_agent.gateway.inhibit import Inhibitor


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def program(folder: Path, body: str) -> str:
    """A stand-in for systemd-inhibit that writes down what it is asked."""
    path = folder / "inhibitor"
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inhibit, "LOOK_EVERY_S", 0.01)


async def test_the_lock_is_held_for_as_long_as_an_ecu_is_torn(tmp_path: Path) -> None:
    touching = False
    held = Inhibitor(lambda: touching, program=program(tmp_path, f"cat; echo given back >> {tmp_path}/asked"))
    task = asyncio.create_task(held.run())
    await asyncio.sleep(0.05)
    assert not (tmp_path / "asked").exists()
    touching = True
    await until(lambda: (tmp_path / "asked").exists() and held.held)
    assert "--what=shutdown:sleep --mode=block" in (tmp_path / "asked").read_text()
    touching = False
    await until(lambda: "given back" in (tmp_path / "asked").read_text())
    assert not held.held
    task.cancel()
    await asyncio.wait({task})


async def test_a_cancelled_agent_gives_it_back(tmp_path: Path) -> None:
    held = Inhibitor(lambda: True, program=program(tmp_path, f"cat; echo given back >> {tmp_path}/asked"))
    task = asyncio.create_task(held.run())
    await until(lambda: held.held)
    task.cancel()
    await asyncio.wait({task})
    assert "given back" in (tmp_path / "asked").read_text()


async def test_a_refusal_is_asked_again_only_later(tmp_path: Path) -> None:
    held = Inhibitor(lambda: True, program=program(tmp_path, "exit 1"))
    task = asyncio.create_task(held.run())
    await until(lambda: (tmp_path / "asked").exists() and not held.held)
    await asyncio.sleep(0.2)
    assert (tmp_path / "asked").read_text().count("\n") == 1
    task.cancel()
    await asyncio.wait({task})


async def test_without_the_program_nothing_happens() -> None:
    await Inhibitor(lambda: True, program="no-such-program-here").run()
