"""One fleet for all tests of this folder; each test takes a copy, since making keys costs time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from shared.trust.uptane.store import TrustedStore
from sim.uptane_attacker import Attacker
from sim.uptane_world import UptaneWorld


@pytest.fixture(scope="session")
def _made() -> UptaneWorld:
    world = UptaneWorld()
    world.direct(world.release("1.1.0", 2))
    return world


@pytest.fixture
def world(_made: UptaneWorld) -> UptaneWorld:
    """A fleet whose director has selected release 1.1.0 (counter 2) for the truck."""
    made = copy.copy(_made)
    made.served = dict(_made.served)
    made.keys = dict(_made.keys)
    return made


@pytest.fixture
def store(world: UptaneWorld) -> TrustedStore:
    """A truck that runs 1.1.0: it has verified it, and its counters have risen."""
    outcome = world.verify(world.store())
    assert outcome.refused is None
    kept = outcome.store
    for ecu in world.vehicle.ecus:
        kept = kept.ran(ecu.serial, 2)
    return kept


@pytest.fixture
def attacker(world: UptaneWorld) -> Callable[..., Attacker]:
    """Somebody on the link with the named keys."""
    return lambda *stolen: Attacker(world, stolen)
